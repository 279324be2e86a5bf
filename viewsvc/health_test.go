package viewsvc

import "testing"

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
