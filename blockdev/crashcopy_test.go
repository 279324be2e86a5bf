package blockdev

import (
	"errors"
	"fmt"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// apprentice is a replica that fell behind and is copied to, region by region, while its source goes on. A crash at any
// moment leaves it as it was before, or copying, or done; and whichever it is, copied anew it becomes equal.
type apprentice struct {
	*survivor         // what counts until it is copied
	src       *rig    // on a disk of its own, which no crash hits
	base      wal.LSN // up to here both have the same

	begun bool // a crash may leave it copying
	ended bool // the end of the copy was acknowledged
	parts bool // of some region only blocks were copied
}

func newApprentice(t testing.TB, m *memfs.FS, broken mutation) *apprentice {
	a := &apprentice{survivor: newSurvivor(t, m, broken)}
	a.format()
	a.open()
	a.src = &rig{t: t, fs: memfs.New(), dir: "src", epoch: 1, next: 1}
	a.src.o = StoreOptions{FS: a.src.fs, Dir: a.src.dir, BootID: "boot", Manual: true}
	reaches := crashFormat()
	reaches.LogBytes, reaches.SegmentBytes = 64*crashLog, 16*crashLog // back to the shared past
	a.src.check(Format(a.src.fs, a.src.dir, reaches))
	a.src.open()
	return a
}

// learns is the workload: a shared past, a future that only the source has, and one that only the apprentice has.
func (a *apprentice) learns() {
	for i := range uint64(4) {
		ops := []histOp{write(i, 2), write(RegionBlocks*i, 3)}
		a.put(ops...)
		a.src.put(ops...)
	}
	a.base = a.synced
	for i := range uint64(9) {
		a.src.put(write(2*i, 16), trim(RegionBlocks+i, 1), zero(RegionBlocks+2*i, 1))
		a.src.steps()
	}
	a.view(1)
	view := histOp{kind: wal.KindView}
	for range 8 { // ghosts: no other member ever had them. The last ones begin behind the source's end.
		a.append(write(7, 1), view, view, view)
	}
	a.sync()
	a.may(func() { a.begun = true })
	a.do(func() error { return a.copy(a.s, func() { a.src.put(write(RegionBlocks-1, 2), trim(5, 1)) }) })
	a.may(func() { a.ended = true })
	a.do(func() error { return a.s.Abandon() })
}

// copy brings a store to where the source is: of a region that only the source changed, the blocks that it changed alone.
// between is called after each region that was read.
func (a *apprentice) copy(s *Store, between func()) error {
	src := a.src.s
	changes, err := src.ChangesIn(a.base, src.Marks().Committed)
	if err != nil {
		return err
	}
	if err := s.BeginCopy(src.Marks().Committed, src.EndSum(), src.Epochs()); err != nil {
		return err
	}
	var img RegionImage
	for reg := range src.Regions() {
		if !changedSince(src, reg, a.base) && !changedSince(s, reg, a.base) {
			continue
		}
		want := WholeRegion
		if !changedSince(s, reg, a.base) {
			want = changes.Of(reg)
			a.parts = a.parts || want != WholeRegion
		}
		asOf, err := src.ReadRegion(reg, want, BlockMask{}, &img)
		if err != nil {
			return err
		}
		between()
		if err := s.WriteRegion(reg, &img, asOf); err != nil {
			return err
		}
		if err := a.ship(s); err != nil {
			return err
		}
		if _, err := s.Step(); err != nil {
			return err
		}
	}
	return s.EndCopy()
}

func changedSince(s *Store, reg int, l wal.LSN) bool {
	got, ok := s.NewerRegions(l, reg)
	return ok && got == reg
}

// ship brings the frames that s lacks.
func (a *apprentice) ship(s *Store) error {
	buf := make([]byte, crashLog)
	n, err := a.src.s.ReadFrames(s.Marks().End+1, buf)
	if err != nil {
		return err
	}
	for b := buf[:n]; len(b) > 0; {
		f, err := wal.ParseFrame(b)
		if err != nil {
			return err
		}
		if err := s.Append(f); err != nil {
			return err
		}
		b = b[len(f.Bytes()):]
	}
	if err := s.Sync(); err != nil {
		return err
	}
	s.Commit(a.src.s.Marks().Committed)
	return nil
}

// survives tells which promise the crash broke that left a disk.
func (a *apprentice) survives(disk *memfs.FS) error {
	o := a.o
	o.FS = disk
	s, err := OpenStore(o)
	if err != nil {
		return err
	}
	defer func() { s.Abandon() }()
	copied := a.src.as(s)
	done := a.begun && !s.Copying() && s.Marks().Checkpoint > a.base // where its own history was checkpointed at most
	switch {
	case done:
		if err := holds(copied, s.Marks().Committed); err != nil {
			return fmt.Errorf("copied: %w", err)
		}
	case a.ended:
		return fmt.Errorf("the end of the copy was acknowledged, now it is %+v, copying %v", s.Marks(), s.Copying())
	case s.Copying():
		if !a.begun {
			return errors.New("it is copying before that began")
		}
	default: // it is what it was, and what that was promised holds
		if err := a.checkFound(a.rig.as(s)); err != nil {
			return fmt.Errorf("not copied: %w", err)
		}
	}
	// It starts over if it must, and then a power failure costs nothing.
	if !done {
		if err := a.copy(s, func() {}); err != nil {
			return fmt.Errorf("copy again: %w", err)
		}
	}
	if err := a.ship(s); err != nil {
		return err
	}
	s.Abandon()
	o.FS = disk.Crash(memfs.None)
	if s, err = OpenStore(o); err != nil {
		return err
	}
	if s.Copying() || s.Marks().End != a.src.end() {
		return fmt.Errorf("copied again, now copying %v, %+v", s.Copying(), s.Marks())
	}
	s.Commit(a.src.end())
	if err := extentsDiffer(s, a.src.content(a.src.end()), s.Blocks()); err != nil {
		return fmt.Errorf("copied again: %w", err)
	}
	return holds(a.src.as(s), a.src.end())
}

// as is the same history with another store.
func (r *rig) as(s *Store) *rig {
	other := *r
	other.s = s
	return &other
}

func crashCopy(t testing.TB, c *memfs.Crasher, broken mutation) error {
	m := memfs.New()
	a := newApprentice(t, m, broken)
	c.Promises = func() uint64 { return a.promises<<20 | uint64(a.src.end()) }
	c.Check = a.survives
	c.Watch(m)
	a.learns()
	if c.Crash(m); c.Err != nil {
		return c.Err
	}
	if a.err == nil && !a.parts {
		return errors.New("whole regions were copied, and never blocks alone")
	}
	return a.err
}

func TestEveryCrashOfACopyStartsOverAndConverges(t *testing.T) {
	c := crasher()
	if err := crashCopy(t, c, 0); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d crashes, %d disks, %d checked", c.Points, c.Images, c.Checked)
}
