package viewsvc

import (
	"slices"
	"testing"
)

// hang sets the age of the oldest log write that a node reports of its only replica.
func (r *rig) hang(id NodeID, ms int64) { r.nodes[id].Replicas[0].OldestIO = ms }

func TestPrimaryWhoseDiskHangsIsReplaced(t *testing.T) {
	r := pair(t)
	r.hang("n1", sickAge.Milliseconds()-1)
	r.ticks(5)
	r.want(2, "n1", "n2") // slow is not sick
	r.hang("n1", sickAge.Milliseconds())
	r.ticks(2)
	r.want(3, "n2")
	if !r.saw(EventSick) {
		t.Error("nobody was told")
	}
}

func TestHangingDisksEverywhereMoveNothing(t *testing.T) {
	r := pair(t)
	r.hang("n2", sickAge.Milliseconds())
	r.ticks(2)
	r.hang("n1", sickAge.Milliseconds())
	r.ticks(5)
	r.want(2, "n1", "n2")
	r.die("n1") // a backup whose disk hangs is better than none
	r.ticks(5)
	r.want(3, "n2")
}

// setFull sets whether a node reports of its only replica that it has no room for writes.
func (r *rig) setFull(id NodeID, full bool) { r.nodes[id].Replicas[0].Full = full }

func TestFullPrimaryIsReplacedByOneThatHasRoomAndComesBackWhenItHas(t *testing.T) {
	r := pair(t)
	r.setFull("n2", true)
	r.ticks(2)
	r.setFull("n1", true)
	r.ticks(5)
	r.want(2, "n1", "n2") // nobody has room: the primary tells clients
	r.setFull("n2", false)
	r.ticks(2)
	r.want(3, "n2")
	recruits := func() int { return len(r.m.nodes["n2"].orders[vol].Recruit) }
	r.ticks(5)
	if recruits() != 0 {
		t.Error("a replica without room is recruited")
	}
	r.setFull("n1", false)
	r.ticks(2)
	if recruits() != 1 {
		t.Error("it has room, and is not recruited")
	}
}

// The primary believes the service of a member that has ended its stream, and does not wait for its silence.
func TestPrimaryIsToldOfAFullMember(t *testing.T) {
	r := pair(t)
	full := func() bool {
		return slices.ContainsFunc(r.m.nodes["n1"].orders[vol].Peers, func(p Peer) bool { return p.Node == "n2" && p.Alive && p.Full })
	}
	if full() {
		t.Fatal("n2 is full")
	}
	r.setFull("n2", true)
	r.ticks(2)
	if !full() {
		t.Error("the primary does not hear that n2 is full")
	}
}

func TestSickReplicaIsRecruitedOnlyAfterAWhile(t *testing.T) {
	r := pair(t)
	r.hang("n1", sickAge.Milliseconds())
	r.ticks(2)
	r.want(3, "n2")
	recruits := func() int { return len(r.m.nodes["n2"].orders[vol].Recruit) }
	r.hang("n1", 0)
	r.ticks(testOptions.WellAfter - 2)
	r.hang("n1", wellAge.Milliseconds()) // once more not quite calm
	r.ticks(1)
	r.hang("n1", 0)
	r.ticks(testOptions.WellAfter - 2)
	if recruits() != 0 {
		t.Error("it is recruited before it was calm for WellAfter")
	}
	r.ticks(6)
	if recruits() != 1 {
		t.Error("it never comes back")
	}
	r.recruit()
	r.want(4, "n2", "n1")
}

func TestWellBackupIsPromotedBeforeASickOneWithALongerLog(t *testing.T) {
	r := newRig(t, "n1", "n2", "n3")
	r.create(3)
	r.ticks(3)
	r.recruit()
	r.want(2, "n1", "n2", "n3")
	r.nodes["n2"].Replicas[0].LogEnd = 99
	r.hang("n2", sickAge.Milliseconds())
	r.ticks(2)
	r.die("n1")
	r.ticks(2)
	r.want(3, "n3", "n2")
}
