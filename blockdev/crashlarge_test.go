package blockdev

import (
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// P3: of a write of 32 MiB there is all or nothing after a crash, wherever the disk tore it.
func TestCrashInTheLargestWriteLeavesAllOrNothing(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("takes long; tools/test runs it without the race detector")
	}
	const largest = MaxRequestBytes / BlockSize
	m := memfs.New()
	w := newSurvivor(t, m, 0)
	id := testIdentity()
	id.Size = 40 << 20
	w.check(Format(m, w.dir, FormatOptions{Identity: id, LogBytes: 3 * (wal.MaxFrameBytes + BlockSize), SegmentBytes: wal.MaxFrameBytes + BlockSize}))
	w.formatted, w.size = true, id.Size
	w.open()
	w.put(write(0, largest))
	w.steps()

	// The frame is written in many pieces: there are crashes between some of them, and of the disks that each could leave
	// some are checked.
	c := &memfs.Crasher{Seed: *crashSeed, Every: 50, Promises: func() uint64 { return w.promises }, Check: w.survives}
	pieces := 0
	m.BeforeEach(func(memfs.Op) {
		if pieces++; pieces%48 == 1 {
			c.Crash(m)
		}
	})
	w.append(write(largest/8, largest)) // over most of the first
	c.Crash(m)                          // nothing of it is stable, anything may be there
	m.BeforeEach(nil)
	w.sync()
	w.commit()
	c.Crash(m)
	if c.Err != nil || w.err != nil {
		t.Fatal(c.Err, w.err)
	}
	if c.Checked < 8 {
		t.Errorf("only %d disks", c.Checked)
	}
	t.Logf("%d disks", c.Checked)
}
