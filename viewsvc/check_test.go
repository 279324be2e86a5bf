package viewsvc

import (
	"errors"
	"testing"
)

// checkOf is the order that a node has.
func (r *rig) checkOf(id NodeID) *CheckOrder { return r.m.nodes[id].orders[vol].Check }

func TestComparisonIsThePrimarysAndEndsWithItsReport(t *testing.T) {
	r := pair(t)
	o, err := r.m.OrderCheck("vol0", false)
	if err != nil {
		t.Fatal(err)
	}
	r.ticks(3)
	if c := r.checkOf("n1"); c == nil || *c != o || r.checkOf("n2") != nil {
		t.Fatalf("orders %v of the primary, %v of the backup", c, r.checkOf("n2"))
	}
	r.nodes["n1"].Replicas[0].Check = &CheckReport{ID: o.ID, Blocks: 5}
	r.ticks(3)
	if r.checkOf("n1") == nil {
		t.Error("the order is gone while it is carried out")
	}
	r.nodes["n1"].Replicas[0].Check = &CheckReport{ID: o.ID, Finished: true}
	r.ticks(3)
	if r.checkOf("n1") != nil {
		t.Error("the order stays when it was carried out: a primary that restarts would begin again")
	}
}

func TestScrubIsForEveryCopyThatLives(t *testing.T) {
	r := pair(t)
	o, err := r.m.OrderCheck("vol0", true)
	if err != nil {
		t.Fatal(err)
	}
	r.ticks(3)
	if r.checkOf("n1") == nil || r.checkOf("n2") == nil {
		t.Fatal("not both are to scrub")
	}
	r.nodes["n1"].Replicas[0].Check = &CheckReport{ID: o.ID, Finished: true}
	r.ticks(3)
	if r.checkOf("n2") == nil {
		t.Error("the order is gone before both have scrubbed")
	}
	r.die("n2")
	r.ticks(3)
	if r.checkOf("n1") != nil {
		t.Error("a dead node is waited for")
	}
}

func TestNoCheckWithoutAnOpenPrimary(t *testing.T) {
	r := pair(t)
	r.suspects("n2", true) // or else it would be primary
	r.ticks(1)
	r.nodes["n1"].Replicas[0].Role = RoleHeld
	r.ticks(2)
	if _, err := r.m.OrderCheck("vol0", false); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}

// The last report of a dead primary says that it is open. There is nobody to scrub, and the order is over at once.
func TestScrubOfAVolumeWithoutALivingCopyIsNoPanic(t *testing.T) {
	r := newRig(t, "n1")
	r.create(1)
	r.ticks(3)
	r.die("n1")
	if _, err := r.m.OrderCheck("vol0", true); err != nil {
		t.Errorf("%v", err)
	}
}

// An unfinished copy is neither the old disk nor the new one: it cannot be forced to be primary.
func TestUnfinishedCopyIsNotForced(t *testing.T) {
	r := newRig(t, "n1", "n2")
	r.create(2)
	r.ticks(3)
	r.want(1, "n1") // n2 is a learner
	r.nodes["n2"].Replicas[0].Copying = true
	r.ticks(2)
	if _, err := r.m.PlanForce("vol0", "n2", ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("an unfinished copy: %v", err)
	}
	r.nodes["n2"].Replicas[0].Copying = false
	r.ticks(2)
	if _, err := r.m.PlanForce("vol0", "n2", ""); err != nil {
		t.Errorf("a whole one: %v", err)
	}
}
