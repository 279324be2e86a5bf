package viewsvc

import (
	"errors"
	"testing"
)

// forget does what an operator's order does.
func (r *rig) forget(id NodeID) error {
	r.t.Helper()
	c, err := r.m.PlanForget(id)
	if err == nil {
		err = r.apply(c)
	}
	r.settle()
	return err
}

func TestNodeIsForgottenOnlyIfNothingOfItCounts(t *testing.T) {
	r := pair(t)
	if err := r.forget("n9"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a node that never was: %v", err)
	}
	if err := r.forget("n2"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a node that lives: %v", err)
	}
	r.down["n2"] = true
	r.die("n2")
	if err := r.forget("n2"); !errors.Is(err, ErrInvalid) || r.s.volumes[vol].assignment("n2") == nil {
		t.Errorf("a dead member: %v", err)
	}
	v := r.view()
	r.propose(Proposal{Volume: vol, Expect: v.Num, Tenure: v.Tenure, From: v.Primary, Kind: KindRemove, Primary: v.Primary})
	if err := r.forget("n2"); err != nil {
		t.Fatalf("one that is no member: %v", err)
	}
	if r.s.volumes[vol].assignment("n2") != nil || !r.saw(EventNodeForgotten) {
		t.Error("it is still to have a copy")
	}
	for _, n := range r.m.ClusterStatus().Nodes {
		if n.ID == "n2" {
			t.Error("status still has it")
		}
	}
	// Its place is free for another at once.
	r.join("n3")
	r.ticks(5)
	if a := r.s.volumes[vol].assignment("n3"); a == nil || a.Replica == "" {
		t.Errorf("n3 has no copy: %+v", r.s.volumes[vol].Assigned)
	}
	// If it comes back it is one more node, and what it has of the volume is nobody's.
	delete(r.down, "n2")
	r.join("n2")
	r.ticks(5)
	if r.m.life("n2") != lifeAlive || r.s.volumes[vol].assignment("n2") != nil {
		t.Errorf("n2 came back as %v, assigned %+v", r.m.life("n2"), r.s.volumes[vol].Assigned)
	}
	if err := r.forget("n2"); !errors.Is(err, ErrInvalid) {
		t.Errorf("one that lives, and is no member: %v", err)
	}
}

func TestDeletedVolumeDoesNotWaitForAForgottenNode(t *testing.T) {
	r := pair(t)
	r.down["n2"] = true
	r.die("n2")
	cmd, err := r.m.PlanDelete("vol0")
	if err = errors.Join(err, r.apply(cmd)); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.ticks(5)
	if r.s.volumes[vol] == nil {
		t.Fatal("it did not wait for n2")
	}
	if err := r.forget("n2"); err != nil {
		t.Fatal(err)
	}
	if r.s.volumes[vol] != nil || !r.saw(EventVolumeGone) || len(r.m.volumes) != 0 {
		t.Errorf("it is still there: %+v", r.s.volumes[vol])
	}
}
