package e2e

import (
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// With the view server dead nothing fails over, and with the primary dead too nothing is served, until the view server is
// back. Nothing that was acknowledged is lost.
func TestViewServerAndPrimaryDie(t *testing.T) {
	c := start(t, cluster.Options{})
	s := beset(t, c)
	old, next := ask(t, c.Primary), ask(t, c.Backup)
	c.Viewd.Kill()
	c.Node(old).Kill()
	s.run.pause()
	quiet(t, s.run, 3*time.Second)
	must(t, c.Viewd.Start())
	s.goesOn()
	if now := ask(t, c.Primary); now != next {
		t.Errorf("%s is primary, want %s", now, next)
	}
	must(t, c.Node(old).Start())
	must(t, c.AwaitSafe(t.Context()))
	s.end()
}

// Both replicas go down one after the other, and come back in either order. Only one that was a member of the last view
// may serve: the other lacks what was written meanwhile.
func TestReplicasArePowerCycledInEveryOrder(t *testing.T) {
	c := start(t, cluster.Options{})
	s := beset(t, c)
	for _, order := range []string{"last down, first up", "first down, first up", "both at once"} {
		first, last := ask(t, c.Backup), ask(t, c.Primary)
		c.Node(first).Kill()
		if order != "both at once" {
			s.goesOn() // in a view without it
		}
		c.Node(last).Kill()
		up := []string{last, first}
		if order == "first down, first up" {
			up = []string{first, last}
		}
		must(t, c.Node(up[0]).Start())
		if up[0] == first {
			quiet(t, s.run, 3*time.Second)
			if now := ask(t, c.Primary); now != last {
				t.Errorf("%s: %s is primary, which was no member of the last view", order, now)
			}
		}
		must(t, c.Node(up[1]).Start())
		s.goesOn()
		must(t, c.AwaitSafe(t.Context()))
		t.Logf("%s: fine", order)
	}
	s.end()
}

// A client dies with writes in flight, another attaches at once and writes the same blocks: what the dead one sent must
// not come after that.
func TestDeadClientsWritesDoNotComeLate(t *testing.T) {
	c := start(t, cluster.Options{})
	s := beset(t, c)
	for range times(20, 200) {
		s.h.goesOn(20)
		doomed, err := stamped.DialNBD(t.Context(), c.URI)
		must(t, err)
		for b := range uint64(64) {
			go doomed.WriteAt(make([]byte, 64<<10), 64<<20+b*64<<10, false) // ends with the connection
		}
		doomed.Close()
		withDisk(t, c.URI, func(d *stamped.NBD) {
			want := []byte("written by the second client")
			for b := range uint64(64) {
				must(t, d.WriteAt(want, 64<<20+b*64<<10, false))
			}
			got := make([]byte, len(want))
			for b := range uint64(64) {
				must(t, d.ReadAt(got, 64<<20+b*64<<10))
				if string(got) != string(want) {
					t.Fatalf("a dead client's write came after the next client's, at block %d", b)
				}
			}
		})
	}
	s.end()
}

// quiet fails if anything is acknowledged in a while. What was acknowledged before may still be on its way.
func quiet(t *testing.T, r *torment, d time.Duration) {
	t.Helper()
	wait(t, 200*time.Millisecond)
	before := r.acknowledged()
	wait(t, d)
	if n := r.acknowledged() - before; n != 0 {
		t.Errorf("%d writes were acknowledged while nobody may", n)
	}
}

func wait(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}
