package gateway

import (
	"slices"
	"testing"

	"lockstep/blockdev"
	"lockstep/replication/exportname"
	"lockstep/viewsvc"
)

// retire makes a node refuse everybody and point to another.
func (n *fakeNode) retire(to *fakeNode, view uint64) {
	n.set(func() { n.hint = exportname.FormatPrimary(exportname.Primary{View: view, NBD: to.addr}) })
	n.depose()
}

// routeNow is where the gateway's volume is served, as far as it knows.
func (c *cluster) routeNow() (viewsvc.ViewNum, string) {
	c.gw.mu.Lock()
	defer c.gw.mu.Unlock()
	r, _, _ := c.gw.volumes["id-of-vol0"].look()
	return r.tenure, r.addr
}

// heardAgain lets the view service tell of the view that it told of before.
func (c *cluster) heardAgain() {
	c.views.change("vol0", func(st *viewsvc.VolumeStatus) { st.Held = !st.Held })
	eventually(c.tb, "the gateway has heard", func() bool { return c.views.allHeard("vol0") })
}

// TestHintLeadsToTheNewPrimaryWithoutTheViewService is G7: and what the service says later, which is the same or older,
// does not disturb the sessions.
func TestHintLeadsToTheNewPrimaryWithoutTheViewService(t *testing.T) {
	c := startCluster(t, 4, nil)
	old, next := c.nodes[1], c.nodes[3]
	c.moveTo(1) // view 2
	s := c.submitter()
	w := write(1, "w;")
	s.send(w)
	s.await(t, w)

	c.views.setDown(true)
	next.set(func() { next.primary = true })
	old.retire(next, 3)
	r := write(1, "r;")
	s.send(r)
	s.await(t, r)
	if got := c.disk.block(4096, 2); got != "r;" {
		t.Errorf("the disk has %q", got)
	}
	if tenure, addr := c.routeNow(); tenure != 3 || addr != next.addr {
		t.Errorf("the route is %d, %s", tenure, addr)
	}

	c.views.setDown(false)
	c.heardAgain() // of view 2
	c.moveTo(3)    // view 3
	eventually(t, "the gateway has heard of it", func() bool { return c.views.allHeard("vol0") })
	again := write(2, "again;")
	s.send(again)
	s.await(t, again)
	if n := len(next.sessions()); n != 1 {
		t.Errorf("%d attachments at the new primary, want 1: the connection was cut", n)
	}
}

// TestHintIsNotBelievedBlindly is G7: the node that is pointed to is ready to serve, and may not be asked; or it is not
// ready.
func TestHintIsNotBelievedBlindly(t *testing.T) {
	for name, c := range map[string]struct {
		view  uint64
		ready bool
		text  string
	}{
		"an older view":            {view: 1, ready: true},
		"the view that is known":   {view: 2, ready: true},
		"a node that does not own": {view: 9},
		"nonsense":                 {text: "primary?view=9&nbd=unix:/etc/passwd", ready: true},
	} {
		t.Run(name, func(t *testing.T) {
			cl := startCluster(t, 4, nil)
			old, other := cl.nodes[1], cl.nodes[3]
			cl.moveTo(1) // view 2
			s := cl.submitter()
			first := write(1, "first;")
			s.send(first)
			s.await(t, first)
			other.set(func() { other.primary = c.ready })
			old.retire(other, c.view)
			if c.text != "" {
				old.set(func() { old.hint = c.text })
			}
			w := write(1, "w;")
			s.send(w)
			cl.heardAgain()
			eventually(t, "the gateway has tried", func() bool { return cl.count(EventRetry) > 0 })
			if tenure, addr := cl.routeNow(); tenure != 2 || addr != old.addr {
				t.Errorf("the route is %d, %s", tenure, addr)
			}
			if ids := other.sessions(); len(ids) > 0 {
				t.Errorf("attached at the node that was pointed to: %v", ids)
			}
			cl.moveTo(3)
			s.await(t, w)
		})
	}
}

// TestViewServiceHasTheLastWord is G7: a hint to a view that never was, at a node that lets everybody in and then does
// nothing, holds until the service tells of a newer view than the one before.
func TestViewServiceHasTheLastWord(t *testing.T) {
	c := startCluster(t, 4, nil)
	old, liar := c.nodes[1], c.nodes[3]
	c.moveTo(1) // view 2
	s := c.submitter()
	first := write(1, "first;")
	s.send(first)
	s.await(t, first)
	liar.set(func() { liar.primary, liar.paused = true, true })
	old.retire(liar, 1<<40)
	w := write(1, "w;")
	s.send(w)
	eventually(t, "the liar has it", func() bool { return slices.ContainsFunc(liar.seen(), isWrite) })
	c.moveTo(0) // view 3
	s.await(t, w)
	liar.set(func() { liar.paused = false })
}

// TestHintThatFailsLeadsBack is G7: the way that was hinted at proves right and ends; the view service, which tells of
// nothing new, is believed again.
func TestHintThatFailsLeadsBack(t *testing.T) {
	c := startCluster(t, 4, nil)
	old, next := c.nodes[1], c.nodes[3]
	c.moveTo(1) // view 2
	s := c.submitter()
	next.set(func() { next.primary = true })
	old.retire(next, 3)
	w := write(1, "w;")
	s.send(w)
	s.await(t, w)
	old.set(func() { old.primary = true })
	next.depose()
	r := write(1, "r;")
	s.send(r)
	s.await(t, r)
	if tenure, addr := c.routeNow(); tenure != 2 || addr != old.addr {
		t.Errorf("the route is %d, %s", tenure, addr)
	}
}

func isWrite(r blockdev.Request) bool { return r.Op == blockdev.OpWrite }
