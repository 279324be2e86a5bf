package viewsvc

import (
	"fmt"
	"time"
)

// A member can come back with less than it acknowledged: its directory was put back from a backup, its virtual disk from a
// snapshot, or its disk had not kept what it called stable. Its log is in order; nothing on its own disk tells. So the service
// remembers, for each volume of sync mode always, a floor: a commit point that an open primary reported. Commit means
// stable on every member, nobody becomes a member without it, and it is never cut: a member below the floor has lost
// acknowledged writes. It is not promoted and not resumed, and does not take office in a view that it held office in before
// (orders carry the floor; replication.Core.SetFloor). A member that has what it lacks brings it up to date.
//
// The floor is replicated: when a tenure has opened, and every FloorEvery while there are writes, in one command for all
// volumes. What was acknowledged since is not guarded. It is what the primary said a round, of TDead, ago: whoever lives has
// reported since, and is not below the floor because its report is older. A volume of mode flush has none: a crash may cost
// what was not flushed there, and makes suspects.

// floorEvery is how often floors are raised, if there is a reason to.
const floorEvery = 10 * time.Second

// Floor is a point in a volume's history that every member has on stable storage.
type Floor struct {
	Tenure ViewNum `json:"tenure"`
	LSN    uint64  `json:"lsn"`
}

func (f Floor) above(g Floor) bool {
	return f.Tenure > g.Tenure || f.Tenure == g.Tenure && f.LSN > g.LSN
}

// LackedBy tells whether a member in that tenure, whose log ends with that record, has lost what it acknowledged.
func (f Floor) LackedBy(tenure ViewNum, end uint64) bool { return tenure < f.Tenure || end < f.LSN }

// applyFloors raises floors (V12). One of another tenure than the present is left out: an operator may have forced meanwhile.
func (s *State) applyFloors(c Command) (Result, error) {
	for id, f := range c.Floors {
		if v := s.volumes[id]; v != nil && f.Tenure == v.View.Tenure && f.above(v.Floor) {
			v.Floor = f
		}
	}
	return Result{}, nil
}

// raiseFloors asks for the floors that the primaries spoke of a round ago: of those only that opened a tenure, or of all.
func (m *Monitor) raiseFloors(all bool) {
	floors := map[VolumeID]Floor{}
	for id, v := range m.state.volumes {
		w := m.volume(id)
		if w.said.Tenure == v.View.Tenure && (w.said.Tenure > v.Floor.Tenure || all && w.said.above(v.Floor)) {
			floors[id] = w.said
		}
		w.said = Floor{}
		rep, ok := m.report(v, v.View.Primary)
		if ok && v.Volume.Sync == SyncAlways && rep.Role == RolePrimary && rep.Tenure == v.View.Tenure {
			w.said = Floor{rep.Tenure, rep.Commit}
		}
	}
	if len(floors) > 0 {
		m.command("floors", Command{Op: OpFloors, Floors: floors})
	}
}

// below tells whether a member that reports has lost what it acknowledged.
func (m *Monitor) below(v *volumeState, r ReplicaID) bool {
	rep, ok := m.report(v, r)
	return ok && v.View.Has(r) && v.Floor.LackedBy(rep.Tenure, rep.LogEnd)
}

// noteFloor tells of a member that is below the floor, once. One that still reports as a learner was made a member after it
// reported.
func (m *Monitor) noteFloor(v *volumeState, w *volumeWatch, r ReplicaID) {
	role := w.latest[r].Role
	switch below := m.below(v, r) && role != RoleLearner && role != RoleBlank; {
	case !below:
		delete(w.below, r)
	case !w.below[r]:
		w.below[r] = true
		m.event(Event{Kind: EventBelow, Volume: v.Volume.ID, Node: v.Replicas[r], Replica: r, Text: m.belowText(v, r)})
	}
}

func (m *Monitor) belowText(v *volumeState, r ReplicaID) string {
	rep, _ := m.report(v, r)
	return fmt.Sprintf("the copy on node %s ends with record %d of tenure %d, and at least record %d of tenure %d was acknowledged: "+
		"it is an old one that was put back, or its disk did not keep what it called stable",
		v.Replicas[r], rep.LogEnd, rep.Tenure, v.Floor.LSN, v.Floor.Tenure)
}

// allBelow finds a member that would serve were it not below the floor; "" if nobody would.
func (m *Monitor) allBelow(v *volumeState) ReplicaID {
	for _, r := range v.View.Members() {
		if m.healthy(v, r) && m.below(v, r) {
			return r
		}
	}
	return ""
}
