package main

import (
	"fmt"
	"slices"
	"strings"

	"lockstep/viewsvc"
)

// volumeState is the answer to the only question that is urgent.
type volumeState string

// The states of a volume, best first.
const (
	stateSafe        volumeState = "safe"        // serves, and has every copy that was asked for
	stateDegraded    volumeState = "degraded"    // serves, with fewer copies than were asked for
	stateUnavailable volumeState = "unavailable" // does not serve now
)

// verdict is a volume's state and why.
type verdict struct {
	state volumeState
	// survives is the number of nodes that may fail, one after the other, before writes stop.
	survives int
	// why says what keeps the volume from serving; empty when it serves.
	why string
	// deleting: the volume is on its way out, so that its state alarms nobody.
	deleting bool
}

// judge decides a volume's state from the view and from what its replicas last said.
//
// A volume serves when its primary lives and says that it is open in the current view, and there are enough living
// members for writes. A member that is dead but still in the view counts as missing: the view without it is on its way.
func judge(vs viewsvc.VolumeStatus) verdict {
	live := 0
	for _, p := range vs.Peers {
		if p.Alive && vs.View.Has(p.Replica) && reportOf(vs, p.Replica).Role != viewsvc.RolePoisoned {
			live++
		}
	}
	needed := max(vs.Volume.MinCopies, 1)
	v := verdict{deleting: vs.Deleting, why: obstacle(vs, live, needed)}
	switch {
	case v.why != "":
		v.state = stateUnavailable
	case live < vs.Volume.Copies:
		v.state, v.survives = stateDegraded, live-needed
	default:
		v.state, v.survives = stateSafe, live-needed
	}
	return v
}

// obstacle says what keeps a volume from serving and, where an operator can do something about it, what.
func obstacle(vs viewsvc.VolumeStatus, live, needed int) string {
	name := vs.Volume.Name
	if vs.Deleting {
		return strings.TrimSuffix("it is being deleted; "+vs.Problem, "; ")
	}
	if vs.View.Num == 0 {
		return "no view yet, its copies are being made"
	}
	if vs.Problem != "" {
		return vs.Problem
	}
	primary := nodeNames(vs.Peers)(vs.View.Primary)
	i := slices.IndexFunc(vs.Peers, func(p viewsvc.Peer) bool { return p.Replica == vs.View.Primary })
	if i < 0 || !vs.Peers[i].Alive {
		if live == 0 {
			return fmt.Sprintf("every member of view %d is down; start %s again", vs.View.Num, anyOf(vs))
		}
		return fmt.Sprintf("primary %s is down, another is being promoted", primary)
	}
	said := reportOf(vs, vs.View.Primary)
	switch {
	case vs.Held || said.Role == viewsvc.RoleHeld:
		return fmt.Sprintf("held, writes that were not flushed may be lost; to go on: lockstep volume resume %s", name)
	case said.Role == viewsvc.RolePoisoned:
		return "the storage of the primary failed"
	case said.Role == "":
		return fmt.Sprintf("primary %s has not reported yet", primary)
	case said.Role != viewsvc.RolePrimary || said.Tenure != vs.View.Tenure:
		return fmt.Sprintf("primary %s is not open yet (%s)", primary, said.Role)
	case live < needed:
		return fmt.Sprintf("%d of the %d copies that writes need; start a node", live, needed)
	}
	return ""
}

// anyOf names the members of a view: each alone has every acknowledged write.
func anyOf(vs viewsvc.VolumeStatus) string {
	var names []string
	for _, r := range vs.View.Members() {
		names = append(names, nodeNames(vs.Peers)(r))
	}
	return strings.Join(names, " or ")
}

// statusExit is the exit code of a report: that of its worst volume.
func statusExit(report statusReport) error {
	code := exitOK
	for _, v := range report.Volumes {
		if v.verdict.deleting {
			continue
		}
		switch v.State {
		case stateSafe:
		case stateDegraded:
			code = max(code, exitDegraded)
		case stateUnavailable:
			code = max(code, exitUnavailable)
		}
	}
	if code == exitOK {
		return nil
	}
	return exitStatus(code)
}
