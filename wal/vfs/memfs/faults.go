package memfs

// Effect is what a bad disk makes of one operation. The zero Effect is that of a good one.
type Effect struct {
	// Err fails the operation. Of a write, Sectors are done before.
	Err     error
	Sectors int
	// Drop is for a sync that fails: what it should have made stable is dropped from memory as well, so that readers see
	// what is on the disk. Without it they go on seeing what was written, until the power fails. Either way later syncs
	// succeed.
	Drop bool
	// Lost is a write that succeeds, and is nowhere.
	Lost bool
	// Shift is a write that succeeds, and lands so many bytes further on, as far as the file reaches.
	Shift int64
	// Hang has the operation wait until it is closed, with nothing locked.
	Hang <-chan struct{}
}

// Inject has f asked about each operation, reads too, with nothing locked. nil ends that.
func (m *FS) Inject(f func(Op) Effect) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inject = f
}
