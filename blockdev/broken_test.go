package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path"
	"testing"

	"lockstep/wal"
)

// brokenRig has a log of three frames that are committed and not applied. The frame in the middle holds blocks 10 to 13,
// a trim of block 20, and an older version of block 30; block 11 is written again by the last.
func brokenRig(t *testing.T) *rig {
	r := osRig(t, StoreOptions{Manual: true})
	r.put(write(10, 4), write(20, 1), write(30, 1))
	r.steps()
	r.put(write(100, 2))
	r.put(write(10, 4), trim(20, 1), write(30, 1), trim(1000, maxZeroEntries+5), zero(22, 2), zero(1400, maxZeroEntries+5))
	r.put(write(11, 1), write(30, 1))
	return r
}

// rotAt flips a byte of the log.
func (r *rig) rotAt(pos wal.Pos, off int64) {
	r.t.Helper()
	seg := int64(pos) / int64(r.s.segBlocks)
	f, err := os.OpenFile(path.Join(r.dir, walName, fmt.Sprintf("%02d.seg", seg)), os.O_RDWR, 0)
	r.check(err)
	defer f.Close()
	at := int64(pos)%int64(r.s.segBlocks)*BlockSize + off
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	r.check(err)
	b[0] ^= 4
	_, err = f.WriteAt(b[:], at)
	r.check(err)
}

func (r *rig) locOf(block uint64) loc {
	var l [1]loc
	r.s.table.lookup(block, l[:])
	return l[0]
}

// checkBlocks reads every block by itself: those in bad are corrupt, all others what they should be.
func (r *rig) checkBlocks(bad map[uint64]bool) {
	r.t.Helper()
	want, got := r.content(r.s.Marks().Committed), make([]byte, BlockSize)
	for b := range r.s.Blocks() {
		err := r.s.Read(b, got)
		var corrupt *CorruptBlockError
		if bad[b] {
			if !errors.As(err, &corrupt) || corrupt.Block != b {
				r.t.Fatalf("block %d is lost, but reads with %v", b, err)
			}
			continue
		}
		r.check(err)
		r.check(differs(got, b, want[b:b+1]))
	}
}

// good is a block's content as another member has it.
func (r *rig) good(block uint64) []byte {
	b := make([]byte, BlockSize)
	stampBlock(b, block, r.content(r.s.Marks().Committed)[block])
	return b
}

// B8: a frame that went bad in the log before it was applied costs its lost blocks, until they are repaired; everything
// else goes on, also over a crash.
func TestFrameThatRotsBeforeItIsAppliedCostsOnlyItsLostBlocks(t *testing.T) {
	for name, c := range map[string]struct {
		rot  func(r *rig)
		lost []uint64
	}{
		"payload":                {func(r *rig) { r.rotAt(r.locOf(12).pos, 100) }, []uint64{12}},
		"payload written again":  {func(r *rig) { r.rotAt(r.locOf(10).pos+1, 100) }, nil},
		"header":                 {func(r *rig) { r.rotAt(r.locOf(10).pos-1, 20) }, nil},
		"record":                 {func(r *rig) { r.rotAt(r.locOf(10).pos-1, 130) }, nil},
		"magic and payload":      {func(r *rig) { r.rotAt(r.locOf(10).pos-1, 0); r.rotAt(r.locOf(13).pos, 0) }, []uint64{13}},
		"header of first frame":  {func(r *rig) { r.rotAt(r.locOf(100).pos-1, 8) }, nil},
		"payload of last frame":  {func(r *rig) { r.rotAt(r.locOf(30).pos, 8) }, []uint64{30}},
		"payload of every frame": {func(r *rig) { r.rotAt(r.locOf(101).pos, 8); r.rotAt(r.locOf(13).pos, 8); r.rotAt(r.locOf(11).pos, 8) }, []uint64{11, 13, 101}},
	} {
		t.Run(name, func(t *testing.T) {
			r := brokenRig(t)
			c.rot(r)
			bad := map[uint64]bool{}
			for _, b := range c.lost {
				bad[b] = true
			}
			r.checkBlocks(bad) // from the log
			r.steps()
			if m := r.s.Marks(); m.Applied != m.End || m.Checkpoint != m.End {
				t.Fatalf("%+v", m)
			}
			r.checkBlocks(bad) // from the image
			r.check(r.s.Abandon())
			r.open()
			r.checkBlocks(bad)
			for b := range bad {
				r.check(r.s.Repair(b, r.good(b), 0)) // the sum says that it is the right content, however old
			}
			r.verify()
			r.put(write(12, 1))
			r.verify()
			r.check(r.s.Close())
		})
	}
}

// W7, B8: the same holds when the frame's payload went bad while nobody had the replica open: however often it is opened
// again, and though the frames that prove it durable are cut.
func TestFrameThatRotsBeforeRecoveryCostsOnlyItsLostBlocks(t *testing.T) {
	r := brokenRig(t)
	committed := r.s.Marks().Committed
	r.append(write(40, 1)) // carries the commit point
	r.check(r.s.Sync())
	r.rotAt(r.locOf(12).pos, 100)
	r.rotAt(r.locOf(11).pos, 100) // in the last committed frame
	r.check(r.s.Abandon())
	bad := map[uint64]bool{11: true, 12: true}
	r.open()
	r.checkBlocks(bad)
	r.check(r.s.Cut(committed))
	r.forget(committed)
	for range 2 {
		r.check(r.s.Abandon())
		r.open()
		if m := r.s.Marks(); m.Committed != committed || m.End != committed {
			t.Fatalf("%+v, committed was %d", m, committed)
		}
		r.checkBlocks(bad)
	}
	r.check(r.s.Repair(12, r.good(12), 0)) // in the log
	delete(bad, 12)
	r.steps()
	r.checkBlocks(bad) // from the image
	r.check(r.s.Repair(11, r.good(11), 0))
	r.verify()
	r.check(r.s.Close())
	r.open()
	r.verify()
}

// A block whose newest version went bad in the log is repaired there: the frame is whole again, for recovery too.
func TestBlockInTheLogIsRepairedInPlace(t *testing.T) {
	r := brokenRig(t)
	r.rotAt(r.locOf(12).pos, 100)
	r.rotAt(r.locOf(30).pos, 4000)
	if err := r.s.Repair(12, r.good(13), r.end()); !errors.Is(err, ErrStale) {
		t.Errorf("repair with another content: %v", err)
	}
	if err := r.s.Repair(20, r.good(12), r.end()); !errors.Is(err, ErrStale) {
		t.Errorf("repair of a trimmed block: %v", err)
	}
	for _, b := range []uint64{12, 30} {
		r.check(r.s.Repair(b, r.good(b), 0))
	}
	r.verify()
	r.check(r.s.Abandon())
	r.open()
	r.verify()
	r.steps()
	r.verify()
}

// W7: what was stable here but is not known to be committed may have to be cut, and the proof that it was stable with it: a
// frame like that, gone bad, is refused.
func TestRottenFrameThatIsNotCommittedIsRefused(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	for range 3 {
		r.append(write(0, 40)) // most of a segment each
	}
	r.check(r.s.Sync())
	r.check(r.s.Abandon())
	r.rotAt(1, 100)
	var corrupt *wal.CorruptError
	if _, err := OpenStore(r.o); !errors.As(err, &corrupt) || corrupt.LSN != 1 {
		t.Errorf("it opens: %v", err)
	}
}
