package e2e

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// Processes are killed and started again in random order, one at a time, while the checker writes. Nothing
// acknowledged is lost, no read goes back, and in the end the copies are the same.
func TestNothingIsLostThroughRandomKills(t *testing.T) {
	c := start(t, cluster.Options{})
	s := seed(t)
	rng := rand.New(rand.NewPCG(s, 0))
	ledger := clean(t, c.URI)
	run := tormentIt(t, c.URI, ledger, s, true)
	var pauses []time.Duration
	for i := range times(12, 60) {
		run.goesOn(300)
		run.pause()
		victim, name := c.Gateway, "gateway"
		switch p := rng.IntN(10); {
		case p < 5:
			name = "primary"
			victim = c.Node(ask(t, c.Primary))
		case p < 8:
			name = "backup"
			victim = c.Node(ask(t, c.Backup))
		case p < 9:
			name = "view server"
			victim = c.Viewd
		}
		t.Logf("kill %d: %s, %s", i, name, victim.Name)
		victim.Kill()
		if name != "gateway" { // which clients cannot do without
			run.goesOn(100)
			gap := run.pause()
			t.Logf("writes paused for %v", gap.Round(time.Millisecond))
			if name == "primary" {
				pauses = append(pauses, gap)
			}
		}
		must(t, victim.Start())
		run.goesOn(100)
		must(t, c.AwaitSafe(t.Context()))
	}
	t.Log(run.stop())
	verify(t, c.URI, ledger)
	t.Logf("pauses after a kill of the primary: %v", pauses)
	sameImages(t, c)
}

// All processes are killed at once, the view server and the gateway too.
func TestNothingIsLostWhenEverythingIsKilled(t *testing.T) {
	for _, sync := range []string{"always", "flush"} {
		t.Run("sync="+sync, func(t *testing.T) {
			c := start(t, cluster.Options{Sync: sync})
			s := seed(t)
			ledger := clean(t, c.URI)
			for round := range times(3, 15) {
				run := tormentIt(t, c.URI, ledger, s+uint64(round), true)
				run.goesOn(1000)
				c.KillAll()
				t.Log(run.stop())
				must(t, c.StartAll())
				must(t, c.AwaitSafe(t.Context()))
				verify(t, c.URI, ledger)
			}
			sameImages(t, c)
		})
	}
}

// In sync mode flush, one node's death loses nothing either: the other has it in its page cache.
func TestFlushModeSurvivesOneNode(t *testing.T) {
	c := start(t, cluster.Options{Sync: "flush"})
	ledger := clean(t, c.URI)
	run := tormentIt(t, c.URI, ledger, seed(t), false)
	for range times(2, 10) {
		run.goesOn(1000)
		victim := c.Node(ask(t, c.Primary))
		victim.Kill()
		run.goesOn(1000)
		must(t, victim.Start())
		must(t, c.AwaitSafe(t.Context()))
	}
	t.Log(run.stop())
	verify(t, c.URI, ledger)
	sameImages(t, c)
}

// P7: a failover is a pause of less than a second, a handover one that is hardly seen. The best of a few is taken,
// because a busy machine adds to each, but only a design that is too slow adds to all.
func TestFailoverIsAShortPause(t *testing.T) {
	c := start(t, cluster.Options{})
	run := tormentIt(t, c.URI, clean(t, c.URI), seed(t), false)
	best := func(what string, limit time.Duration, f func()) {
		shortest := time.Hour
		for range 4 {
			run.goesOn(200)
			run.pause()
			f()
			run.goesOn(200)
			gap := run.pause()
			t.Logf("%s: writes paused for %v", what, gap.Round(time.Millisecond))
			shortest = min(shortest, gap)
			must(t, c.StartAll())
			must(t, c.AwaitSafe(t.Context()))
		}
		if shortest > limit {
			t.Errorf("%s: the shortest of four pauses was %v, want at most %v", what, shortest, limit)
		}
	}
	best("kill of the primary", time.Second, func() { c.Node(ask(t, c.Primary)).Kill() })
	best("handover", 250*time.Millisecond, func() {
		r, err := c.Command(t.Context(), "handover", c.Volume())
		must(t, err)
		if r.Code != 0 {
			t.Fatalf("handover: exit code %d: %s", r.Code, r.Line())
		}
	})
	run.stop()
}

// P1: an acknowledged write is on every member of the view, so none is acknowledged while a member hangs, until the view
// is without it; and if the primary dies then, the other has everything.
func TestNothingIsAcknowledgedWithoutTheBackup(t *testing.T) {
	for _, sync := range []string{"always", "flush"} {
		t.Run("sync="+sync, func(t *testing.T) {
			c := start(t, cluster.Options{Sync: sync})
			ledger := clean(t, c.URI)
			run := tormentIt(t, c.URI, ledger, seed(t), false)
			run.goesOn(500)
			primary, backup := c.Node(ask(t, c.Primary)), c.Node(ask(t, c.Backup))
			withDisk(t, c.URI, func(d *stamped.NBD) {
				must(t, backup.Pause())
				// Not a write of the checker's: its workers wait for reads too, which need the backup as well.
				const off = 100 << 20
				data := bytes.Repeat([]byte("acknowledged"), 1000)
				acked := make(chan error, 1)
				go func() { acked <- d.WriteAt(data, off, false) }() // ends with the connection
				select {
				case err := <-acked:
					t.Errorf("a write was acknowledged while the backup hung (%v)", err)
					acked <- err
				case <-time.After(time.Second): // shorter than it takes to change the view
				}
				primary.Kill()
				must(t, backup.Resume())
				must(t, <-acked)
				got := make([]byte, len(data))
				must(t, d.ReadAt(got, off))
				if !bytes.Equal(got, data) {
					t.Error("the write is not there")
				}
			})
			run.goesOn(500)
			must(t, primary.Start())
			must(t, c.AwaitSafe(t.Context()))
			run.stop()
			verify(t, c.URI, ledger)
		})
	}
}

// A primary that hangs is replaced; when it comes back to itself it neither answers old data nor acknowledges
// anything, not even to a client that was connected to it all the time, and becomes the backup.
func TestPausedPrimaryIsReplacedAndComesBackHarmless(t *testing.T) {
	c := start(t, cluster.Options{})
	ledger := clean(t, c.URI)
	old := ask(t, c.Primary)

	const off = 100 << 20 // outside the checker's area
	direct, err := stamped.DialNBD(t.Context(), "nbd://"+c.NBDAddr(old)+"/"+c.Volume())
	must(t, err)
	defer direct.Close()
	block := make([]byte, 4096)
	block[0] = 1
	must(t, direct.WriteAt(block, off, false))

	run := tormentIt(t, c.URI, ledger, seed(t), false)
	run.goesOn(500)
	must(t, c.Node(old).Pause())
	paused := time.Now()
	// A request that waits in the paused process's socket: it must not be done later.
	lateWrite := make(chan error, 1)
	go func() { // ends with the connection
		third := make([]byte, 4096)
		third[0] = 3
		lateWrite <- direct.WriteAt(third, off, false)
	}()
	run.goesOn(500)
	t.Logf("writes paused for %v", run.pause().Round(time.Millisecond))
	withDisk(t, c.URI, func(d *stamped.NBD) {
		block[0] = 2
		must(t, d.WriteAt(block, off, false))
	})
	// Another one: a read, of what has been overwritten meanwhile.
	stale := make([]byte, 4096)
	lateRead := make(chan error, 1)
	go func() { lateRead <- direct.ReadAt(stale, off) }() // ends with the connection
	atLeast(t, paused, 10*time.Second, func() { run.goesOn(1) })
	must(t, c.Node(old).Resume())

	if err := <-lateWrite; err == nil {
		t.Error("the old primary acknowledged a write after it had been replaced")
	}
	if err := <-lateRead; err == nil {
		t.Errorf("the old primary answered a read, with version %d, after it had been replaced", stale[0])
	}
	must(t, c.AwaitSafe(t.Context()))
	if now := ask(t, c.Primary); now == old {
		t.Errorf("%s is primary again", old)
	}
	withDisk(t, c.URI, func(d *stamped.NBD) {
		must(t, d.ReadAt(block, off))
		if block[0] != 2 {
			t.Errorf("the block holds version %d, want 2", block[0])
		}
	})
	t.Log(run.stop())
	verify(t, c.URI, ledger)
	sameImages(t, c)
}

// P4: the view service is not needed as long as no node fails.
func TestViewServerIsOffTheDataPath(t *testing.T) {
	c := start(t, cluster.Options{})
	s := beset(t, c)
	c.Viewd.Kill()
	s.run.pause()
	away := time.Duration(times(20, 60)) * time.Second
	atLeast(t, time.Now(), away, func() { s.run.goesOn(1) })
	if gap := s.run.pause(); gap > away/4 { // a busy machine's, not the view server's
		t.Errorf("writes paused for %v while the view server was dead", gap)
	}
	// A client that comes now is served too.
	withDisk(t, c.URI, func(d *stamped.NBD) { must(t, d.ReadAt(make([]byte, 4096), 0)) })
	must(t, c.Viewd.Start())
	must(t, c.AwaitSafe(t.Context()))
	s.end()
}

// atLeast does something again and again until some time has passed since began.
func atLeast(t *testing.T, began time.Time, d time.Duration, f func()) {
	t.Helper()
	for time.Since(began) < d {
		f()
		// The checker's writes are many per millisecond; looking at them at a poll's pace is enough.
		select {
		case <-time.After(50 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}
