package viewsvc

import (
	"errors"
	"strings"
	"testing"
)

// written lets a volume's primary commit up to l on all members, and time pass until the service has taken note of it.
func (r *rig) written(l uint64) {
	r.t.Helper()
	for _, m := range r.view().Members() {
		rep := &r.nodes[r.nodeOf(m)].Replicas[0]
		rep.LogEnd, rep.Commit = l, l
	}
	r.ticks(testOptions.FloorEvery + testOptions.TDead)
	if got, want := r.s.volumes[vol].Floor, (Floor{r.view().Tenure, l}); got != want {
		r.t.Fatalf("floor %+v, want %+v", got, want)
	}
}

// puttingBack stops a node and starts it with a directory of before.
func (r *rig) puttingBack(id NodeID, tenure ViewNum, end uint64) {
	r.t.Helper()
	r.join(id)
	rep := &r.nodes[id].Replicas[0]
	rep.Tenure, rep.LogEnd, rep.Commit = tenure, end, end
	if r.view().Primary != rep.Replica {
		rep.Role = RoleBackup
	}
}

// Seen to fail: with a below that looks at nothing, and with one that does not look at tenures.
func TestMemberBelowTheFloorIsNotPromoted(t *testing.T) {
	for name, old := range map[string]struct {
		tenure ViewNum
		end    uint64
	}{"short log": {1, 50}, "log with a tail that was cut since": {0, 200}} {
		t.Run(name, func(t *testing.T) {
			r := pair(t)
			r.written(100)
			r.down["n1"], r.down["n2"] = true, true
			r.ticks(2 * testOptions.TDead)
			r.puttingBack("n2", old.tenure, old.end)
			r.ticks(5 * testOptions.TDead)
			r.want(2, "n1", "n2")
			s, _ := r.m.VolumeStatus("vol0")
			for _, want := range []string{"node n2", "record 100", "volume force vol0 --to n2"} {
				if !strings.Contains(s.Problem, want) {
					t.Errorf("status says %q, and nothing of %q", s.Problem, want)
				}
			}
			if !r.saw(EventBelow) {
				t.Error("nobody was told")
			}
			r.join("n1")
			r.ticks(2)
			r.want(3, "n1")
			if s, _ := r.m.VolumeStatus("vol0"); s.Problem != "" {
				t.Errorf("status still says %q", s.Problem)
			}
			r.recruit()
			r.want(4, "n1", "n2")
		})
	}
}

// The newest report of a learner that joins is of before it did. Seen to fail (the simulator's seed 9467).
func TestMemberThatJoinedAMomentAgoIsNotCalledBelow(t *testing.T) {
	r := pair(t)
	r.written(100)
	rep := &r.nodes["n2"].Replicas[0]
	rep.Role, rep.LogEnd, rep.Commit = RoleLearner, 0, 0
	r.ticks(2)
	if r.saw(EventBelow) {
		t.Error("it was said to have lost what it acknowledged")
	}
	r.nodes["n2"].Replicas[0].Role = RoleBackup
	r.ticks(2)
	if !r.saw(EventBelow) {
		t.Error("one that knows that it is a member was not")
	}
}

// It was the service's habit to promote the backup when both came back.
func TestRestartedPrimaryResumesBesideABackupBelowTheFloor(t *testing.T) {
	r := pair(t)
	r.written(100)
	r.lead() // what the former leader knew beside the state is gone
	r.join("n1")
	r.puttingBack("n2", 1, 50)
	r.ticks(testOptions.ResumeWait + 3)
	r.want(3, "n1")
}

func TestPrimaryBelowTheFloorIsReplaced(t *testing.T) {
	r := pair(t)
	r.written(100)
	r.puttingBack("n1", 1, 50)
	r.ticks(testOptions.ResumeWait + 3)
	r.want(3, "n2")
	if why := r.s.volumes[vol].History[2].Reason; !strings.Contains(why, "lacks what was acknowledged") {
		t.Errorf("because %q", why)
	}
}

// An operator who puts a whole volume back from a backup has to say so; then the floor counts no more.
func TestVolumeWhoseMembersAreAllBelowTheFloorWaitsForForce(t *testing.T) {
	r := pair(t)
	r.written(100)
	r.down["n1"], r.down["n2"] = true, true
	r.ticks(2 * testOptions.TDead)
	r.puttingBack("n1", 1, 50)
	r.puttingBack("n2", 1, 50)
	r.ticks(2 * testOptions.TDead)
	r.want(2, "n1", "n2")
	if f := r.m.nodes["n1"].orders[vol].Floor; f != (Floor{1, 100}) {
		t.Errorf("its orders have the floor %+v", f)
	}
	cmd, err := r.m.PlanForce("vol0", "n1", "")
	if err := errors.Join(err, r.apply(cmd)); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.want(3, "n1")
	late := Command{Op: OpFloors, Floors: map[VolumeID]Floor{vol: {1, 120}, "gone": {1, 1}}}
	if err := r.apply(late); err != nil {
		t.Fatal(err)
	}
	r.ticks(2)
	if f := r.s.volumes[vol].Floor; f != (Floor{}) {
		t.Errorf("after that the floor is %+v", f)
	}
	r.recruit()
	r.want(4, "n1", "n2")
	r.written(60)
}

// A new tenure is noted before the next round of all, so that no directory of before begins it again. Seen to fail without that.
func TestTenureThatOpenedIsNoted(t *testing.T) {
	r := pair(t)
	r.written(100)
	for r.m.now%testOptions.FloorEvery != 0 {
		r.ticks(1)
	}
	r.die("n1")
	r.want(3, "n2")
	r.nodes["n2"].Replicas[0].Commit = 101
	r.ticks(2 * testOptions.TDead)
	if f := r.s.volumes[vol].Floor; f != (Floor{3, 101}) {
		t.Errorf("the floor is %+v", f)
	}
}

func TestVolumeOfModeFlushHasNoFloor(t *testing.T) {
	r := pair(t)
	r.flushing()
	r.nodes["n1"].Replicas[0].Commit = 10
	r.ticks(2 * testOptions.FloorEvery)
	if f := r.s.volumes[vol].Floor; f != (Floor{}) {
		t.Errorf("it has %+v", f)
	}
}

func TestFloorOutlivesASnapshot(t *testing.T) {
	r := pair(t)
	r.written(100)
	b, err := r.s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	s, err := DecodeState(strings.NewReader(string(b)))
	if err != nil || s.volumes[vol].Floor != (Floor{1, 100}) {
		t.Errorf("%+v, %v", s.volumes[vol], err)
	}
}
