package blockdev

import (
	"fmt"
	"testing"

	"lockstep/wal/vfs/memfs"
)

// grows is the life of a replica that grows: within its last pages, and beyond them; with writes that are in the log, in
// the image, and not yet anywhere; and once more after it was killed.
func (w *survivor) grows() {
	w.open()
	w.put(write(0, 3), write(crashBlocks-2, 2))
	w.append(write(5, 1))
	w.grow(crashBlocks + 1)
	w.sync()
	w.commit()
	w.put(write(crashBlocks-1, 2), trim(crashBlocks-9, 5))
	w.steps()
	w.prepare(3 * sumsPerPage)
	w.put(write(5, 1))
	w.grow(2*sumsPerPage + 3) // not all that was prepared
	w.put(write(2*sumsPerPage+2, 1), trim(10, 2*sumsPerPage-20))
	w.apply()
	w.die()
	w.open()
	w.prepare(2*sumsPerPage + RegionBlocks)
	w.grow(2*sumsPerPage + RegionBlocks)
	w.put(write(2*sumsPerPage+9, 2))
	w.steps()
	w.close()
}

// prepare makes room for so many blocks.
func (w *survivor) prepare(blocks uint64) {
	w.do(func() error { return w.s.Prepare(blocks * BlockSize) })
}

// growsOn tells whether what a crash left grows again, further than it was to, and holds on to that.
func (w *survivor) growsOn(disk *memfs.FS) error {
	r := *w.rig
	r.fs, r.o.FS = disk, disk
	var err error
	if r.s, err = OpenStore(r.o); err != nil {
		return err
	}
	defer func() { r.s.Abandon() }()
	blocks := max(w.size, w.growing)/BlockSize + 2
	had := r.s.Size()
	if err := r.s.Prepare(blocks * BlockSize); err != nil {
		return err
	}
	if r.s.Size() != had || r.s.Room() != blocks*BlockSize {
		return fmt.Errorf("room for %d bytes of %d, size %d, had %d", r.s.Room(), blocks*BlockSize, r.s.Size(), had)
	}
	if err := r.s.Grow(blocks * BlockSize); err != nil {
		return err
	}
	if got := r.s.Blocks(); got != blocks {
		return fmt.Errorf("%d blocks, not %d", got, blocks)
	}
	last := write(blocks-1, 1)
	r.hist = r.hist[:r.s.Marks().End:r.s.Marks().End]
	r.put(last)
	again, err := reopen(&r, disk.Crash(memfs.None), r.end())
	if err != nil {
		return err
	}
	defer again.s.Abandon()
	if got := again.s.Blocks(); got != blocks {
		return fmt.Errorf("%d blocks after a crash, not %d", got, blocks)
	}
	return nil
}

func crashGrow(t testing.TB, c *memfs.Crasher, broken mutation) error {
	m := memfs.New()
	w := newSurvivor(t, m, broken)
	w.format() // crashes in that are crashLife's
	c.Promises = func() uint64 { return w.promises }
	c.Check = func(disk *memfs.FS) error {
		later := disk.Crash(memfs.All)
		if err := w.survives(disk); err != nil {
			return err
		}
		if err := w.growsOn(later); err != nil {
			return fmt.Errorf("growing again: %w", err)
		}
		return nil
	}
	c.Watch(m)
	w.grows()
	if c.Crash(m); c.Err != nil {
		return c.Err
	}
	return w.err
}

func TestEveryCrashOfAGrowLeavesOneOfTheTwoSizes(t *testing.T) {
	c := crasher()
	if err := crashGrow(t, c, 0); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d crashes, %d disks, %d checked", c.Points, c.Images, c.Checked)
}
