package viewsvc

import (
	"errors"
	"testing"
)

func TestHandoverOrderEndsWithItsTenure(t *testing.T) {
	r := pair(t)
	if _, _, err := r.m.OrderHandover("vol0", "n1"); !errors.Is(err, ErrInvalid) {
		t.Errorf("to the primary: %v", err)
	}
	if _, _, err := r.m.OrderHandover("vol0", "n9"); !errors.Is(err, ErrInvalid) {
		t.Errorf("to a stranger: %v", err)
	}
	_, to, err := r.m.OrderHandover("vol0", "")
	if err != nil || r.m.nodes["n1"].orders[vol].Handover != to || to != r.view().Backups[0] {
		t.Fatalf("to %s, error %v, orders %+v", to, err, r.m.nodes["n1"].orders[vol])
	}
	v := r.view()
	r.propose(Proposal{Kind: KindHandover, Primary: to, Backups: ids(v.Primary)})
	r.want(3, "n2", "n1")
	for id, n := range r.m.nodes {
		if n.orders[vol].Handover != "" {
			t.Errorf("%s is still to hand over", id)
		}
	}
	if _, _, err := r.m.OrderHandover("vol0", "n1"); err != nil {
		t.Fatal(err)
	}
	r.ticks(testOptions.HandoverWait + 1)
	if r.m.nodes["n2"].orders[vol].Handover != "" {
		t.Error("an order that nobody obeys stands for ever")
	}
}

func TestHeldPrimaryIsResumedOnceByAnOperator(t *testing.T) {
	r := pair(t)
	if err := r.m.OrderResume("vol0"); !errors.Is(err, ErrInvalid) {
		t.Errorf("nothing is held: %v", err)
	}
	r.suspects("n2", true) // or else it would be primary
	r.ticks(1)
	r.nodes["n1"].Replicas[0].Role = RoleHeld
	r.ticks(1)
	if s, _ := r.m.VolumeStatus("vol0"); !s.Held {
		t.Error("status does not say held")
	}
	if err := r.m.OrderResume("vol0"); err != nil || !r.m.nodes["n1"].orders[vol].Resume {
		t.Fatalf("error %v, orders %+v", err, r.m.nodes["n1"].orders[vol])
	}
	r.nodes["n1"].Replicas[0].Role = RolePrimary
	r.ticks(1)
	if r.m.nodes["n1"].orders[vol].Resume {
		t.Error("the order outlives its purpose: it would release the next hold")
	}
}

// The only member of the next view would be a copy that may be gone: its disk may be replaced while its node is down.
func TestACopyOnADeadNodeIsNotForced(t *testing.T) {
	r := pair(t)
	delete(r.nodes, "n2")
	r.ticks(testOptions.TDead + 1)
	if _, err := r.m.PlanForce("vol0", "n2", ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("force to a dead node: %v", err)
	}
	if _, err := r.m.PlanForce("vol0", "n1", ""); err != nil {
		t.Errorf("force to a living one: %v", err)
	}
}
