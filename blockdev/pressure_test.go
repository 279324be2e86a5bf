package blockdev

import (
	"testing"
	"time"

	"lockstep/wal"
)

// The delay is nothing while there is much room, grows with every frame that is not applied, never beyond its bound, and
// goes when the applier has caught up.
func TestDelayGrowsAsTheLogFills(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	const frame = 17 * BlockSize
	last := time.Duration(0)
	began := 0.0
	for r.s.RoomFor(frame) {
		r.put(write(r.s.Blocks()-16, 16))
		d := r.s.Delay(frame)
		if d < last || d > maxDelay {
			t.Fatalf("delay %v after %v, fill %.2f", d, last, r.s.Fill())
		}
		if d > 0 && last == 0 {
			began = r.s.Fill()
		}
		last = d
	}
	if began < 0.4 || began > delayFull || last != maxDelay {
		t.Errorf("delays began at %.2f of the log and ended with %v", began, last)
	}
	r.steps()
	if d := r.s.Delay(frame); d != 0 {
		t.Errorf("delay %v of an empty log", d)
	}
}

// cleanedFile notes what pacedFile has outside.
type cleanedFile struct {
	memFile
	t         *testing.T
	dirty     int // writes since the last CleanStart
	outside   int // bursts started and not waited for
	bursts    int
	maxDirty  int
	bytes     int
	maxBytes  int
	waitError error
}

func (f *cleanedFile) WriteAt(b []byte, _ int64) (int, error) {
	f.dirty++
	f.bytes += len(b)
	f.maxDirty, f.maxBytes = max(f.maxDirty, f.dirty), max(f.maxBytes, f.bytes)
	return len(b), nil
}

func (f *cleanedFile) CleanStart(off, n int64) error {
	if f.outside++; f.outside > 1 {
		f.t.Error("a second burst was begun before the first was done")
	}
	f.dirty, f.bytes = 0, 0
	f.bursts++
	return nil
}

func (f *cleanedFile) CleanWait(off, n int64) error {
	f.outside--
	return f.waitError
}

func TestPacedFileHasOneBurstOutside(t *testing.T) {
	f := &cleanedFile{t: t}
	p := newPacedFile(f)
	small, large := make([]byte, BlockSize), make([]byte, 3*paceBytes+BlockSize)
	for i := range 10 * paceWrites {
		must(t, p.write(small, int64(i)*10*BlockSize))
	}
	if f.bursts != 10 {
		t.Errorf("%d bursts of %d writes", f.bursts, 10*paceWrites)
	}
	must(t, p.write(large, 0))
	must(t, p.write(large, 1<<30))
	if f.maxDirty > paceWrites || f.maxBytes > 2*paceBytes {
		t.Errorf("a burst of %d writes, %d bytes", f.maxDirty, f.maxBytes)
	}
}

// An error that the kernel tells of while it is waited for is not told again by the sync: it must not be lost (W5).
func TestWritebackErrorPoisons(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	f := &cleanedFile{t: t, waitError: wal.ErrClosed}
	r.s.image.cleaner = f
	for i := range uint64(2*paceWrites + 1) {
		r.put(write(i*2, 1))
	}
	if err := r.s.Checkpoint(); err == nil || r.s.Err() == nil {
		t.Errorf("checkpoint: %v, store: %v", err, r.s.Err())
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
