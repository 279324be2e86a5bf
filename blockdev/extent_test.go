package blockdev

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// A volume of 1 TiB that was trimmed as a whole and written here and there tells exactly where, and reads next to none of its
// 1 GiB of sums for that.
func TestExtentsOfAHugeVolumeAreExactAndCheap(t *testing.T) {
	if raceEnabled {
		t.Skip("takes long; tools/test runs it without the race detector")
	}
	dir := filepath.Join(t.TempDir(), "r")
	id := testIdentity()
	id.Size = 1 << 40
	if err := Format(vfs.OS{}, dir, FormatOptions{Identity: id, LogBytes: testLog, SegmentBytes: testSegment}); err != nil {
		t.Skipf("the file system takes no file of 1 TiB: %v", err)
	}
	s, err := OpenStore(StoreOptions{FS: vfs.OS{}, Dir: dir, Manual: true})
	must(t, err)
	defer s.Abandon()
	r := &rig{t: t, s: s, epoch: 1, next: 1}
	walk := func(want map[uint64]uint64) {
		t.Helper()
		data := map[uint64]uint64{}
		for b := uint64(0); b < s.Blocks(); {
			n, state, err := s.Extent(b, s.Blocks())
			must(t, err)
			if state == 0 {
				data[b] = n
			}
			b += n
		}
		if len(data) != len(want) {
			t.Errorf("data %v, want %v", data, want)
		}
		for b, n := range want {
			if data[b] != n {
				t.Errorf("data %v, want %v", data, want)
			}
		}
		if n := len(s.sums.resident); n > 8 {
			t.Errorf("%d pages of sums were read", n)
		}
	}
	walk(nil)
	r.put(histOp{kind: wal.KindTrim, block: 0, count: 1 << 28})
	r.put(write(1000, 30), write(1<<27+5, 1))
	walk(map[uint64]uint64{1000: 30, 1<<27 + 5: 1}) // from the log
	r.steps()
	r.put(trim(1010, 5), write(1<<28-1, 1))
	want := map[uint64]uint64{1000: 10, 1015: 15, 1<<27 + 5: 1, 1<<28 - 1: 1}
	walk(want)
	r.steps()
	walk(want)
	must(t, s.Abandon())
	s, err = OpenStore(StoreOptions{FS: vfs.OS{}, Dir: dir, Manual: true})
	must(t, err)
	walk(want)
}

// Whatever was written, zeroed and trimmed, applied or not: Extent agrees with the content, and with what was to stay
// allocated.
func TestExtentAgreesWithContent(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	r := osRig(t, StoreOptions{Manual: true})
	for range 60 {
		at := rnd.Uint64N(r.s.Blocks() - 700)
		switch rnd.IntN(5) {
		case 0:
			r.put(trim(at, 1+rnd.Uint64N(700)))
		case 1:
			r.put(zero(at, 1+rnd.Uint64N(700)))
		case 2:
			r.put(histOp{kind: wal.KindZero, block: at, count: 1 + rnd.Uint64N(40)})
		default:
			r.put(write(at, 1+rnd.Uint64N(40)))
		}
		if rnd.IntN(4) == 0 {
			r.steps()
		}
		if err := extentsDiffer(r.s, r.content(r.end()), 1+rnd.Uint64N(3000)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}
