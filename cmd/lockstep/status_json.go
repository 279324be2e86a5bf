package main

import (
	"math"
	"slices"
	"strings"

	"lockstep/viewsvc"
)

// The shape of `lockstep status --json`. It is an interface to other programs: fields are added, never renamed,
// removed or given another meaning. Lists are never null.
type (
	statusReport struct {
		Volumes []volumeReport `json:"volumes"`
		Nodes   []nodeReport   `json:"nodes"`
		Viewd   []viewdReport  `json:"viewd"`
	}

	volumeReport struct {
		Name     string          `json:"name"`
		Size     uint64          `json:"size"` // bytes
		Sync     string          `json:"sync"`
		State    volumeState     `json:"state"`
		View     viewReport      `json:"view"`
		Replicas []replicaReport `json:"replicas"`

		ID         string `json:"id"`
		Copies     int    `json:"copies"`                // that were asked for
		MinCopies  int    `json:"min_copies"`            // below which writes wait
		WantedSize uint64 `json:"wanted_size,omitempty"` // bytes, while it is to grow to that
		Forced     uint64 `json:"forced"`                // how often a copy was promoted by force

		Troubles []troubleReport `json:"troubles"` // what keeps nodes from having the copies that they are to have
		Problem  string          `json:"problem"`  // why no view is made for the volume, whatever happens; "" if that is not so

		verdict verdict // for people
	}

	viewReport struct {
		Num     uint64   `json:"num"`     // 0: no view yet
		Tenure  uint64   `json:"tenure"`  //
		Primary string   `json:"primary"` // node
		Backups []string `json:"backups"` // nodes
	}

	replicaReport struct {
		Node    string `json:"node"`
		Replica string `json:"replica"`
		// Role is what the replica said of itself last; "down" when its node is, for what a dead node said is no
		// longer so; "unknown" when it lives and said nothing yet. It can differ from its place in the view for as
		// long as the replica has not heard of it.
		Role     string `json:"role"`
		LogEnd   uint64 `json:"log_end"` // LSNs
		Commit   uint64 `json:"commit"`
		Applied  uint64 `json:"applied"`
		LagBytes uint64 `json:"lag_bytes"` // what it lacks, as the primary estimates
		// Progress is the part of a copy that is done, 0 to 1. Members of the view have 1.
		Progress float64 `json:"progress"`
		// ETASeconds is the time until a copy is complete at its present rate: 0 for members of the view, null
		// when nobody can tell.
		ETASeconds *float64 `json:"eta_seconds"`

		Error string `json:"error"` // of role poisoned: how its storage failed
		Full  bool   `json:"full"`  // its disk is full: it takes no writes

		rate float64 // bytes per second
	}

	troubleReport struct {
		Node  string `json:"node"`
		Error string `json:"error"`
	}

	nodeReport struct {
		ID    string `json:"id"`
		Alive bool   `json:"alive"`
		PID   int    `json:"pid"`
		Addr  string `json:"addr"`
		NBD   string `json:"nbd"`
	}

	viewdReport struct {
		ID     string `json:"id"`
		Addr   string `json:"addr"`
		Leader bool   `json:"leader"`
	}
)

// What stands for a role when there is none to show.
const (
	roleDown    = "down"
	roleUnknown = "unknown"
)

// newStatusReport turns what the view service knows into what an operator wants to know. An empty volume name means all of
// them; ok is false when there is no volume of that name.
func newStatusReport(cs viewsvc.ClusterStatus, volume string) (report statusReport, ok bool) {
	report = statusReport{Volumes: []volumeReport{}, Nodes: []nodeReport{}, Viewd: []viewdReport{}}
	ok = volume == ""
	for _, vs := range cs.Volumes {
		if volume == "" || volume == vs.Volume.Name {
			report.Volumes = append(report.Volumes, newVolumeReport(vs))
			ok = true
		}
	}
	for _, n := range cs.Nodes {
		report.Nodes = append(report.Nodes, nodeReport{string(n.ID), n.Alive, n.PID, n.Addr, n.NBD})
	}
	for _, s := range cs.Servers {
		report.Viewd = append(report.Viewd, viewdReport{s.ID, s.Addr, s.Leader})
	}
	return report, ok
}

func newVolumeReport(vs viewsvc.VolumeStatus) volumeReport {
	nodeOf := nodeNames(vs.Peers)
	v := volumeReport{
		Name: vs.Volume.Name,
		Size: vs.Volume.Size,
		Sync: string(vs.Volume.Sync),
		View: viewReport{
			Num:     uint64(vs.View.Num),
			Tenure:  uint64(vs.View.Tenure),
			Primary: nodeOf(vs.View.Primary),
			Backups: []string{},
		},
		Replicas: []replicaReport{},

		ID:         string(vs.Volume.ID),
		WantedSize: vs.Volume.Wanted, Copies: vs.Volume.Copies, MinCopies: vs.Volume.MinCopies, Forced: vs.View.DataLossGen,

		Troubles: []troubleReport{}, Problem: vs.Problem,
	}
	for _, t := range vs.Troubles {
		v.Troubles = append(v.Troubles, troubleReport{string(t.Node), t.Error})
	}
	for _, b := range vs.View.Backups {
		v.View.Backups = append(v.View.Backups, nodeOf(b))
	}
	for _, p := range vs.Peers {
		v.Replicas = append(v.Replicas, newReplicaReport(vs, p))
	}
	slices.SortStableFunc(v.Replicas, func(a, b replicaReport) int { return strings.Compare(a.Node, b.Node) })
	v.verdict = judge(vs)
	v.State = v.verdict.state
	return v
}

func newReplicaReport(vs viewsvc.VolumeStatus, p viewsvc.Peer) replicaReport {
	r := replicaReport{Node: string(p.Node), Replica: string(p.Replica)}
	said := reportOf(vs, p.Replica)
	switch {
	case said.Role == viewsvc.RolePoisoned:
		r.Role, r.Error = string(said.Role), said.Error
	case !p.Alive:
		r.Role = roleDown
	case said.Role == "":
		r.Role = roleUnknown
	default:
		r.Role = string(said.Role)
	}
	r.LogEnd, r.Commit, r.Applied = said.LogEnd, said.Commit, said.Applied

	r.Full = said.Full && p.Alive
	progress, known := progressOf(vs, p.Replica)
	r.LagBytes, r.rate = progress.BytesLeft, progress.Rate
	switch {
	case vs.View.Has(p.Replica):
		r.Progress, r.ETASeconds = 1, new(float64)
	case known:
		if all := progress.BytesDone + progress.BytesLeft; all > 0 {
			r.Progress = float64(progress.BytesDone) / float64(all)
		}
		if progress.Rate > 0 {
			eta := math.Ceil(float64(progress.BytesLeft) / progress.Rate)
			r.ETASeconds = &eta
		}
	}
	return r
}

// nodeNames gives the names of the nodes that hold the replicas. A replica whose node is not known, which only a view
// service that was restored from an old backup could produce, keeps its own name.
func nodeNames(peers []viewsvc.Peer) func(viewsvc.ReplicaID) string {
	return func(r viewsvc.ReplicaID) string {
		for _, p := range peers {
			if p.Replica == r {
				return string(p.Node)
			}
		}
		return string(r)
	}
}

// reportOf is the last report of a replica, zero when there was none.
func reportOf(vs viewsvc.VolumeStatus, r viewsvc.ReplicaID) viewsvc.ReplicaReport {
	i := slices.IndexFunc(vs.Reports, func(x viewsvc.ReplicaReport) bool { return x.Replica == r })
	if i < 0 {
		return viewsvc.ReplicaReport{Replica: r}
	}
	return vs.Reports[i]
}

// progressOf is how far the primary says that it has brought a replica.
func progressOf(vs viewsvc.VolumeStatus, r viewsvc.ReplicaID) (viewsvc.Progress, bool) {
	primary := reportOf(vs, vs.View.Primary)
	for _, list := range [][]viewsvc.Progress{primary.Lag, primary.Learners} {
		for _, p := range list {
			if p.Replica == r {
				return p, true
			}
		}
	}
	return viewsvc.Progress{}, false
}
