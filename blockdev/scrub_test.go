package blockdev

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

func (r *rig) rotImage(block uint64) {
	r.t.Helper()
	f, err := os.OpenFile(path.Join(r.dir, imageName), os.O_RDWR, 0)
	r.check(err)
	defer f.Close()
	_, err = f.WriteAt([]byte("rot"), int64(block)*BlockSize+99)
	r.check(err)
}

// peer repairs as replication does, with another member's content.
func (r *rig) peer(refuse uint64) Repairer {
	return func(block uint64) error {
		if block == refuse {
			return errors.New("no member has a good copy")
		}
		return r.s.Repair(block, r.good(block), r.s.Marks().Committed)
	}
}

// Everything that is bad in image and log is found, repaired where somebody has a good copy, and reported where nobody
// has; a second pass finds only that.
func TestScrubFindsAndRepairsWhatIsBad(t *testing.T) {
	bad := map[uint64]int{}
	r := osRig(t, StoreOptions{Manual: true, OnEvent: func(e Event) {
		if c, ok := e.(EventCorruptBlock); ok {
			bad[c.Err.Block]++
		}
	}})
	for at := uint64(0); at < 300; at += 50 {
		r.put(write(at, 50))
	}
	r.put(write(700, 10))
	r.steps()
	r.put(write(5, 2), trim(20, 3))
	for _, b := range []uint64{3, 5, 21, 255, 256, 709} { // 5 and 21 are rotten below their newer versions
		r.rotImage(b)
	}
	r.rotAt(r.locOf(6).pos, 17)
	r.s.SetRepairer(r.peer(255))
	got, err := r.s.Scrub(t.Context(), 0)
	r.check(err)
	if got.Bad != 5 || got.Repaired != 4 || got.Frames != 1 || got.Blocks < 300 {
		t.Errorf("%+v", got)
	}
	for _, b := range []uint64{3, 6, 255, 256, 709} {
		if bad[b] == 0 {
			t.Errorf("block %d was not reported", b)
		}
	}
	r.checkBlocks(map[uint64]bool{255: true})
	r.s.SetRepairer(r.peer(r.s.Blocks()))
	if got, err = r.s.Scrub(t.Context(), 0); err != nil || got.Bad != 1 || got.Repaired != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	r.verify()
	if got, err = r.s.Scrub(t.Context(), 0); err != nil || got.Bad != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// What the page cache still has is good is repaired from there: rot on the device is not hidden by it, and needs no peer.
func TestScrubReadsTheDeviceAndNotTheCache(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.put(write(0, 60))
	r.steps()
	d := &rottenDevice{pacedFile: *r.s.image, rotten: map[uint64]bool{7: true, 30: true}}
	r.s.image.File = d
	got, err := r.s.Scrub(t.Context(), 0)
	r.check(err)
	if got.Bad != 2 || got.Repaired != 2 || len(d.rotten) != 0 {
		t.Errorf("%+v, still rotten: %v", got, d.rotten)
	}
	r.verify()
}

// rottenDevice has bad blocks below good pages.
type rottenDevice struct {
	pacedFile
	rotten map[uint64]bool
}

func (d *rottenDevice) WriteAt(b []byte, off int64) (int, error) {
	delete(d.rotten, uint64(off)/BlockSize)
	return d.File.WriteAt(b, off)
}

func (d *rottenDevice) ReadDirectAt(b []byte, off int64) error {
	_, err := d.File.ReadAt(b, off)
	for i := 0; i < len(b); i += BlockSize {
		if d.rotten[uint64(off)/BlockSize+uint64(i/BlockSize)] {
			b[i] ^= 1
		}
	}
	return err
}

// The background scrub keeps to its rate, goes on after a restart where it was, and waits for its turn after a pass.
func TestBackgroundScrubIsSlowAndRemembersWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 64 << 10
		var ended atomic.Int32
		fsys := memfs.New()
		r := newRig(t, fsys, "r", StoreOptions{ScrubRate: rate, ScrubEvery: time.Hour, OnEvent: func(e Event) {
			if _, ok := e.(EventScrubbed); ok {
				ended.Add(1)
			}
		}})
		for at := uint64(0); at < r.s.Blocks(); at += 32 {
			r.put(write(at, 32))
			r.check(r.s.Checkpoint())
		}
		whole := time.Duration(testVolume/rate) * time.Second
		time.Sleep(scrubDelay + whole/2)
		half, _ := r.s.ScrubProgress()
		passes := ended.Load()
		if passes != 0 || half == 0 {
			t.Fatalf("%d passes, at block %d of %d after half of the time", passes, half, r.s.Blocks())
		}
		r.check(r.s.Close())
		r.open()
		time.Sleep(scrubDelay / 2)
		if again, _ := r.s.ScrubProgress(); again < half {
			t.Errorf("at block %d before, at %d after a restart", half, again)
		}
		time.Sleep(scrubDelay + whole)
		if passes = ended.Load(); passes != 1 {
			t.Errorf("%d passes", passes)
		}
		time.Sleep(50 * time.Minute)
		if passes = ended.Load(); passes != 1 {
			t.Errorf("%d passes before the hour was over", passes)
		}
		time.Sleep(time.Hour)
		if passes = ended.Load(); passes != 2 {
			t.Errorf("%d passes", passes)
		}
		if _, last := r.s.ScrubProgress(); time.Since(last) > time.Hour {
			t.Errorf("last pass ended %v ago", time.Since(last))
		}
		r.check(r.s.Close())
	})
}

func TestScrubEndsWithItsContextAndItsStore(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.put(write(0, 50))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.s.Scrub(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	r.check(r.s.Close())
	if _, err := r.s.Scrub(t.Context(), 0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// What a scrub reads, a client does not miss: no page is thrown out or brought in. That cannot be seen here; what can is
// that direct reads give what was written a moment ago, and what lies beyond a hole.
func TestDirectReadsSeeWhatWasWritten(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.put(write(8, 1))
	r.steps()
	want, got := r.good(8), wal.AlignedBuffer(3*BlockSize)
	r.check(r.s.readDevice(got, 7))
	if !bytes.Equal(got[BlockSize:2*BlockSize], want) || !bytes.Equal(got[:BlockSize], make([]byte, BlockSize)) {
		t.Error("a direct read differs")
	}
}

// What is half written of a copy in the making is no damage: it is written again.
func TestAnUnfinishedCopyIsNotScrubbed(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.put(write(0, 4))
	r.steps()
	r.check(r.s.BeginCopy(r.s.Marks().Committed, r.s.EndSum(), r.s.Epochs()))
	r.rotImage(2)
	if out, err := r.s.Scrub(t.Context(), 0); err != nil || out.Bad != 0 {
		t.Errorf("%+v, %v", out, err)
	}
	r.check(r.s.Abandon())
}
