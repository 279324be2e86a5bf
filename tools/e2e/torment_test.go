package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// serveLimit is how long a client may have to wait until its writes go on after any one failure.
const serveLimit = 20 * time.Second

// torment is a stamped-write run in the background.
type torment struct {
	t      *testing.T
	ledger *stamped.Ledger
	cancel context.CancelFunc
	done   chan struct{} // closed at the end, after which stats and err are valid
	stats  stamped.Stats
	err    error

	// mu guards everything below.
	mu     sync.Mutex
	writes int       // acknowledged
	last   time.Time // when
	gap    time.Duration
}

// clean makes a ledger for a disk, whose first bytes it clears.
func clean(t *testing.T, uri string) *stamped.Ledger {
	t.Helper()
	layout := stamped.LayoutFor(32 << 20)
	withDisk(t, uri, func(d *stamped.NBD) { must(t, stamped.Clear(d, layout)) })
	return stamped.NewLedger(layout)
}

// withDisk connects to an export for as long as f takes.
func withDisk(t *testing.T, uri string, f func(d *stamped.NBD)) {
	t.Helper()
	var disk *stamped.NBD
	must(t, cluster.Await(t.Context(), serveLimit, "connect to "+uri, func() (err error) {
		disk, err = stamped.DialNBD(t.Context(), uri)
		return err
	}))
	defer disk.Close()
	f(disk)
}

// tormentIt starts writing. With reconnect, lost connections are allowed: for tests that kill the gateway.
func tormentIt(t *testing.T, uri string, l *stamped.Ledger, seed uint64, reconnect bool) *torment {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &torment{t: t, ledger: l, cancel: cancel, done: make(chan struct{}), last: time.Now()}
	o := stamped.Options{
		Dial:      func(ctx context.Context) (stamped.Disk, error) { return stamped.DialNBD(ctx, uri) },
		Reconnect: reconnect,
		Seed:      seed,
		Observe:   r.observe,
	}
	go func() { // ended by stop, at the latest by the end of the test
		r.stats, r.err = stamped.Run(ctx, l, o)
		close(r.done)
	}()
	t.Cleanup(func() { cancel(); <-r.done })
	return r
}

func (r *torment) observe(kind stamped.Kind, _ time.Time, _ time.Duration) {
	if kind != stamped.Writing {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.gap = max(r.gap, now.Sub(r.last))
	r.writes, r.last = r.writes+1, now
}

// goesOn waits until n more writes were acknowledged.
func (r *torment) goesOn(n int) {
	r.t.Helper()
	want := r.acknowledged() + n
	must(r.t, cluster.Await(r.t.Context(), serveLimit, "more writes", func() error {
		select {
		case <-r.done:
			r.t.Fatalf("the run ended: %v", r.err)
		default:
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.writes < want {
			return fmt.Errorf("%d more are to come, the last one was %v ago", want-r.writes, time.Since(r.last))
		}
		return nil
	}))
}

func (r *torment) acknowledged() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.writes
}

// pause is the longest time without an acknowledged write since it was asked last.
func (r *torment) pause() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := max(r.gap, time.Since(r.last))
	r.gap, r.last = 0, time.Now()
	return g
}

// stop ends the run, which must have gone well.
func (r *torment) stop() stamped.Stats {
	r.t.Helper()
	r.cancel()
	<-r.done
	must(r.t, r.err)
	return r.stats
}

// verify checks every block of a disk at rest.
func verify(t *testing.T, uri string, l *stamped.Ledger) {
	t.Helper()
	withDisk(t, uri, func(d *stamped.NBD) { must(t, stamped.Verify(d, l)) })
}
