package e2e

import (
	"testing"

	"lockstep/tools/e2e/cluster"
)

// What if the view server fails? There are three: any one may die, the one that leads too, and the next failure of a
// primary is handled by those that are left.
func TestAnyViewServerMayDie(t *testing.T) {
	c := start(t, cluster.Options{Views: 3})
	ledger := clean(t, c.URI)
	run := tormentIt(t, c.URI, ledger, seed(t), false)
	for range times(3, 12) {
		run.goesOn(300)
		leader := ask(t, c.Leader)
		leader.Kill()
		victim := c.Node(ask(t, c.Primary)) // whoever leads now says so
		victim.Kill()
		run.pause()
		run.goesOn(300)
		t.Logf("view server %s and primary %s killed: writes paused for %v", leader.Name, victim.Name, run.pause())
		must(t, c.StartAll())
		must(t, c.AwaitSafe(t.Context()))
	}
	t.Log(run.stop())
	verify(t, c.URI, ledger)
	sameImages(t, c)
}

// The view server that leads is cut off from the other two, but not from the nodes: what it decides from there on counts
// for nothing, and the two others, who elect one of them, serve.
func TestViewServerOfAMinorityMakesNoViews(t *testing.T) {
	c := startLab(t, cluster.Options{Views: 3})
	clearHistory(t, c.URI)
	h := record(t, c.URI)
	h.goesOn(300)
	leader := ask(t, c.Leader)
	for _, other := range []string{"v1", "v2", "v3"} {
		if other != leader.Name {
			must(t, c.Lab().CutBoth(t.Context(), leader.Name, other))
		}
	}
	old, next := ask(t, c.Primary), ask(t, c.Backup)
	c.Node(old).Kill()
	h.goesOn(300)
	becomes(t, c, next)
	must(t, c.Node(old).Start())
	healed(t, c, c.Lab())
	if now := ask(t, c.Leader); now == leader {
		t.Logf("%s leads again", leader.Name)
	}
	h.goesOn(300)
	h.linearizable()
	sameImages(t, c)
}
