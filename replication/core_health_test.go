package replication

import (
	"testing"

	"lockstep/viewsvc"
	"lockstep/wal"
)

// proposal is what the core asks the view service for, nil for nothing.
func proposal(c *Core) *viewsvc.Proposal {
	for _, e := range c.Effects() {
		if e.Kind == EffectPropose {
			return e.Proposal
		}
	}
	return nil
}

// lag lets ticks pass in which peer b answers, and has stable what it had.
func lag(t *testing.T, c *Core, ticks int, has wal.LSN) *viewsvc.Proposal {
	t.Helper()
	for range ticks {
		mustAck(t, c, Ack{From: "b", Stream: c.find("b").stream, View: c.View().Num, Tenure: 1, Written: c.Written(), Durable: has})
		c.Tick(0)
		if p := proposal(c); p != nil {
			return p
		}
	}
	return nil
}

// evicted is an open primary a, alone in view 2 since its backup b was slow.
func evicted(t *testing.T) *Core {
	t.Helper()
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.SetMinCopies(1)
	c.Tick(0)
	c.Durable(5)
	p := lag(t, c, slowTicks+3, 1)
	if p == nil || p.Kind != viewsvc.KindRemove || len(p.Backups) != 0 {
		t.Fatalf("a backup that was slow for %d ticks: %+v", slowTicks, p)
	}
	c.Observe(testView(2, 1, "a"))
	c.Effects()
	return c
}

// rejoin lets b keep pace, and tells after how many ticks it is proposed.
func rejoin(t *testing.T, c *Core, stream uint64) int {
	t.Helper()
	c.Recruits([]viewsvc.ReplicaID{"b"})
	c.PeerUp("b", stream, false)
	c.Effects()
	for i := range maxTrialTicks {
		if p := lag(t, c, 1, c.Written()); p != nil {
			if p.Kind != viewsvc.KindAdd {
				t.Fatalf("asked to %s", p.Kind)
			}
			return i
		}
	}
	t.Fatal("it never joins again")
	return 0
}

func TestSlowMemberLeavesTheView(t *testing.T) { evicted(t) }

func TestMemberThatLagsAndCatchesUpStays(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.SetMinCopies(1)
	for l := wal.LSN(2); l < 10; l++ {
		c.Durable(l)
		if p := lag(t, c, slowTicks-2, l-1); p != nil {
			t.Fatalf("asked to %s", p.Kind)
		}
		if p := lag(t, c, 2, l); p != nil {
			t.Fatalf("asked to %s", p.Kind)
		}
	}
}

func TestSlowMemberStaysWhereWritesWouldWaitWithoutIt(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.SetMinCopies(2)
	c.Tick(0)
	c.Durable(5)
	if p := lag(t, c, 3*slowTicks, 1); p != nil {
		t.Errorf("asked to %s", p.Kind)
	}
}

func TestSlowMemberReturnsAfterATrialThatGetsLonger(t *testing.T) {
	c := evicted(t)
	first := rejoin(t, c, 2)
	if first < trialTicks-1 {
		t.Errorf("it joins again after %d ticks, the trial is %d", first, trialTicks)
	}
	c.Observe(testView(3, 1, "a", "b"))
	c.Effects()
	c.Durable(c.Written() + 1)
	if p := lag(t, c, slowTicks+3, c.Written()-1); p == nil || p.Kind != viewsvc.KindRemove {
		t.Fatalf("it is slow again: %+v", p)
	}
	c.Observe(testView(4, 1, "a"))
	c.Effects()
	if again := rejoin(t, c, 3); again < 2*trialTicks-1 {
		t.Errorf("the second time it joins after %d ticks, the trial is %d", again, 2*trialTicks)
	}
}

func TestTrialBeginsAnewWhenTheLearnerLags(t *testing.T) {
	c := evicted(t)
	c.Recruits([]viewsvc.ReplicaID{"b"})
	c.PeerUp("b", 2, false)
	lag(t, c, trialTicks-2*steadyTicks, c.Written())
	c.Durable(c.Written() + 1)
	lag(t, c, steadyTicks+2, c.Written()-1)
	if p := lag(t, c, trialTicks-1, c.Written()); p != nil {
		t.Errorf("it joins though it has not kept pace for a whole trial: %+v", p)
	}
}

// A process that was killed is no gray failure: it joins as soon as it has caught up.
func TestRestartedMemberNeedsNoTrial(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.PeerDown("b", 1, true)
	c.Tick(0)
	if p := proposal(c); p == nil || p.Kind != viewsvc.KindRemove {
		t.Fatalf("a dead backup: %+v", p)
	}
	c.Observe(testView(2, 1, "a"))
	if n := rejoin(t, c, 2); n > 1 {
		t.Errorf("it joins after %d ticks", n)
	}
}

func TestMemberThatTheServiceCallsDeadIsRemovedAtOnce(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.CalledDead("b")
	c.Tick(0)
	if proposal(c) != nil {
		t.Error("its stream is open, and it is removed on hearsay")
	}
	c.PeerDown("b", 1, false)
	c.CalledDead("b")
	c.Tick(0)
	if proposal(c) == nil {
		t.Error("it has no stream, the service calls it dead, and it is waited for")
	}
}
