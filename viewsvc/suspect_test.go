package viewsvc

import (
	"errors"
	"strings"
	"testing"
)

// suspects sets whether the replica on a node says that it may have lost acknowledged writes.
func (r *rig) suspects(id NodeID, suspect bool) { r.nodes[id].Replicas[0].Suspect = suspect }

// trio is a volume with primary n1 and backups n2 and n3, in view 2.
func trio(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, "n1", "n2", "n3")
	r.create(3)
	r.ticks(3)
	r.recruit()
	r.want(2, "n1", "n2", "n3")
	return r
}

func TestLongestLogIsPromotedUnlessSuspect(t *testing.T) {
	r := trio(t)
	r.nodes["n2"].Replicas[0].LogEnd = 20
	r.nodes["n3"].Replicas[0].LogEnd = 30
	r.suspects("n3", true)
	r.ticks(1)
	r.die("n1")
	r.want(3, "n2", "n3")
	r.ticks(2)
	r.suspects("n3", false)
	r.ticks(1)
	r.die("n2")
	r.want(4, "n3")
}

func TestSuspectIsNotPromotedWhileASoundMemberMayComeBack(t *testing.T) {
	for _, sound := range []NodeID{"n1", "n2"} { // the former primary, and the other backup
		r := trio(t)
		r.suspects("n3", true)
		r.ticks(1)
		r.down["n1"], r.down["n2"] = true, true
		r.ticks(5 * testOptions.TDead)
		r.want(2, "n1", "n2", "n3")
		s, err := r.m.VolumeStatus("vol0")
		if err != nil || !strings.Contains(s.Problem, "node n1") || !strings.Contains(s.Problem, "volume force vol0") {
			t.Errorf("status says %q, %v; it has to say for whom the volume waits, and what an operator can do", s.Problem, err)
		}
		if err := r.m.OrderResume("vol0"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "node n1") {
			t.Errorf("resume says %v", err)
		}
		if !r.saw(EventAwaited) {
			t.Error("nobody was told")
		}
		r.join(sound)
		r.ticks(testOptions.ResumeWait + 3)
		r.want(3, sound, "n3") // it comes along, and is brought up to date by one that lost nothing
		if s, _ := r.m.VolumeStatus("vol0"); s.Problem != "" {
			t.Errorf("status still says %q", s.Problem)
		}
	}
}

func TestSuspectIsPromotedWhenTheSoundMembersCopyIsGone(t *testing.T) {
	r := pair(t)
	r.suspects("n2", true)
	r.ticks(1)
	r.die("n1")
	r.ticks(2 * testOptions.TDead)
	r.want(2, "n1", "n2")
	n := r.join("n1") // on an empty disk
	n.Cluster, n.Replicas = "", nil
	r.ticks(3 + testOptions.ResumeWait)
	r.want(3, "n2")
}

func TestFailedStorageOfASoundMemberIsNotItsLoss(t *testing.T) {
	r := pair(t)
	r.suspects("n2", true)
	r.ticks(1)
	rep := &r.nodes["n1"].Replicas[0]
	rep.Role, rep.Error = RolePoisoned, "input/output error"
	r.ticks(2 * testOptions.TDead)
	r.want(2, "n1", "n2")
	cmd, err := r.m.PlanForce("vol0", "n2", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.apply(cmd); err != nil {
		t.Fatal(err)
	}
	r.want(3, "n2")
}

func TestOfMembersThatAreAllSuspectsTheLongestLogIsPrimary(t *testing.T) {
	for name, c := range map[string]struct {
		primary, backup uint64 // ends of their logs
		want            NodeID
	}{
		"backup":  {10, 11, "n2"},
		"equal":   {10, 10, "n2"},
		"primary": {11, 10, "n1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := trio(t)
			r.lead()
			r.join("n1")
			r.join("n2")
			r.down["n3"] = true
			r.nodes["n1"].Replicas[0].LogEnd, r.nodes["n2"].Replicas[0].LogEnd = c.primary, c.backup
			r.suspects("n1", true)
			r.suspects("n2", true)
			r.ticks(2 * testOptions.TDead)
			r.want(2, "n1", "n2", "n3") // n3 may have lost nothing
			r.join("n3")
			r.suspects("n3", true)
			r.nodes["n3"].Replicas[0].LogEnd = 5
			r.ticks(testOptions.ResumeWait + 3)
			if got := r.nodeOf(r.view().Primary); got != c.want || len(r.view().Members()) < 2 {
				t.Errorf("primary %s, members %v", got, r.view().Members())
			}
		})
	}
}

// A primary that may lack something is held. A member that has just come back is not told yet that it lacks nothing.
func TestNothingIsHandedOverToASuspect(t *testing.T) {
	r := pair(t)
	r.nodes["n2"].Replicas[0].Suspect = true
	r.ticks(2)
	if _, _, err := r.m.OrderHandover("vol0", ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("to a suspect: %v", err)
	}
	r.nodes["n2"].Replicas[0].Suspect = false
	r.ticks(2)
	if _, _, err := r.m.OrderHandover("vol0", ""); err != nil {
		t.Errorf("to one that lacks nothing: %v", err)
	}
}

// flushing makes the volume one in sync mode flush.
func (r *rig) flushing() { r.s.volumes[vol].Volume.Sync = SyncFlush }

// Seen to fail: a promotion by what the backup said before the primary died.
func TestMachineThatWentDownUnnoticedIsNotPromoted(t *testing.T) {
	r := pair(t)
	r.flushing()
	r.down["n2"] = true // its machine, and what it had not flushed
	r.ticks(1)
	r.die("n1")
	r.ticks(2)
	r.want(2, "n1", "n2")
	r.join("n2")
	r.suspects("n2", true)
	r.ticks(testOptions.ResumeWait + 3)
	r.want(2, "n1", "n2")
	r.join("n1")
	r.ticks(testOptions.ResumeWait + 3)
	r.want(3, "n1", "n2")
}

func TestBackupIsPromotedOnceItAnswered(t *testing.T) {
	r := pair(t)
	r.flushing()
	before := r.m.nodes["n2"].news
	r.die("n1")
	r.want(2, "n1", "n2")
	if r.m.nodes["n2"].news == before {
		t.Error("the backup is not asked at once")
	}
	r.ticks(2)
	r.want(3, "n2")
}

// Seen to fail: a held primary that is left in office.
func TestHeldPrimaryGivesWayToAMemberThatLacksNothing(t *testing.T) {
	r := trio(t)
	r.suspects("n1", true)
	r.suspects("n2", true)
	r.suspects("n3", true)
	r.ticks(1)
	r.nodes["n1"].Replicas[0].Role = RoleHeld
	r.ticks(2 * testOptions.TDead)
	r.want(2, "n1", "n2", "n3")
	r.suspects("n3", false)
	r.ticks(2)
	r.want(3, "n3", "n2")
}
