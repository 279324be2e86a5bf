package viewsvc

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

func TestBlankDiskUnderAnOldNameIsANewReplica(t *testing.T) {
	r := pair(t)
	lost := r.view().Primary
	n := r.join("n1")
	n.Cluster, n.Replicas = "", nil // the machine came back with an empty disk
	r.ticks(testOptions.ResumeWait + 4)
	r.want(3, "n2")
	v := r.s.volumes[vol]
	if v.present(lost) || v.assignment("n1").Replica == "" {
		t.Fatalf("assignments %+v", v.Assigned)
	}
	r.recruit()
	r.want(4, "n2", "n1")
	if r.view().Has(lost) {
		t.Error("the lost replica is back in the view")
	}
	made := v.assignment("n1").Replica
	n.Replicas = append(n.Replicas, ReplicaReport{Volume: vol, Replica: lost, Role: RoleBackup})
	r.ticks(3)
	if v.present(lost) {
		t.Error("a node that has two copies supersedes the one in the view")
	}
	n.Replicas = nil // this time the home is not empty: the copy may only be unplugged
	r.ticks(testOptions.RecruitAfter / 2)
	if !v.present(made) {
		t.Error("a copy made since is given up at once")
	}
}

func TestIdleNodeIsRecruitedAfterAWait(t *testing.T) {
	r := pair(t, "n3")
	r.die("n2")
	r.propose(Proposal{Kind: KindRemove, Primary: r.view().Primary})
	r.ticks(testOptions.RecruitAfter - 5)
	if r.s.volumes[vol].assignment("n3") != nil {
		t.Fatal("n3 was assigned before RecruitAfter")
	}
	r.ticks(8)
	r.recruit()
	r.want(4, "n1", "n3")
}

func TestDeadIdleNodeIsNotChosen(t *testing.T) {
	r := pair(t, "n3", "n4")
	r.die("n3")
	r.die("n2")
	r.propose(Proposal{Kind: KindRemove, Primary: r.view().Primary})
	r.ticks(testOptions.RecruitAfter + 3)
	if r.s.volumes[vol].assignment("n3") != nil {
		t.Error("a dead node was assigned")
	}
	r.recruit()
	r.want(4, "n1", "n4")
}

func TestReturningNodeIsPreferredToAnEmptyOne(t *testing.T) {
	r := pair(t, "n3")
	r.die("n2")
	r.propose(Proposal{Kind: KindRemove, Primary: r.view().Primary})
	r.ticks(testOptions.RecruitAfter / 2)
	r.join("n2")
	r.ticks(testOptions.RecruitAfter)
	if r.s.volumes[vol].assignment("n3") != nil {
		t.Error("an empty node was assigned although n2 came back")
	}
	r.recruit()
	r.want(4, "n1", "n2")
}

func TestMissingAssignmentsAreMadeWhenNodesAppear(t *testing.T) {
	r := newRig(t, "n1")
	r.create(2)
	r.ticks(3)
	r.want(1, "n1")
	r.join("n2")
	r.ticks(4)
	r.recruit()
	r.want(2, "n1", "n2")
}

func TestUnknownVolumeIsLeftAlone(t *testing.T) {
	r := newRig(t, "n1")
	r.nodes["n1"].Replicas = []ReplicaReport{{Volume: "lost", Replica: "x", Role: RoleBackup, View: 3}}
	r.ticks(3)
	told := 0
	for _, e := range r.events {
		if e.Kind == EventUnknownVolume {
			told++
		}
	}
	if told != 1 || len(r.m.nodes["n1"].orders) != 0 {
		t.Errorf("told of it %d times, orders %+v", told, r.m.nodes["n1"].orders)
	}
}

func TestDeletedVolumeGoesWhenEveryNodeDroppedIt(t *testing.T) {
	r := pair(t)
	r.down["n2"] = true
	cmd, err := r.m.PlanDelete("vol0")
	if err = errors.Join(err, r.apply(cmd)); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.ticks(2 * testOptions.TDead)
	if v := r.s.volumes[vol]; v == nil || len(v.Assigned) != 1 || v.Assigned[0].Node != "n2" {
		t.Fatalf("with n2 down: %+v", v)
	}
	delete(r.down, "n2")
	r.ticks(5)
	if r.s.volumes[vol] != nil || len(r.m.nodes["n2"].orders) != 0 || !r.saw(EventVolumeGone) {
		t.Errorf("it never goes: %+v", r.s.volumes[vol])
	}
}

func TestPingFromBeforeTheDeletionProvesNothing(t *testing.T) {
	r := newRig(t, "n1")
	r.create(1)
	early := *r.nodes["n1"] // it is formatting its copy and reports none
	cmd, err := r.m.PlanDelete("vol0")
	if err = errors.Join(err, r.apply(cmd), r.m.Ping(early)); err != nil {
		t.Fatal(err)
	}
	r.settle()
	if r.s.volumes[vol] == nil {
		t.Error("the deletion was forgotten before the node heard of it")
	}
	r.ticks(3)
	if r.s.volumes[vol] != nil {
		t.Error("it never goes")
	}
}

func TestDeletedVolumeStaysUntilNoCopyOfItIsBeingMade(t *testing.T) {
	r := pair(t)
	r.nodes["n1"].Absent = []Absence{{Volume: vol}} // it is formatting another, or removing what there was
	cmd, err := r.m.PlanDelete("vol0")
	if err = errors.Join(err, r.apply(cmd)); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.ticks(5)
	if v := r.s.volumes[vol]; v == nil || len(v.Assigned) != 1 || v.Assigned[0].Node != "n1" {
		t.Fatalf("while n1 works on its copy: %+v", v)
	}
	r.nodes["n1"].Absent = nil
	r.ticks(5)
	if r.s.volumes[vol] != nil {
		t.Error("it never goes")
	}
}

func TestStatusTellsWhatKeepsANodeFromItsCopy(t *testing.T) {
	r := pair(t)
	r.nodes["n2"].Absent = []Absence{{Volume: vol, Error: "no room"}}
	troubles := func() []Trouble {
		r.ticks(2)
		s, err := r.m.VolumeStatus("vol0")
		if err != nil {
			t.Fatal(err)
		}
		return s.Troubles
	}
	if got, want := troubles(), []Trouble{{Node: "n2", Error: "no room"}}; !slices.Equal(got, want) {
		t.Errorf("troubles %v, want %v", got, want)
	}
	r.nodes["n2"].Absent = nil
	if got := troubles(); got != nil {
		t.Errorf("troubles %v that are over", got)
	}
}

func TestCreateNeedsMinCopiesNodes(t *testing.T) {
	r := newRig(t, "n1")
	_, err := r.m.PlanCreate(Volume{ID: "v", Name: "v", Size: 1 << 20, Copies: 3, MinCopies: 2})
	if !errors.Is(err, ErrNotEnoughNodes) {
		t.Errorf("error %v", err)
	}
	if _, err := r.m.PlanCreate(Volume{ID: "v", Name: "V", Size: 1 << 20}); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v", err)
	}
}

func TestCopiesAreSpreadOverNodes(t *testing.T) {
	r := newRig(t, "n1", "n2", "n3")
	used := map[NodeID]int{}
	for i := range 6 {
		cmd, err := r.m.PlanCreate(Volume{ID: VolumeID(fmt.Sprint(i)), Name: fmt.Sprint(i), Size: 1 << 20})
		if err = errors.Join(err, r.apply(cmd)); err != nil {
			t.Fatal(err)
		}
		for _, n := range cmd.Nodes {
			used[n]++
		}
	}
	if used["n1"] != 4 || used["n2"] != 4 || used["n3"] != 4 {
		t.Errorf("copies: %v", used)
	}
}
