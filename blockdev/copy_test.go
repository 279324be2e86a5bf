package blockdev

import (
	"errors"
	"math/rand/v2"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// ship brings the frames that dst lacks from src, synced and committed as far as src has.
func ship(t *testing.T, src, dst *Store) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for {
		n, err := src.ReadFrames(dst.Marks().End+1, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			f, err := wal.ParseFrame(b)
			if err != nil {
				t.Fatal(err)
			}
			if err := dst.Append(f); err != nil {
				t.Fatal(err)
			}
			b = b[len(f.Bytes()):]
		}
	}
	if err := dst.Sync(); err != nil {
		t.Fatal(err)
	}
	dst.Commit(src.Marks().Committed)
}

// P5: a replica that fell behind what the log holds becomes equal, by regions that changed and the log since, while
// writes go on between any two regions; also if it has to start over after a crash. Every other time only those blocks are
// copied that the source's log has changed.
func TestCopyWhileWritesGoOnConverges(t *testing.T) {
	for seed := range uint64(12) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		r := newRig(t, memfs.New(), "src", StoreOptions{Manual: true})
		some := func() histOp {
			op := write(rnd.Uint64N(r.s.Blocks()-8), 1+rnd.Uint64N(8))
			if rnd.IntN(4) == 0 {
				op.kind = wal.KindTrim
			}
			return op
		}
		disk := memfs.New()
		l := newRig(t, disk, "dst", StoreOptions{Manual: true})
		for range 5 {
			r.put(some())
		}
		ship(t, r.s, l.s)
		base := l.s.Marks().Committed
		for range 20 {
			r.put(some(), some())
			r.steps()
		}
		copied := 0
		again := rnd.IntN(2) == 0
		for {
			if err := l.s.BeginCopy(r.s.Marks().Committed, r.s.EndSum(), r.s.Epochs()); err != nil {
				t.Fatal(err)
			}
			var img RegionImage
			changes, err := r.s.ChangesIn(base, r.s.Marks().Committed)
			r.check(err)
			for reg, ok := r.s.NewerRegions(base, 0); ok; reg, ok = r.s.NewerRegions(base, reg+1) {
				want := WholeRegion
				if seed%2 == 1 {
					want = changes.Of(reg)
				}
				asOf, err := r.s.ReadRegion(reg, want, BlockMask{}, &img)
				r.check(err)
				r.put(some(), some())
				if rnd.IntN(3) == 0 {
					ship(t, r.s, l.s)
				}
				if rnd.IntN(3) == 0 {
					r.steps()
				}
				r.check(l.s.WriteRegion(reg, &img, asOf))
				copied++
				if rnd.IntN(3) == 0 {
					_, err := l.s.Step()
					r.check(err)
				}
				if asOf > l.s.Marks().Committed {
					if err := l.s.EndCopy(); !errors.Is(err, ErrCopyBehind) {
						t.Fatalf("copy ended too early: %v", err)
					}
				}
			}
			if !again {
				break
			}
			again = false
			l.s.Abandon()
			disk = disk.Crash(memfs.Random(seed, 0.5))
			l.o.FS = disk
			l.open()
			if !l.s.Copying() {
				t.Fatal("a crash ended the copy")
			}
			if _, err := l.s.ReadRegion(0, WholeRegion, BlockMask{}, &img); !errors.Is(err, ErrCopying) {
				t.Fatal("copied from a replica that is no prefix of history", err)
			}
		}
		ship(t, r.s, l.s)
		r.check(l.s.EndCopy())
		ship(t, r.s, l.s)
		// What is stable must be enough.
		l.s.Abandon()
		l.o.FS = disk.Crash(memfs.None)
		l.open()
		if l.s.Copying() {
			t.Fatal("copy did not end")
		}
		l.s.Commit(r.end())
		l.hist, l.ends = r.hist, r.ends
		l.verify()
		if p, ok := CommonPoint(l.s.Epochs(), l.s.Marks().End, r.s.Epochs(), r.end()); !ok || p != r.end() {
			t.Fatalf("common point %d %v, end %d", p, ok, r.end())
		}
		t.Logf("seed %d: %d regions copied", seed, copied)
	}
}

// B5, and a Trim of everything marks everything.
func TestNewerRegionsMissesNoChange(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.put(write(0, 1))
	r.put(write(RegionBlocks-1, 2))
	r.put(write(5*RegionBlocks, 1))
	list := func(than wal.LSN) (l []int) {
		for reg, ok := r.s.NewerRegions(than, 0); ok; reg, ok = r.s.NewerRegions(than, reg+1) {
			l = append(l, reg)
		}
		return l
	}
	for range 2 {
		for than, want := range [][]int{{0, 1, 5}, {0, 1, 5}, {5}, nil} {
			if got := list(wal.LSN(than)); len(got) != len(want) || len(want) > 0 && got[len(got)-1] != want[len(want)-1] {
				t.Errorf("newer than %d: %v, want %v", than, got, want)
			}
		}
		if n := r.s.NewerBytes(2); n != RegionBytes {
			t.Error(n)
		}
		r.check(r.s.Close())
		r.open()
	}
	r.put(trim(0, r.s.Blocks()))
	if got := list(3); len(got) != r.s.Regions() {
		t.Error(got)
	}
	r.check(r.s.Close())
}

// A crash at any operation of BeginCopy leaves the old state or the new one.
func TestBeginCopyIsAtomic(t *testing.T) {
	beginCopyIsAtomic(t, 1000, EpochIndex{{1, 1}, {9, 500}})
	// The old log has records behind the new beginning, which must not come back.
	beginCopyIsAtomic(t, 2, EpochIndex{{1, 1}})
}

func beginCopyIsAtomic(t *testing.T, to wal.LSN, epochs EpochIndex) {
	for n := 0; ; n++ {
		fsys := memfs.New()
		r := newRig(t, fsys, "r", StoreOptions{Manual: true})
		for range 8 { // three in a segment
			r.put(write(1, 20))
		}
		fsys.StopAt(fsys.Ops() + n)
		err := r.s.BeginCopy(to, 77, epochs)
		for i, fate := range memfs.Fates(fsys.Pending(), uint64(n)) {
			if (testing.Short() || raceEnabled) && i > 3 {
				break
			}
			q := *r
			q.o.FS = fsys.Crash(fate)
			q.open()
			m := q.s.Marks()
			switch {
			case q.s.Copying():
				if m.End != to || m.Committed != to || q.s.EndSum() != 77 {
					t.Fatalf("stopped at %d, %s: %+v", n, fate.Name, m)
				}
				q.verifyRead(func(b uint64, dst []byte) error { return q.s.Read(b, dst) }, r.end())
			case err == nil:
				t.Fatalf("stopped at %d, %s: done, and gone", n, fate.Name)
			default:
				q.s.Commit(m.End)
				q.verify()
			}
			q.s.Abandon()
		}
		if err == nil {
			break
		}
	}
}
