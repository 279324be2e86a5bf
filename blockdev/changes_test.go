package blockdev

import (
	"errors"
	"math/rand/v2"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

func TestChangesAreTheBlocksThatTheLogChanged(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		r := newRig(t, memfs.New(), "src", StoreOptions{Manual: true})
		for range 12 {
			var ops []histOp
			for range 1 + rnd.IntN(5) {
				op := write(rnd.Uint64N(r.s.Blocks()-300), 1+rnd.Uint64N(6))
				if rnd.IntN(4) == 0 {
					op.kind, op.count = wal.KindTrim, 1+rnd.Uint64N(299)
				}
				ops = append(ops, op)
			}
			r.put(ops...)
		}
		first, last := rnd.IntN(len(r.ends)), rnd.IntN(len(r.ends))
		after, to := r.ends[min(first, last)], r.ends[max(first, last)]
		c, err := r.s.ChangesIn(after, to)
		r.check(err)
		want := map[uint64]bool{} // false: zero in the end
		logged := 0
		for _, op := range r.hist[after:to] {
			for k := range op.count {
				want[op.block+k] = op.kind == wal.KindWrite
			}
			if op.kind == wal.KindWrite {
				logged += int(op.count) * BlockSize
			}
		}
		data := int64(0)
		for b := range r.s.Blocks() {
			mask := c.Of(int(b / RegionBlocks))
			if _, changed := want[b]; changed != mask.Has(int(b%RegionBlocks)) {
				t.Fatalf("seed %d: records %d to %d: block %d is in the set: %v", seed, after+1, to, b, !changed)
			}
			if want[b] {
				data += BlockSize
			}
		}
		if got := c.Bytes(); got < data || got > data+int64(len(want))*16+int64(r.s.Regions())*128 {
			t.Errorf("seed %d: %d blocks of which %d bytes are data take %d bytes", seed, len(want), data, got)
		}
		if got := r.s.LogBytes(after, to); got < int64(logged) {
			t.Errorf("seed %d: %d bytes were written, the log has %d", seed, logged, got)
		}
	}
}

// A block that cannot be read at the source is corrupt in the copy, not something else; what is around it is copied.
func TestLostBlockIsCorruptInTheCopyAndNothingElse(t *testing.T) {
	for name, before := range map[string]bool{"the learner has an older one": true, "the learner has none": false} {
		t.Run(name, func(t *testing.T) {
			disk := memfs.New()
			r := newRig(t, disk, "src", StoreOptions{Manual: true})
			l := newRig(t, memfs.New(), "dst", StoreOptions{Manual: true})
			if before {
				r.put(write(7, 3))
				ship(t, r.s, l.s)
			}
			base := l.s.Marks().Committed
			r.put(write(7, 3))
			r.steps()
			r.check(r.s.Checkpoint())
			f, err := disk.Open("src/" + imageName)
			r.check(err)
			_, err = f.WriteAt([]byte("rotten"), 8*BlockSize)
			r.check(err)

			r.check(l.s.BeginCopy(r.s.Marks().Committed, r.s.EndSum(), r.s.Epochs()))
			var img RegionImage
			var lost BlockMask
			_, err = r.s.ReadRegion(0, WholeRegion, lost, &img)
			bad, ok := errors.AsType[*CorruptBlockError](err)
			if !ok || bad.Block != 8 {
				t.Fatalf("got %v", err)
			}
			lost.Add(8)
			asOf, err := r.s.ReadRegion(0, WholeRegion, lost, &img)
			r.check(err)
			r.check(l.s.WriteRegion(0, &img, asOf))
			r.check(l.s.EndCopy())
			got := make([]byte, BlockSize)
			for b := range uint64(RegionBlocks) {
				err := l.s.Read(b, got)
				switch bad, ok := errors.AsType[*CorruptBlockError](err); {
				case b == 8 && (!ok || bad.Block != 8):
					t.Fatalf("the lost block gives %v", err)
				case b != 8:
					l.check(err)
					l.check(differs(got, b, r.content(r.end())[b:b+1]))
				}
			}
			r.put(write(8, 1)) // what is written again is well again
			ship(t, r.s, l.s)
			l.check(l.s.Read(8, got))
			if before {
				return
			}
			if _, ok := l.s.NewerRegions(base, 0); !ok {
				t.Error("the region counts as unchanged")
			}
		})
	}
}

// What is applied must not be undone by a region that was read before.
func TestRegionOlderThanWhatIsAppliedIsRefused(t *testing.T) {
	r := newRig(t, memfs.New(), "src", StoreOptions{Manual: true})
	l := newRig(t, memfs.New(), "dst", StoreOptions{Manual: true})
	r.put(write(0, 2))
	r.check(l.s.BeginCopy(r.s.Marks().Committed, r.s.EndSum(), r.s.Epochs()))
	var img RegionImage
	asOf, err := r.s.ReadRegion(0, WholeRegion, BlockMask{}, &img)
	r.check(err)
	r.put(write(1, 2))
	ship(t, r.s, l.s)
	l.steps()
	if err := l.s.WriteRegion(0, &img, asOf); !errors.Is(err, ErrRegionOld) {
		t.Fatalf("got %v, applied %d", err, l.s.Marks().Applied)
	}
	if err := l.s.Err(); err != nil {
		t.Errorf("the replica is poisoned: %v", err)
	}
	asOf, err = r.s.ReadRegion(0, WholeRegion, BlockMask{}, &img)
	r.check(err)
	r.check(l.s.WriteRegion(0, &img, asOf))
	r.check(l.s.EndCopy())
	l.hist, l.ends = r.hist, r.ends
	l.verify()
}
