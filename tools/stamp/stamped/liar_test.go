package stamped

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// memDisk is an honest disk, until one of its hooks makes a liar of it.
type memDisk struct {
	mu   sync.Mutex
	data []byte
	n    int // requests that changed something

	// write, if set, does a write in place of copy. It holds mu.
	write func(d *memDisk, p []byte, off uint64)
	// read, if set, changes what a read returns. It holds mu.
	read func(d *memDisk, p []byte, off uint64)
	// zero, if set, does a zeroing.
	zero func(d *memDisk, off uint64, n int)
	// lose, if set, tells whether the connection breaks at this write, which write may still do.
	lose func(d *memDisk) bool
}

func (d *memDisk) ReadAt(p []byte, off uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	if d.read != nil {
		d.read(d, p, off)
	}
	return nil
}

func (d *memDisk) WriteAt(p []byte, off uint64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n++
	lost := d.lose != nil && d.lose(d)
	if d.write != nil {
		d.write(d, p, off)
	} else {
		copy(d.data[off:], p)
	}
	if lost {
		return fmt.Errorf("write: %w", ErrLost)
	}
	return nil
}

func (d *memDisk) ZeroAt(off uint64, n int, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n++
	if d.zero != nil {
		d.zero(d, off, n)
	} else {
		clear(d.data[off : off+uint64(n)])
	}
	return nil
}

func (d *memDisk) TrimAt(off uint64, n int, fua bool) error { return d.ZeroAt(off, n, fua) }
func (d *memDisk) Flush() error                             { return nil }
func (d *memDisk) Close() error                             { return nil }

const (
	testSpan = 8 << 20
	testOps  = 10_000
)

// torment runs n requests, the same ones for a seed as far as goroutines allow, and then verifies.
func torment(t *testing.T, d *memDisk, l *Ledger, n int64) (Stats, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var ops atomic.Int64
	stats, err := Run(ctx, l, Options{
		Dial:      func(context.Context) (Disk, error) { return &conn{d}, nil },
		Reconnect: true,
		Seed:      seed,
		Observe: func(Kind, time.Time, time.Duration) {
			if ops.Add(1) == n {
				cancel()
			}
		},
	})
	if err != nil {
		return stats, err
	}
	if ops.Load() < n {
		t.Fatalf("only %d of %d requests in a minute", ops.Load(), n)
	}
	return stats, Verify(d, l)
}

// conn makes every connection a different Disk.
type conn struct{ *memDisk }

func newMem() (*memDisk, *Ledger) {
	return &memDisk{data: make([]byte, testSpan)}, NewLedger(LayoutFor(testSpan))
}

func TestHonestDiskPasses(t *testing.T) {
	d, l := newMem()
	stats, err := torment(t, d, l, testOps)
	if err != nil {
		t.Fatal(err)
	}
	for k, n := range stats.Ops {
		if n == 0 {
			t.Errorf("no %v was issued", Kind(k))
		}
	}
}

// A connection that breaks leaves a write done or not done; both are allowed, and so is what follows.
func TestHonestDiskWithBreakingConnectionsPasses(t *testing.T) {
	d, l := newMem()
	d.lose = func(d *memDisk) bool { return d.n%50 == 0 }
	d.write = func(d *memDisk, p []byte, off uint64) {
		if d.n%100 != 0 {
			copy(d.data[off:], p)
		}
	}
	stats, err := torment(t, d, l, testOps)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Abandoned == 0 || stats.Redials == 0 {
		t.Fatalf("nothing was abandoned: %v", stats)
	}
}

func TestLiarIsCaught(t *testing.T) {
	every := func(d *memDisk, n int) bool { return d.n%n == 0 }
	tests := []struct {
		name   string
		faults []Fault // any of them
		lie    func(d *memDisk)
		ops    int64
	}{
		{"loses an acknowledged write", []Fault{Lost, Backward}, func(d *memDisk) {
			d.write = func(d *memDisk, p []byte, off uint64) {
				if !every(d, 100) {
					copy(d.data[off:], p)
				}
			}
		}, testOps},
		{"loses a zeroing", []Fault{Lost, Backward}, func(d *memDisk) {
			d.zero = func(*memDisk, uint64, int) {}
		}, testOps},
		{"reads from an old snapshot", []Fault{Lost, Backward}, func(d *memDisk) {
			var old []byte
			reads := 0
			d.read = func(d *memDisk, p []byte, off uint64) {
				reads++
				if reads%100 == 0 {
					old = slices.Clone(d.data)
				} else if reads%100 == 50 && old != nil {
					copy(p, old[off:])
				}
			}
		}, testOps},
		{"tears a block", []Fault{Torn}, func(d *memDisk) {
			d.write = func(d *memDisk, p []byte, off uint64) {
				if every(d, 100) {
					p = p[:len(p)-512]
				}
				copy(d.data[off:], p)
			}
		}, testOps},
		{"tears a block in front", []Fault{Torn, Garbage, Lost, Backward, Misplaced}, func(d *memDisk) {
			d.write = func(d *memDisk, p []byte, off uint64) {
				if every(d, 100) {
					p, off = p[512:], off+512
				}
				copy(d.data[off:], p)
			}
		}, testOps},
		{"puts a block in its neighbour's place", []Fault{Misplaced, Lost, Backward}, func(d *memDisk) {
			d.write = func(d *memDisk, p []byte, off uint64) {
				if every(d, 100) && off%blockBytes == 0 {
					off ^= blockBytes
				}
				copy(d.data[off:], p)
			}
		}, testOps},
		{"flips a bit", []Fault{Torn, Garbage}, func(d *memDisk) {
			d.write = func(d *memDisk, p []byte, off uint64) {
				copy(d.data[off:], p)
				if every(d, 100) {
					d.data[off+uint64(d.n)%uint64(len(p))] ^= 4
				}
			}
		}, testOps},
		{"brings an old value back after a newer one was acknowledged", []Fault{Lost, Backward, Torn, Misplaced}, func(d *memDisk) {
			var late []byte
			var at uint64
			d.write = func(d *memDisk, p []byte, off uint64) {
				switch d.n % 100 {
				case 0:
					late, at = slices.Clone(p), off
				case 80:
					copy(d.data[at:], late)
				}
				copy(d.data[off:], p)
			}
		}, testOps},
		{"loses an update to a neighbour in the same block", []Fault{Lost, Backward}, func(d *memDisk) {
			// The read of a read-modify-write comes from one request earlier.
			var block []byte
			var at uint64
			d.write = func(d *memDisk, p []byte, off uint64) {
				whole := off &^ (blockBytes - 1)
				if off%blockBytes == 0 || off+uint64(len(p)) > whole+blockBytes {
					copy(d.data[off:], p)
					return
				}
				if block != nil && at == whole {
					copy(d.data[at:], block)
				}
				block, at = slices.Clone(d.data[whole:whole+blockBytes]), whole
				copy(d.data[off:], p)
			}
		}, testOps},
		// Few requests, so that later ones do not cover it.
		{"does half of a write when the connection breaks", []Fault{HalfWrite}, func(d *memDisk) {
			d.lose = func(d *memDisk) bool { return every(d, 5) }
			d.write = func(d *memDisk, p []byte, off uint64) {
				if every(d, 5) && off%blockBytes == 0 && len(p) > blockBytes {
					p = p[:blockBytes]
				}
				copy(d.data[off:], p)
			}
		}, 500},
		{"reads ones in the place of zeroes", []Fault{Garbage}, func(d *memDisk) {
			d.zero = func(d *memDisk, off uint64, n int) {
				for i := range n {
					d.data[off+uint64(i)] = 0xff
				}
			}
		}, testOps},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			d, l := newMem()
			tc.lie(d)
			_, err := torment(t, d, l, tc.ops)
			var v *Violation
			if !errors.As(err, &v) {
				t.Fatalf("not caught: %v", err)
			}
			if !slices.Contains(tc.faults, v.Fault) {
				t.Fatalf("caught as %v, want one of %v", v, tc.faults)
			}
		})
	}
}

// A disk that never answers does not hang the run for ever.
func TestHungRequestEndsTheRun(t *testing.T) {
	l := NewLedger(LayoutFor(testSpan))
	ctx, cancel := context.WithCancel(t.Context())
	h := &hungDisk{closed: make(chan struct{}), asked: cancel}
	_, err := Run(ctx, l, Options{
		Dial:  func(context.Context) (Disk, error) { return h, nil },
		Conns: 1, Depth: 1, Drain: time.Millisecond,
	})
	if !errors.Is(err, ErrHung) {
		t.Fatalf("got %v, want ErrHung", err)
	}
}

// hungDisk answers nothing until it is closed.
type hungDisk struct {
	asked  func()
	once   sync.Once
	closed chan struct{}
}

func (h *hungDisk) hang() error {
	h.asked()
	<-h.closed
	return ErrLost
}

func (h *hungDisk) ReadAt([]byte, uint64) error        { return h.hang() }
func (h *hungDisk) WriteAt([]byte, uint64, bool) error { return h.hang() }
func (h *hungDisk) ZeroAt(uint64, int, bool) error     { return h.hang() }
func (h *hungDisk) TrimAt(uint64, int, bool) error     { return h.hang() }
func (h *hungDisk) Flush() error                       { return h.hang() }
func (h *hungDisk) Close() error                       { h.once.Do(func() { close(h.closed) }); return nil }
