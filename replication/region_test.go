package replication

import (
	"net"
	"testing"
)

// I13. A Confirm that overtakes a region, which was read before the commit point that it carries, would have the learner
// apply what the region then undoes.
func TestRegionsAreNotOvertakenByCommitPoints(t *testing.T) {
	bubble(t, 1, groupOptions{}, func(g *group, _ *memNet) {
		r := g.open(1)
		g.mustComplete(g.attachTo(r), writeVersion(0, 1))
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		q := newSendq(r.rt, ours)
		var a after
		r.mu.Lock()
		defer r.mu.Unlock()
		before := r.streams
		r.streams = []*stream{{r: r, q: q, up: true, copying: true}, {r: r, q: q, up: true}}
		r.ask(&a, msg{})
		r.streams = before
		for i, copying := range []bool{true, false} {
			m, err := parseMsg(q.queue[i].head[:])
			if err != nil {
				t.Fatal(err)
			}
			if told := m.Commit != 0; told == copying {
				t.Errorf("copying %v, a commit point is told: %v", copying, told)
			}
		}
	})
}
