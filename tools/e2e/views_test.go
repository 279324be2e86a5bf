package e2e

import (
	"testing"

	"lockstep/tools/e2e/cluster"
)

// What if the view server fails? There are three: any one may die, the one that leads too, and the next failure of a
// primary is handled by those that are left.
func TestAnyViewServerMayDie(t *testing.T) {
	c := start(t, cluster.Options{Views: 3})
	s := beset(t, c)
	for range times(3, 12) {
		s.goesOn()
		leader := ask(t, c.Leader)
		leader.Kill()
		victim := c.Node(ask(t, c.Primary)) // whoever leads now says so
		victim.Kill()
		s.run.pause()
		s.goesOn()
		t.Logf("view server %s and primary %s killed: writes paused for %v", leader.Name, victim.Name, s.run.pause())
		must(t, c.StartAll())
		must(t, c.AwaitSafe(t.Context()))
	}
	s.end()
}

// The view server that leads is cut off from the other two, but not from the nodes: what it decides from there on counts
// for nothing, and the two others, who elect one of them, serve.
func TestViewServerOfAMinorityMakesNoViews(t *testing.T) {
	c := startLab(t, cluster.Options{Views: 3})
	s := beset(t, c)
	leader := ask(t, c.Leader)
	old, next := ask(t, c.Primary), ask(t, c.Backup) // now: while another leader is elected a command may have to give up
	for _, other := range []string{"v1", "v2", "v3"} {
		if other != leader.Name {
			must(t, c.Lab().CutBoth(t.Context(), leader.Name, other))
		}
	}
	c.Node(old).Kill()
	s.goesOn()
	becomes(t, c, next)
	must(t, c.Node(old).Start())
	healed(t, c, c.Lab())
	if now := ask(t, c.Leader); now == leader {
		t.Logf("%s leads again", leader.Name)
	}
	s.goesOn()
	s.end()
}
