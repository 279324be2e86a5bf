package viewsvc

import (
	"errors"
	"testing"
)

// spare is a pair whose former backup n2 was replaced by n3, and came back.
func spare(t *testing.T) *rig {
	t.Helper()
	r := pair(t)
	r.down["n2"] = true
	r.ticks(2 * testOptions.TDead)
	r.propose(Proposal{Kind: KindRemove, Primary: r.view().Primary})
	r.join("n3")
	r.ticks(testOptions.RecruitAfter + 5)
	r.recruit()
	r.want(4, "n1", "n3")
	r.join("n2")
	r.ticks(3)
	return r
}

func (r *rig) drop(id NodeID) error {
	cmd, err := r.m.PlanDrop("vol0", id)
	if err == nil {
		err = r.apply(cmd)
	}
	r.settle()
	return err
}

func TestSpareCopyIsDroppedAndItsNodeCanHaveAnother(t *testing.T) {
	r := spare(t)
	if err := r.drop("n2"); err != nil {
		t.Fatal(err)
	}
	if a := r.s.volumes[vol].assignment("n2"); a == nil || !r.m.nodes["n2"].orders[vol].Delete {
		t.Fatalf("assignment %+v, orders %+v", a, r.m.nodes["n2"].orders[vol])
	}
	r.ticks(3)
	if r.s.volumes[vol].assignment("n2") != nil || len(r.nodes["n2"].Replicas) != 0 || len(r.m.nodes["n2"].orders) != 0 {
		t.Fatalf("%+v, orders %+v", r.s.volumes[vol].Assigned, r.m.nodes["n2"].orders)
	}
	r.ticks(testOptions.RecruitAfter + 5)
	if r.s.volumes[vol].assignment("n2") != nil {
		t.Error("it is given a copy that nobody needs")
	}
	r.die("n3")
	r.propose(Proposal{Kind: KindRemove, Primary: r.view().Primary})
	r.ticks(testOptions.RecruitAfter + 5)
	r.recruit()
	r.want(6, "n1", "n2")
}

// Seen to fail: a drop that looks at nothing.
func TestCopyThatMayBeNeededIsNotDropped(t *testing.T) {
	r := spare(t)
	for _, id := range []NodeID{"n1", "n3"} {
		if err := r.drop(id); !errors.Is(err, ErrInvalid) {
			t.Errorf("a member's: %v", err)
		}
	}
	if err := r.drop("n9"); !errors.Is(err, ErrNotFound) {
		t.Errorf("one that is not: %v", err)
	}
	r.die("n3")
	r.propose(Proposal{Kind: KindRemove, Primary: r.view().Primary})
	if err := r.drop("n2"); !errors.Is(err, ErrInvalid) {
		t.Errorf("while the volume has one of its two copies: %v", err)
	}
}

// A primary may have asked to add it before it heard.
func TestCopyThatIsToBeDroppedJoinsNoView(t *testing.T) {
	r := spare(t)
	v := r.view()
	late := Proposal{Volume: vol, Expect: v.Num, Tenure: v.Tenure, From: v.Primary, Kind: KindAdd, Primary: v.Primary,
		Backups: append(v.Backups, r.s.volumes[vol].assignment("n2").Replica)}
	if err := r.drop("n2"); err != nil {
		t.Fatal(err)
	}
	cmd, err := r.m.Vet(late)
	if err != nil {
		t.Fatal(err)
	}
	var rule *RuleError
	if err := r.apply(cmd); !errors.As(err, &rule) || rule.Rule != "V3" {
		t.Errorf("added: %v", err)
	}
}
