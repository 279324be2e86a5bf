package memfs

import "fmt"

// Crasher kills the process, and cuts the power in every way that Fates lists, before every operation of a workload, and
// has each disk that could then be found checked. Nothing is run twice: the disk of a crash shares its content with the
// workload's.
//
// Images that are equal, and to be checked against the same promises, are checked once. Images are numbered, those that
// are left out too; the same workload and Seed give the same numbers, so that Only brings one of them back.
type Crasher struct {
	Seed uint64
	// Every checks one in so many of the images; 0 is all.
	Every int
	// Only, if positive, checks that image alone.
	Only int

	// Check recovers from a disk and tells which promise is broken. It may change the disk.
	Check func(disk *FS) error
	// Promises is a number that changes whenever Check would judge a disk by other rules; nil if it never does.
	Promises func() uint64

	// Points, Images and Checked count the crashes, the different disks, and those that were checked.
	Points, Images, Checked int
	// Err is the first broken promise. After it nothing is checked.
	Err error

	seen map[[2]uint64]bool
}

// Watch begins. The workload's FS is stopped when a promise is broken, so that it comes to an end.
func (c *Crasher) Watch(m *FS) {
	m.BeforeEach(func(op Op) {
		if c.crash(m, op); c.Err != nil {
			m.StopAt(m.Ops())
		}
	})
}

// Crash checks the crash that there would be now, when nothing more is to come.
func (c *Crasher) Crash(m *FS) { c.crash(m, Op{Kind: "end"}) }

func (c *Crasher) crash(m *FS, op Op) {
	if c.Err != nil {
		return
	}
	if c.seen == nil {
		c.seen = map[[2]uint64]bool{}
	}
	c.Points++
	promises := uint64(0)
	if c.Promises != nil {
		promises = c.Promises()
	}
	pending := m.Pending()
	try := func(name string, disk *FS) {
		if c.Images++; c.Only > 0 && c.Images != c.Only || c.Every > 1 && c.Images%c.Every != 0 {
			return
		}
		c.Checked++
		if err := c.Check(disk); err != nil {
			c.Err = fmt.Errorf("seed %d, image %d (before operation %d, %v: %s, not synced were %v): %w",
				c.Seed, c.Images, m.Ops(), op, name, pending, err)
		}
	}
	if len(pending) > 0 {
		try("killed", m.Kill())
	}
	for _, fate := range Fates(pending, mix(c.Seed, uint64(m.Ops()))) {
		if c.Err != nil {
			return
		}
		disk := m.Crash(fate)
		if key := [2]uint64{disk.fingerprint(), promises}; !c.seen[key] {
			c.seen[key] = true
			try("power failure, "+fate.Name, disk)
		}
	}
}
