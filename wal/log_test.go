package wal

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"

	"lockstep/wal/vfs"
	"lockstep/wal/vfs/memfs"
)

func TestAppendedFrameIsReadableAtOnceAndDurableAfterSync(t *testing.T) {
	_, o := created(t)
	l, r, _ := opened(t, o, Start{})
	if r.End != 0 || r.Torn || l.First() != 1 || l.End() != 0 {
		t.Errorf("a new log: %+v, first %d, end %d", r, l.First(), l.End())
	}
	f := nextFrame(l, 1, 2, 3)
	at := must1(l.Append(f))(t)
	if l.End() != 4 || l.Durable() != 0 || l.EndPos() != at+3 || l.EndSum() != f.Sum() {
		t.Errorf("end %d at %d, durable %d", l.End(), l.EndPos(), l.Durable())
	}
	got := make([]byte, 2*BlockSize)
	must(t, l.ReadAt(got, f.DataPos(at, 0)))
	if _, want, _ := f.Record(0); !bytes.Equal(got, want) {
		t.Error("ReadAt gives other bytes")
	}
	if lsn := must1(l.Sync())(t); lsn != 4 || l.Durable() != 4 {
		t.Errorf("Sync gives %d, durable is %d", lsn, l.Durable())
	}
}

func TestFrameThatIsNotTheNextIsRefused(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 2)
	for name, change := range map[string]func(h *Header){
		"salt":  func(h *Header) { h.Salt++ },
		"first": func(h *Header) { h.First++ },
		"old":   func(h *Header) { h.First-- },
		"chain": func(h *Header) { h.Chain++ },
	} {
		var b Builder
		b.Add(Record{Kind: KindView}, nil, nil)
		h := Header{Salt: testSalt, First: 3, Chain: l.EndSum()}
		change(&h)
		if _, err := l.Append(b.Seal(h)); !errors.Is(err, ErrNotNext) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := l.Append(Frame{}); !errors.Is(err, ErrNotNext) {
		t.Errorf("empty frame: %v", err)
	}
	var large *FrameTooLargeError
	if _, err := l.Append(nextFrame(l, 1, 8, 0)); !errors.As(err, &large) || large.Limit != l.MaxFrame() {
		t.Errorf("frame larger than a segment: %v", err)
	}
	grow(t, l, 1) // and none of it did any harm
}

// TestRingGoesRoundManyTimes also checks, after each step, everything that can be read.
func TestRingGoesRoundManyTimes(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	rng := rand.New(rand.NewPCG(1, 2))
	start := Start{}
	var frames []Frame
	var positions []Pos
	for lap := Pos(0); lap < 20; lap = l.EndPos() / 32 {
		f := nextFrame(l, rng.Uint64(), rng.IntN(7), rng.IntN(3))
		at, err := l.Append(f)
		if err == ErrFull {
			if l.Fits(len(f.b)) || l.Fill() < 0.5 {
				t.Fatalf("full at %.2f, fits: %v", l.Fill(), l.Fits(len(f.b)))
			}
			must1(l.Sync())(t)
			end := must1(l.FrameEnd(start.LSN + (l.End()-start.LSN)/2 + 1))(t)
			start = must1(l.StartAfter(end))(t)
			l.Checkpointed(start)
			continue
		}
		must(t, err)
		frames, positions = append(frames, f), append(positions, at)
		first := slices.IndexFunc(frames, func(f Frame) bool { return f.First() == l.First() })
		if first < 0 || frames[first].First() > start.LSN+1 {
			t.Fatalf("first record is %d, checkpoint %d", l.First(), start.LSN)
		}
		for i, f := range frames {
			var got [8 * BlockSize]byte
			n := f.Payload() * BlockSize
			err := l.ReadAt(got[:n], positions[i]+Pos(len(f.b)-n)/BlockSize)
			if i < first && positions[i]/8 != positions[first]/8 && n > 0 {
				if !errors.Is(err, ErrCompacted) {
					t.Fatalf("frame %d, first is %d: %v", i, first, err)
				}
			} else if i >= first && (err != nil || !bytes.Equal(got[:n], f.b[len(f.b)-n:])) {
				t.Fatalf("frame %d of %d: %v", i, len(frames), err)
			}
		}
		if want := slices.Concat(bytesOf(frames[first:])...); !bytes.Equal(readAll(t, l, l.First(), 40*BlockSize), want) {
			t.Fatalf("ReadFrames from %d differs", l.First())
		}
		if first > 0 {
			if _, err := l.ReadFrames(frames[first].First()-1, make([]byte, BlockSize)); !errors.Is(err, ErrCompacted) {
				t.Fatalf("a record that was overwritten: %v", err)
			}
		}
	}
	must1(l.Sync())(t)
	must(t, l.Close())
	l, r, got := opened(t, o, start)
	i := slices.IndexFunc(frames, func(f Frame) bool { return f.First() == start.LSN+1 })
	if !sameFrames(got, bytesOf(frames[i:])) || r.Torn || r.End != frames[len(frames)-1].Last() {
		t.Errorf("recovered %d frames up to %d, want %d", len(got), r.End, len(frames)-i)
	}
	grow(t, l, 1)
}

func bytesOf(frames []Frame) (list [][]byte) {
	for _, f := range frames {
		list = append(list, f.b)
	}
	return list
}

func readAll(t *testing.T, l *Log, from LSN, size int) (all []byte) {
	t.Helper()
	for buf := make([]byte, size); from <= l.End(); {
		n := must1(l.ReadFrames(from, buf))(t)
		for b := buf[:n]; len(b) > 0; {
			f := must1(ParseFrame(b))(t)
			if f.First() != from {
				t.Fatalf("got record %d, want %d", f.First(), from)
			}
			from = f.Last() + 1
			all = append(all, f.b...)
			b = b[len(f.b):]
		}
	}
	return all
}

func TestReadFramesGivesWholeFramesThatFit(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	var want [][]byte
	for i := range uint64(8) { // 3 blocks each: two to a segment, and a gap
		f := nextFrame(l, i, 2, 1)
		must1(l.Append(f))(t)
		want = append(want, f.b)
	}
	for size := range 30 {
		buf := make([]byte, size*BlockSize)
		n, err := l.ReadFrames(6, buf) // inside the third frame
		var short *ShortBufferError
		if size < 3 {
			if !errors.As(err, &short) || short.Need != 3*BlockSize {
				t.Errorf("%d blocks: %v", size, err)
			}
			continue
		}
		if k := min(size/3, 6); err != nil || !bytes.Equal(buf[:n], slices.Concat(want[2:2+k]...)) {
			t.Errorf("%d blocks: %d bytes, %v", size, n, err)
		}
	}
	if n, err := l.ReadFrames(l.End()+1, nil); n != 0 || err != nil {
		t.Errorf("behind the end: %d, %v", n, err)
	}
}

func TestStartAfterIsWhereRecoveryGoesOn(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	var frames [][]byte
	for i := range uint64(8) {
		f := nextFrame(l, i, 2, 1)
		must1(l.Append(f))(t)
		frames = append(frames, f.b)
	}
	must1(l.Sync())(t)
	for k := range 9 {
		start := must1(l.StartAfter(LSN(2 * k)))(t)
		other, r, got := opened(t, o, start)
		if r.End != 16 || !sameFrames(got, frames[k:]) {
			t.Errorf("from %+v: %d frames up to %d", start, len(got), r.End)
		}
		must(t, other.Close())
	}
	for _, lsn := range []LSN{1, 15, 17} {
		if _, err := l.StartAfter(lsn); !errors.Is(err, ErrNotFrameEnd) {
			t.Errorf("StartAfter(%d): %v", lsn, err)
		}
	}
	for lsn, want := range map[LSN]LSN{1: 2, 2: 2, 3: 4, 16: 16, 99: 16} {
		if got := must1(l.FrameEnd(lsn))(t); got != want {
			t.Errorf("FrameEnd(%d) = %d, want %d", lsn, got, want)
		}
	}
}

// TestFirstErrorPoisonsForEver fails every operation of a small workload in turn (W5).
func TestFrameEndOfARecordInsideTheLastFrame(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	must1(l.Append(nextFrame(l, 1, 1, 3)))(t)
	must1(l.Append(nextFrame(l, 2, 1, 2)))(t)
	for lsn, want := range map[LSN]LSN{1: 4, 4: 4, 5: 7, 6: 7, 7: 7, 9: 7} {
		if end, err := l.FrameEnd(lsn); end != want || err != nil {
			t.Errorf("record %d: %d, %v, want %d", lsn, end, err, want)
		}
	}
}

func TestFirstErrorPoisonsForEver(t *testing.T) {
	for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
		for n := 0; ; n++ {
			m, o := created(t)
			l, _, _ := opened(t, o, Start{})
			m.FailAt(m.Ops()+n, errno)
			err := func() error {
				for i := range uint64(6) {
					if _, err := l.Append(nextFrame(l, i, 2, 0)); err != nil {
						return err
					}
					if _, err := l.Sync(); err != nil {
						return err
					}
				}
				return l.Cut(3)
			}()
			if err == nil {
				if n < 12 {
					t.Fatalf("only %d operations", n)
				}
				break
			}
			if !errors.Is(err, errno) {
				t.Fatalf("operation %d: %v", n, err)
			}
			durable := l.Durable()
			_, again := l.Append(nextFrame(l, 9, 1, 0))
			_, sync := l.Sync()
			for _, other := range []error{again, sync, l.Cut(0), l.Reset(l.BlankAfter(0, 0)), l.Err()} {
				if other != err {
					t.Fatalf("operation %d: %v, later %v", n, err, other)
				}
			}
			_, r, _, err := open(o.on(m.Crash(memfs.None)), Start{})
			if err != nil || r.End < durable {
				t.Fatalf("operation %d: %d of %d durable records are left, %v", n, r.End, durable, err)
			}
		}
	}
}

func TestFailedSyncIsNotRetried(t *testing.T) {
	lost := func(broken mutation) bool {
		m, o := created(t)
		o.broken = broken
		l, _, _ := opened(t, o, Start{})
		must1(l.Append(nextFrame(l, 1, 1, 0)))(t)
		m.FailAt(m.Ops(), syscall.EIO)
		l.Sync()
		_, r, _, err := open(o.on(m.Crash(memfs.None)), Start{})
		return err != nil || r.End < l.Durable()
	}
	if lost(0) {
		t.Error("a durable record is lost")
	}
	if !lost(retrySync) {
		t.Error("the test does not see that a sync is tried again")
	}
}

func TestReadErrorIsReportedAndDoesNotPoison(t *testing.T) {
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 2)
	m.OnRead(func(string, int64, int) error { return syscall.EIO })
	if err := l.ReadAt(make([]byte, BlockSize), 1); !errors.Is(err, syscall.EIO) {
		t.Errorf("ReadAt: %v", err)
	}
	if _, err := l.ReadFrames(1, make([]byte, 10*BlockSize)); !errors.Is(err, syscall.EIO) {
		t.Errorf("ReadFrames: %v", err)
	}
	if _, err := l.StartAfter(1); !errors.Is(err, syscall.EIO) {
		t.Errorf("StartAfter: %v", err)
	}
	m.OnRead(nil)
	grow(t, l, 1)
}

func TestCreateIsAllOrNothing(t *testing.T) {
	for n := 0; ; n++ {
		m := memfs.New()
		must(t, m.MkdirAll("/v"))
		must(t, m.SyncDir("/"))
		m.StopAt(m.Ops() + n)
		err := Create(smallLog(m))
		for _, fate := range memfs.Fates(m.Pending(), 1) {
			after := m.Crash(fate)
			if _, listErr := after.List("/v/wal"); listErr == nil || err == nil {
				if l, r, _, err := open(smallLog(after), Start{}); err != nil || r.End != 0 {
					t.Fatalf("stop at %d, %s: there is a log, but %v", n, fate.Name, err)
				} else {
					grow(t, l, 1)
				}
			} else if err := Create(smallLog(after)); err != nil {
				t.Fatalf("stop at %d, %s: cannot start over: %v", n, fate.Name, err)
			}
		}
		if err == nil {
			break
		}
	}
	_, o := created(t)
	if err := Create(o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a log was created over another: %v", err)
	}
}

func TestCreateWithoutRoomGivesTheRoomBack(t *testing.T) {
	m := memfs.New()
	must(t, m.MkdirAll("/v"))
	m.FailAt(m.Ops()+7, syscall.ENOSPC)
	if err := Create(smallLog(m)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v", err)
	}
	if names := must1(m.List("/v"))(t); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestSyncAndReadersRunBesideAppend(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	beside := func(f func()) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	var start Start
	beside(func() {
		durable, err := l.Sync()
		if err != nil {
			t.Error(err)
		}
		// A checkpoint that lags behind, as an applier's.
		if durable > start.LSN+5 {
			if s, err := l.StartAfter(durable - 2); err == nil {
				start = s
				l.Checkpointed(s)
			}
		}
	})
	buf := make([]byte, 64*BlockSize)
	beside(func() {
		n, err := l.ReadFrames(l.First(), buf)
		if err != nil && !errors.Is(err, ErrCompacted) {
			t.Error(err)
		}
		for b := buf[:n]; len(b) > 0; {
			f, err := ParseFrame(b)
			if err != nil {
				t.Error(err)
				return
			}
			b = b[len(f.b):]
		}
	})
	for i := 0; i < 200; {
		_, err := l.Append(nextFrame(l, uint64(i), i%5, 0))
		switch {
		case err == nil:
			i++
		case err != ErrFull:
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	must1(l.Sync())(t)
	must(t, l.Close())
	if _, r, _ := opened(t, o, start); r.End != 200 {
		t.Errorf("recovered up to %d", r.End)
	}
}

func TestAppendAndSyncDoNotAllocate(t *testing.T) {
	o := Options{FS: vfs.OS{}, Dir: t.TempDir() + "/wal", SegmentBytes: 4 << 20, Segments: 3, Salt: testSalt}
	must(t, Create(o))
	l, _, _ := opened(t, o, Start{})
	defer l.Close()
	var b Builder
	data, sums := payload(1, 1), sumsOf(1, payload(1, 1))
	step := func() {
		b.Reset()
		b.Add(Record{Kind: KindWrite, Block: 1, Count: 1}, data, sums)
		if _, err := l.Append(b.Seal(Header{Salt: testSalt, First: l.End() + 1, Chain: l.EndSum()})); err != nil {
			t.Error(err)
		}
		if _, err := l.Sync(); err != nil {
			t.Error(err)
		}
	}
	step()
	if n := testing.AllocsPerRun(200, step); n != 0 {
		t.Errorf("%v allocations for a frame", n)
	}
}

func TestClosedLogRefusesEverything(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 2)
	must(t, l.Close())
	must(t, l.Close())
	_, appendErr := l.Append(nextFrame(l, 1, 1, 0))
	_, syncErr := l.Sync()
	_, framesErr := l.ReadFrames(1, make([]byte, 4*BlockSize))
	_, startErr := l.StartAfter(1)
	for i, err := range []error{appendErr, syncErr, framesErr, startErr, l.Cut(1), l.ReadAt(make([]byte, BlockSize), 1)} {
		if err != ErrClosed {
			t.Errorf("call %d: %v", i, err)
		}
	}
}
