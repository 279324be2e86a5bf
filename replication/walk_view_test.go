package replication

import (
	"slices"
	"testing"
	"time"

	"lockstep/viewsvc"
)

// The view service of a walk is the list of its views and its rules: who may ask for which next view. What it decides
// by itself is random, within the rules: safety must not depend on good decisions.

func (w *walk) current() viewsvc.View { return w.hist[len(w.hist)-1] }

func (w *walk) make(v viewsvc.View) {
	v.Volume, v.Num = "v", w.current().Num+1
	if v.Tenure == 0 {
		v.Tenure = v.Num
	}
	w.hist = append(w.hist, v)
	w.tr("view %d.%d %s %v", v.Num, v.Tenure, v.Primary, v.Backups)
}

// someOf is a random subset without one.
func (w *walk) someOf(ids []viewsvc.ReplicaID, but viewsvc.ReplicaID) []viewsvc.ReplicaID {
	var out []viewsvc.ReplicaID
	for _, id := range ids {
		if id != but && w.one(2) {
			out = append(out, id)
		}
	}
	return out
}

func (w *walk) someOutside(r *wReplica) []viewsvc.ReplicaID {
	var out []viewsvc.ReplicaID
	for _, id := range walkIDs {
		if !r.core.View().Has(id) && !w.one(4) {
			out = append(out, id)
		}
	}
	return out
}

func (w *walk) promote() {
	cur := w.current()
	to := walkIDs[w.rng.IntN(walkReplicas)]
	if len(w.hist) == walkViews || to == cur.Primary || !cur.Has(to) && w.mutant != "promoteany" {
		return
	}
	w.make(viewsvc.View{Primary: to, Backups: w.someOf(cur.Members(), to)})
}

// resume gives a restarted primary a tenure of its own.
func (w *walk) resume() {
	cur := w.current()
	r := w.rs[walkIndex(cur.Primary)]
	if len(w.hist) < walkViews && r.up && r.core.State() == StateRecovering && r.core.View().Num == cur.Num {
		w.make(viewsvc.View{Primary: cur.Primary, Backups: w.someOf(cur.Backups, "")})
	}
}

// decide lets the view service decide a proposal that is under way, also one whose proposer has given up.
func (w *walk) decide() {
	if len(w.props) == 0 {
		return
	}
	k := w.rng.IntN(len(w.props))
	q := w.props[k]
	w.props = slices.Delete(w.props, k, k+1)
	cur, p := w.current(), q.p
	conflict, refused := p.Expect != cur.Num, len(w.hist) == walkViews || w.one(12)
	if !conflict && p.Tenure == cur.Tenure { // V10
		if p.Try <= w.tried[p.Tenure] && w.mutant != "latetry" {
			refused = true
		} else {
			w.tried[p.Tenure] = max(w.tried[p.Tenure], p.Try)
		}
	}
	if !conflict && !refused {
		refused = !w.allowed(cur, p)
	}
	if !conflict && !refused {
		v := viewsvc.View{Primary: p.Primary, Backups: slices.Clone(p.Backups), Tenure: cur.Tenure}
		if p.Kind == viewsvc.KindHandover {
			v.Tenure = 0
		}
		w.make(v)
	}
	if q.answered || !q.r.up || q.r.core != q.core {
		return // nobody hears the answer
	}
	if w.one(6) {
		q.lost()
		return
	}
	switch {
	case conflict:
		q.core.Observe(cur)
		q.core.ProposalLost(p)
	case refused:
		q.core.ProposalRefused(p)
	default:
		q.core.Observe(w.current())
	}
	q.r.settle()
}

// allowed are the rules for what a primary may ask for.
func (w *walk) allowed(cur viewsvc.View, p *viewsvc.Proposal) bool {
	subset := true
	for _, r := range append([]viewsvc.ReplicaID{p.Primary}, p.Backups...) {
		subset = subset && cur.Has(r)
	}
	if p.From != cur.Primary || p.Tenure != cur.Tenure {
		return false
	}
	switch p.Kind {
	case viewsvc.KindAdd:
		for _, r := range cur.Backups {
			if !slices.Contains(p.Backups, r) {
				return false
			}
		}
		return p.Primary == cur.Primary && len(p.Backups) == len(cur.Backups)+1
	case viewsvc.KindRemove:
		return p.Primary == cur.Primary && subset && len(p.Backups) < len(cur.Backups)
	case viewsvc.KindHandover:
		return p.Primary != cur.Primary && subset
	default:
		return false
	}
}

// loseProposal: a proposer gives a proposal up. It may be decided all the same, later.
func (w *walk) loseProposal() {
	if len(w.props) > 0 {
		q := w.props[w.rng.IntN(len(w.props))]
		if !q.answered && q.r.up && q.r.core == q.core {
			q.lost()
		}
	}
}

func (q *wProposal) lost() {
	q.answered = true
	if q.r.w.mutant == "lostisrefused" {
		q.core.ProposalRefused(q.p)
	} else {
		q.core.ProposalLost(q.p)
	}
	q.r.settle()
}

// walkFor walks, from a seed on, until time is up or something breaks.
func walkFor(t testing.TB, mode walkMode, mutant string, first uint64, d time.Duration) (bad string) {
	var walks, opens, reads, leased, acks, stable int
	if *walkSeed != 0 {
		first = *walkSeed
	}
	deadline := time.Now().Add(d)
	for seed := first; seed == first || time.Now().Before(deadline); seed++ {
		w := newWalk(seed, mode, mutant, *walkSeed != 0)
		bad := w.run()
		walks, opens, reads, acks, stable = walks+1, opens+w.nOpens, reads+w.nReads, acks+w.nAcks, stable+w.nStable
		leased += w.nLeased
		if *walkSeed != 0 {
			for _, l := range w.trace {
				t.Log(l)
			}
		}
		if bad != "" {
			t.Logf("walk %d of mode %d %s: %s (-walk.seed=%d shows it)", walks, mode, mutant, bad, seed)
			return bad
		}
		if *walkSeed != 0 {
			break
		}
	}
	t.Logf("%d walks of %d steps: %d primaries opened, %d writes acknowledged, %d reads, %d of them under a lease, %d stable points",
		walks, walkSteps, opens, acks, reads, leased, stable)
	if *walkSeed == 0 && (opens < walks/2 || acks < walks || reads < walks/4) {
		t.Errorf("these walks hardly get anywhere")
	}
	return ""
}

func TestRandomWalkKeepsTheRules(t *testing.T) {
	for name, mode := range map[string]walkMode{"always": walkAlways, "leases": walkLease, "flush": walkFlush, "flush and power failures": walkFlushCrash} {
		t.Run(name, func(t *testing.T) {
			if bad := walkFor(t, mode, "", 1, *walkTime); bad != "" {
				t.Fatal(bad)
			}
		})
	}
}

// maxHunt is how long a broken rule may go unnoticed. The seeds are always the same: each begins with one that shows the
// mutant, and goes on from there when the protocol has changed since. From seed 1 on, all together took 80 s.
const maxHunt = time.Minute

// TestRandomWalkFindsEachBrokenRule breaks one rule of the protocol at a time, in the drivers or the view service. The
// checks have to notice each; otherwise TestRandomWalkKeepsTheRules proves nothing. That acks of another tenure do not
// count is not among them: with the other rules in place it takes far more walks than there is time for, and has
// TestAckOfAnotherTenureDoesNotCount instead, which tools/mutant sees fail without it.
func TestRandomWalkFindsEachBrokenRule(t *testing.T) {
	for _, m := range []struct {
		name string
		mode walkMode
		seed uint64 // where to begin: it showed the mutant when this was written
	}{
		{"forgetview", walkAlways, 105},     // a view is not on disk before it is acted in
		{"blank", walkAlways, 12},           // an empty disk goes by the name of the one before
		{"applyearly", walkAlways, 1},       // a backup takes what it has for committed
		{"noviewrec", walkAlways, 15683},    // a tenure begins without a VIEW record
		{"openearly", walkAlways, 3},        // a primary opens before its VIEW record is everywhere
		{"ackearly", walkAlways, 1},         // a backup acknowledges before it synced
		{"ackwritten", walkAlways, 15},      // what is written counts, in sync mode always
		{"localread", walkAlways, 487},      // reads are not confirmed
		{"confirmany", walkAlways, 2168},    // a backup confirms a view that it has left
		{"noaccepts", walkAlways, 15086},    // a backup takes frames of a view that it has left
		{"nocut", walkAlways, 29},           // a backup keeps what is not in the primary's log
		{"addbehind", walkAlways, 1210},     // a learner is added that lacks committed records
		{"addlate", walkAlways, 62},         // a learner is proposed first and waited for later
		{"copyunfinished", walkAlways, 765}, // a learner is added before its image is whole
		{"dropearly", walkAlways, 2},        // a backup is not waited for once its removal was asked for
		{"lostisrefused", walkAlways, 2098}, // a proposal whose answer was lost is taken for refused
		{"latetry", walkAlways, 89110},      // the view service accepts an earlier try after it refused a later one
		{"resumesame", walkAlways, 5},       // a restarted primary goes on in its old tenure
		{"promoteany", walkAlways, 1},       // the view service promotes a replica that is no member
		{"nograntwait", walkLease, 1433},    // a new primary opens though its promise to another still runs
		{"forgetgrant", walkLease, 14718},   // a restarted replica takes itself to have promised nothing
		{"cachedtime", walkLease, 45645},    // a lease is looked at with a reading of the clock from before the request
		{"leasefromack", walkLease, 72242},  // a lease counts from when the grant arrived
		{"leaseofone", walkLease, 64961},    // one peer's grant is good for all
		{"keepreturned", walkLease, 122639}, // grants that were given back are relied on again
		{"drift", walkLease, 149876},        // clocks run at any rate
		{"localread", walkFlush, 11614},
		{"addlate", walkFlush, 62},
		{"launder", walkFlushCrash, 92287}, // a suspect is none any more before it has all that the primary has
		{"nosuspect", walkFlushCrash, 838}, // a crash of its machine makes nobody a suspect
	} {
		t.Run(m.name, func(t *testing.T) {
			if walkFor(t, m.mode, m.name, m.seed, maxHunt) == "" {
				t.Error("nothing was noticed")
			}
		})
	}
}
