package e2e

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
)

// soakFaults is how many faults there are without -soak.
const soakFaults = 5

// Whatever goes wrong at random, one thing or two at a time, on hosts of their own: what was acknowledged is there, what
// clients see is one disk, the file system is sound, and the copies are the same. -soak 1h goes on for so long.
func TestNothingIsLostThroughRandomFaults(t *testing.T) {
	c := startLab(t, cluster.Options{Views: 3})
	s := beset(t, c)
	f := &faults{t: t, c: c, rng: rand.New(rand.NewPCG(seed(t), 1))}
	began := time.Now()
	for n := 0; n < soakFaults || time.Since(began) < *soak; n++ {
		undo := f.one(f.rng.IntN(faultKinds))
		if undo != nil && f.rng.IntN(3) == 0 { // a second one beside it
			first, second := undo, f.one(f.rng.IntN(wipe))
			undo = func() { second(); first() }
		}
		wait(t, time.Duration(f.rng.IntN(4000))*time.Millisecond)
		if undo != nil {
			undo()
		}
		must(t, c.Lab().Heal(t.Context()))
		must(t, c.StartAll())
		must(t, c.AwaitSafe(t.Context()))
		s.goesOn()
		if f.rng.IntN(8) == 0 {
			f.verify()
		}
	}
	s.end()
}

// faults makes one thing after another go wrong.
type faults struct {
	t   *testing.T
	c   *cluster.Cluster
	rng *rand.Rand
}

// node is any node, more often the primary.
func (f *faults) node() string {
	if p, err := f.c.Primary(f.t.Context()); err == nil && f.rng.IntN(2) == 0 {
		return p
	}
	nodes := f.c.Nodes()
	return nodes[f.rng.IntN(len(nodes))]
}

// host is any host but one.
func (f *faults) host(but string) string {
	hosts := append([]string{"v1", "v2", "v3", "gateway"}, f.c.Nodes()...)
	for {
		if h := hosts[f.rng.IntN(len(hosts))]; h != but {
			return h
		}
	}
}

// The kinds of faults. An empty disk comes alone: the other one must not be lost.
const (
	wipe       = 8
	faultKinds = 9
)

// one makes something go wrong, and returns what ends that; nil: nothing may be added. What is started or healed anyway
// is not undone.
func (f *faults) one(kind int) (undo func()) {
	t, c := f.t, f.c
	undo = func() {}
	node := f.node()
	other := f.host(node)
	what := ""
	switch kind {
	case 0, 1:
		what = "kill " + node
		c.Node(node).Kill()
	case 2:
		what = "stop " + node
		if c.Node(node).Pause() == nil {
			undo = func() { _ = c.Node(node).Resume() } // it may have been killed since
		}
	case 3:
		what = node + " and " + other + " lose each other"
		must(t, c.Lab().CutBoth(t.Context(), node, other))
	case 4:
		what = node + " does not reach " + other
		must(t, c.Lab().Cut(t.Context(), node, other))
	case 5:
		what = "a view server is killed"
		if leader, err := c.Leader(t.Context()); err == nil {
			what = "kill " + leader.Name
			leader.Kill()
		}
	case 6:
		what = "handover"
		_, err := c.Command(t.Context(), "handover", c.Volume()) // refused as often as not
		must(t, err)
	case 7:
		what = "end " + node + " in good order"
		if c.Node(node).Running() {
			_ = c.Node(node).Resume() // it may be stopped, and would not hear of it
			must(t, c.Node(node).Stop())
		}
	case wipe:
		node = ask(t, c.Backup)
		what = "an empty disk for " + node
		c.Node(node).Kill()
		must(t, os.RemoveAll(c.DataDir(node)))
		undo = nil
	}
	t.Log(what)
	return undo
}

// verify has the members compared, who must be the same.
func (f *faults) verify() {
	f.t.Helper()
	r, err := f.c.Command(f.t.Context(), "verify", f.c.Volume())
	must(f.t, err)
	f.t.Logf("verify: %s", r.Stdout)
	if r.Code != 0 {
		f.t.Errorf("verify: exit code %d: %s", r.Code, r.Line())
	}
}
