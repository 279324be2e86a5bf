package wal

import (
	"errors"
	"testing"

	"lockstep/wal/vfs/memfs"
)

// TestCutFrameNeverComesBack cuts, and then gets the first of the cut frames again, byte by byte, as a replica does
// that is brought up to date: the second one would chain to it, if it were still there.
func TestCutFrameNeverComesBack(t *testing.T) {
	for _, blocks := range []int{1, 2, 4, 7} {
		for to := range LSN(5) {
			cut := func(broken mutation) LSN {
				m, o := created(t)
				o.broken = broken
				l, _, _ := opened(t, o, Start{})
				var frames []Frame
				for l.Fits((blocks+1)*BlockSize) && len(frames) < 8 {
					f := nextFrame(l, uint64(len(frames)), blocks, 0)
					must1(l.Append(f))(t)
					frames = append(frames, f)
				}
				must1(l.Sync())(t)
				if int(to)+2 > len(frames) {
					return to + 1
				}
				must(t, l.Cut(to))
				if l.End() != to || l.Durable() != to {
					t.Errorf("end %d, durable %d", l.End(), l.Durable())
				}
				if n, err := l.ReadFrames(to+1, nil); n != 0 || err != nil {
					t.Errorf("a cut frame is read: %d, %v", n, err)
				}
				if _, r, _, err := open(o.on(m.Crash(memfs.None)), Start{}); broken == 0 && (err != nil || r.End != to) {
					t.Errorf("%d blocks: cut to %d, recovered up to %d, %v", blocks, to, r.End, err)
				}
				must1(l.Append(frames[to]))(t)
				must1(l.Sync())(t)
				_, r, _, err := open(o.on(m.Crash(memfs.None)), Start{})
				if broken == 0 {
					must(t, err)
				}
				return r.End
			}
			if end := cut(0); end != to+1 {
				t.Errorf("%d blocks: cut to %d and one frame: recovered up to %d", blocks, to, end)
			}
			if end := cut(keepGhosts); end == to+1 && blocks < 7 && to < 3 {
				t.Errorf("%d blocks, cut to %d: the mutant does not live", blocks, to)
			}
		}
	}
}

// TestCutIsAtomic stops a cut of many frames after each of its operations. Each frame says that the one before is
// stable, as if a forced promotion had made committed records worthless: with one gone and a later one left, recovery
// would call it corruption.
func TestCutIsAtomic(t *testing.T) {
	broken := func(rule mutation) (failures int) {
		for n := 0; ; n++ {
			m, o := created(t)
			o.broken = rule
			l, _, _ := opened(t, o, Start{})
			grow(t, l, 12)
			m.StopAt(m.Ops() + n)
			err := l.Cut(2)
			for _, fate := range memfs.Fates(m.Pending(), 1) {
				_, r, _, openErr := open(o.on(m.Crash(fate)), Start{})
				if openErr != nil || r.End != 2 && (r.End != 12 || err == nil) {
					failures++
				}
			}
			if err == nil {
				return failures
			}
		}
	}
	if n := broken(0); n > 0 {
		t.Errorf("%d disks show a cut that is half done", n)
	}
	if broken(noEndMark) == 0 {
		t.Error("the mutant does not live")
	}
}

func TestCutIsRefusedWhereItCannotBe(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 2)
	must1(l.Append(nextFrame(l, 1, 1, 2)))(t) // records 3 to 5
	must1(l.Sync())(t)
	l.Checkpointed(must1(l.StartAfter(1))(t))
	for to, want := range map[LSN]error{0: ErrCheckpointed, 3: ErrNotFrameEnd, 6: ErrNotFrameEnd} {
		if err := l.Cut(to); !errors.Is(err, want) {
			t.Errorf("cut to %d: %v, want %v", to, err, want)
		}
	}
	must(t, l.Cut(5)) // the end: nothing to do
	if l.End() != 5 {
		t.Errorf("end is %d", l.End())
	}
}

// TestLogCutToItsCheckpointGoesOnWhereRecoveryBegins: there may be room before that, in the segment before, where
// nothing would look.
func TestLogCutToItsCheckpointGoesOnWhereRecoveryBegins(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	must1(l.Append(nextFrame(l, 1, 4, 0)))(t)
	must1(l.Append(nextFrame(l, 2, 4, 0)))(t) // does not fit behind: begins segment 1
	must1(l.Sync())(t)
	start := must1(l.StartAfter(1))(t)
	if start.Pos != 8 {
		t.Fatalf("the checkpoint is at %d", start.Pos)
	}
	l.Checkpointed(start)
	must(t, l.Cut(1))
	want := grow(t, l, 1)
	if _, _, frames := opened(t, o, start); !sameFrames(frames, want) {
		t.Errorf("%d frames behind the checkpoint, want 1", len(frames))
	}
}

// TestCutThatWasStoppedIsFinishedByOpen, also where it reaches over more segments than a torn tail can.
func TestCutThatWasStoppedIsFinishedByOpen(t *testing.T) {
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	var frames []Frame
	for l.Fits(2 * BlockSize) {
		f := nextFrame(l, uint64(len(frames)), 1, 0)
		must1(l.Append(f))(t)
		frames = append(frames, f)
	}
	must1(l.Sync())(t)
	m.StopAt(m.Ops() + 2) // the mark is written and synced
	if err := l.Cut(1); !errors.Is(err, memfs.ErrStopped) {
		t.Fatalf("cut: %v", err)
	}
	disk := o.on(m.Crash(memfs.None))
	l, r, _ := opened(t, disk, Start{})
	if r.End != 1 || r.Erased != len(frames)-1 { // the mark counts for the frame it was written over
		t.Errorf("%+v, of %d frames", r, len(frames))
	}
	for _, f := range frames[1:] { // each, byte by byte
		must1(l.Append(f))(t)
		must1(l.Sync())(t)
		if _, r, _ := opened(t, disk, Start{}); r.End != f.Last() {
			t.Fatalf("record %d is the last, want %d", r.End, f.Last())
		}
	}
}

func TestResetForgetsEverything(t *testing.T) {
	for _, to := range []LSN{0, 3, 100} {
		for n := 0; ; n++ {
			m, o := created(t)
			l, _, _ := opened(t, o, Start{})
			frames := grow(t, l, 9)
			start := l.BlankAfter(to, 77)
			m.StopAt(m.Ops() + n)
			err := l.Reset(start)
			for _, fate := range memfs.Fates(m.Pending(), 1) {
				disk := o.on(m.Crash(fate))
				l, r, got := opened(t, disk, start)
				if r.End != to || len(got) != 0 || l.First() != to+1 || l.EndSum() != 77 {
					t.Fatalf("to %d, stopped at %d, %s: %+v, first %d", to, n, fate.Name, r, l.First())
				}
				if err := l.ReadAt(make([]byte, BlockSize), 1); err == nil {
					t.Fatal("a block from before can be read")
				}
				start := start
				start.Blank = false
				grow(t, l, 3)
				if _, r, got := opened(t, disk, start); r.End != to+3 || len(got) != 3 || r.Torn {
					t.Fatalf("to %d, stopped at %d, %s: %+v", to, n, fate.Name, r)
				}
			}
			if err == nil {
				if len(frames) != 9 || l.End() != to || l.Durable() != to || l.Fill() > 0.25 {
					t.Errorf("end %d, durable %d, fill %v", l.End(), l.Durable(), l.Fill())
				}
				m.StopAt(-1)
				grow(t, l, 12)
				break
			}
		}
	}
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 9)
	if err := l.Reset(Start{LSN: 5}); err == nil {
		t.Error("reset to a start that is not from BlankAfter")
	}
}

// TestMarkOfAnotherEndIsNotBelieved: it would turn a lost durable record into the end of the log.
func TestMarkOfAnotherEndIsNotBelieved(t *testing.T) {
	for name, change := range map[string]func(*endMark){
		"lsn":   func(m *endMark) { m.lsn++ },
		"chain": func(m *endMark) { m.chain++ },
	} {
		m, o := created(t)
		l, _, _ := opened(t, o, Start{})
		grow(t, l, 2)
		mark := endMark{l.End(), l.EndSum(), l.EndPos()}
		change(&mark)
		at := int64(l.EndPos()) * BlockSize
		grow(t, l, 1)
		var b [markBytes]byte
		mark.encode(b[:], testSalt)
		grow(t, l, 2)
		edit(t, m, 0, at, b[:])
		var corrupt *CorruptError
		if _, _, _, err := open(o, Start{}); !errors.As(err, &corrupt) || corrupt.LSN != 3 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
