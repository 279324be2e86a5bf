package main

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lockstep/viewsvc"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// healthy is a volume with two copies on n1 (primary) and n2, and everything in order.
func healthy() viewsvc.VolumeStatus {
	return viewsvc.VolumeStatus{
		Volume: viewsvc.Volume{ID: "V", Name: "vol0", Size: 1 << 30, Sync: viewsvc.SyncAlways, Copies: 2, MinCopies: 1},
		View:   viewsvc.View{Volume: "V", Num: 7, Tenure: 5, Primary: "r1", Backups: []viewsvc.ReplicaID{"r2"}},
		Peers: []viewsvc.Peer{
			{Replica: "r1", Node: "n1", Addr: "127.0.0.1:7501", NBD: "127.0.0.1:10811", Alive: true},
			{Replica: "r2", Node: "n2", Addr: "127.0.0.1:7502", NBD: "127.0.0.1:10812", Alive: true},
		},
		Reports: []viewsvc.ReplicaReport{
			{Volume: "V", Replica: "r1", Role: viewsvc.RolePrimary, View: 7, Tenure: 5, LogEnd: 1000, Commit: 998, Applied: 990,
				Lag: []viewsvc.Progress{{Replica: "r2", Match: 998}}},
			{Volume: "V", Replica: "r2", Role: viewsvc.RoleBackup, View: 7, Tenure: 5, LogEnd: 999, Commit: 997, Applied: 980},
		},
	}
}

// alone is healthy after n2 died and left the view.
func alone() viewsvc.VolumeStatus {
	vs := healthy()
	vs.View.Num, vs.View.Backups = 8, []viewsvc.ReplicaID{}
	vs.Peers[1].Alive = false
	vs.Reports[0].View, vs.Reports[0].Lag = 8, nil
	return vs
}

// copying is alone while a new copy on n3 is being made.
func copying() viewsvc.VolumeStatus {
	vs := alone()
	vs.Peers = append(vs.Peers, viewsvc.Peer{Replica: "r3", Node: "n3", Addr: "127.0.0.1:7503", NBD: "127.0.0.1:10813", Alive: true})
	vs.Reports[0].Learners = []viewsvc.Progress{{Replica: "r3", Match: 0, BytesDone: 410 << 20, BytesLeft: 590 << 20, Rate: 52e6}}
	vs.Reports = append(vs.Reports, viewsvc.ReplicaReport{Volume: "V", Replica: "r3", Role: viewsvc.RoleLearner})
	return vs
}

func change(vs viewsvc.VolumeStatus, f func(*viewsvc.VolumeStatus)) viewsvc.VolumeStatus {
	f(&vs)
	return vs
}

func TestVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		vs   viewsvc.VolumeStatus
		want string // the verdict line
		exit int
	}{
		"safe": {healthy(), "vol0 SAFE view 7 primary n1 backups n2 lag 0", 0},
		"lag": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Reports[0].Lag[0].BytesLeft = 3 << 20 }),
			"vol0 SAFE view 7 primary n1 backups n2 lag 3 MiB", 0},
		"one copy, as asked": {change(alone(), func(vs *viewsvc.VolumeStatus) { vs.Volume.Copies = 1; vs.Peers = vs.Peers[:1] }),
			"vol0 SAFE view 8 primary n1 lag 0", 0},
		"alone":   {alone(), "vol0 DEGRADED: survives 0 more failures; n2 down", 1},
		"copying": {copying(), "vol0 DEGRADED: survives 0 more failures; n2 down; n3 copying 41 % 52 MB/s, 12 s left", 1},
		"slow copy": {change(copying(), func(vs *viewsvc.VolumeStatus) { vs.Reports[0].Learners[0].Rate = 2e6 }),
			"vol0 DEGRADED: survives 0 more failures; n2 down; n3 copying 41 % 2 MB/s, 5 min left", 1},
		"backup dead but still in the view": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Peers[1].Alive = false }),
			"vol0 DEGRADED: survives 0 more failures; n2 down", 1},
		"two of three": {change(copying(), func(vs *viewsvc.VolumeStatus) {
			vs.Volume.Copies = 3
			vs.View.Backups = []viewsvc.ReplicaID{"r3"}
			vs.Reports[0].Learners = nil
			vs.Reports[2].Role = viewsvc.RoleBackup
		}), "vol0 DEGRADED: survives 1 more failure; n2 down", 1},
		"primary dead": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Peers[0].Alive = false }),
			"vol0 UNAVAILABLE: primary n1 is down, another is being promoted; n1 down", 2},
		"all dead": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Peers[0].Alive, vs.Peers[1].Alive = false, false }),
			"vol0 UNAVAILABLE: every member of view 7 is down; start n1 or n2 again; n1 down; n2 down", 2},
		"opening": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Reports[0].Role = viewsvc.RoleOpening }),
			"vol0 UNAVAILABLE: primary n1 is not open yet (opening)", 2},
		"primary of an older tenure": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Reports[0].Tenure = 4 }),
			"vol0 UNAVAILABLE: primary n1 is not open yet (primary)", 2},
		"not heard of": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Reports = nil }),
			"vol0 UNAVAILABLE: primary n1 has not reported yet", 2},
		"held": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Held = true; vs.Reports[0].Role = viewsvc.RoleHeld }),
			"vol0 UNAVAILABLE: held, writes that were not flushed may be lost; to go on: lockstep volume resume vol0", 2},
		"poisoned": {change(healthy(), func(vs *viewsvc.VolumeStatus) {
			vs.Reports[0].Role, vs.Reports[0].Error = viewsvc.RolePoisoned, "fdatasync: input/output error"
		}), "vol0 UNAVAILABLE: the storage of the primary failed; n1 poisoned: fdatasync: input/output error", 2},
		"backup poisoned": {change(alone(), func(vs *viewsvc.VolumeStatus) {
			vs.Reports[1].Role, vs.Reports[1].Error = viewsvc.RolePoisoned, "fdatasync: input/output error"
		}), "vol0 DEGRADED: survives 0 more failures; n2 poisoned: fdatasync: input/output error", 1},
		"full": {change(alone(), func(vs *viewsvc.VolumeStatus) {
			vs.Peers[1].Alive, vs.Reports[1].Role, vs.Reports[1].Full = true, viewsvc.RoleLearner, true
		}), "vol0 DEGRADED: survives 0 more failures; n2 learner; n2's disk is full", 1},
		"all full": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Reports[0].Full, vs.Reports[1].Full = true, true }),
			"vol0 SAFE view 7 primary n1 backups n2 lag 0; n1's disk is full; n2's disk is full", 0},
		"a copy that cannot be made": {change(alone(), func(vs *viewsvc.VolumeStatus) {
			vs.Peers, vs.Reports, vs.Troubles = vs.Peers[:1], vs.Reports[:1], []viewsvc.Trouble{{Node: "n2", Error: "file too large"}}
		}), "vol0 DEGRADED: survives 0 more failures; n2 has no copy: file too large", 1},
		"too few nodes": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Volume.Copies = 3 }),
			"vol0 DEGRADED: survives 1 more failure; no node has one of the 3 copies yet", 1},
		"no view is made": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Problem = "the view service lost state" }),
			"vol0 UNAVAILABLE: the view service lost state", 2},
		"too few for writes": {change(alone(), func(vs *viewsvc.VolumeStatus) { vs.Volume.MinCopies = 2 }),
			"vol0 UNAVAILABLE: 1 of the 2 copies that writes need; start a node; n2 down", 2},
		"no view": {change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.View = viewsvc.View{}; vs.Peers, vs.Reports = nil, nil }),
			"vol0 UNAVAILABLE: no view yet, its copies are being made", 2},
		"deleting alarms nobody": {change(alone(), func(vs *viewsvc.VolumeStatus) { vs.Deleting = true }),
			"vol0 UNAVAILABLE: it is being deleted", 0},
		"deleting waits": {change(alone(), func(vs *viewsvc.VolumeStatus) { vs.Deleting, vs.Problem = true, "node n2 is down" }),
			"vol0 UNAVAILABLE: it is being deleted; node n2 is down", 0},
	} {
		t.Run(name, func(t *testing.T) {
			report, ok := newStatusReport(viewsvc.ClusterStatus{Volumes: []viewsvc.VolumeStatus{c.vs}}, "vol0")
			if !ok || len(report.Volumes) != 1 {
				t.Fatalf("volumes: %v, ok %t", report.Volumes, ok)
			}
			if got := verdictLine(report.Volumes[0]); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if got := exitCode(statusExit(report)); got != c.exit {
				t.Errorf("exit code %d, want %d", got, c.exit)
			}
		})
	}
}

// TestWorstVolumeDecides: one exit code for many volumes.
func TestWorstVolumeDecides(t *testing.T) {
	down := change(healthy(), func(vs *viewsvc.VolumeStatus) { vs.Peers[0].Alive = false })
	report, _ := newStatusReport(viewsvc.ClusterStatus{Volumes: []viewsvc.VolumeStatus{healthy(), down, alone()}}, "")
	if got := exitCode(statusExit(report)); got != exitUnavailable {
		t.Errorf("exit code %d, want %d", got, exitUnavailable)
	}
	if _, ok := newStatusReport(viewsvc.ClusterStatus{Volumes: []viewsvc.VolumeStatus{healthy()}}, "vol1"); ok {
		t.Error("a volume that does not exist has a status")
	}
}

func cluster(volumes ...viewsvc.VolumeStatus) viewsvc.ClusterStatus {
	return viewsvc.ClusterStatus{
		Cluster: "C",
		Volumes: volumes,
		Nodes: []viewsvc.NodeStatus{
			{ID: "n1", Alive: true, PID: 101, Addr: "127.0.0.1:7501", NBD: "127.0.0.1:10811"},
			{ID: "n2", Alive: false, PID: 102, Addr: "127.0.0.1:7502", NBD: "127.0.0.1:10812"},
			{ID: "n3", Alive: true, PID: 103, Addr: "127.0.0.1:7503", NBD: "127.0.0.1:10813"},
		},
		Servers: []viewsvc.ServerStatus{{ID: "v1", Addr: "127.0.0.1:7400", Leader: true}, {ID: "v2", Addr: "127.0.0.1:7401"}},
	}
}

// TestStatusShapesAreStable compares what programs and people see with what they saw before.
func TestStatusShapesAreStable(t *testing.T) {
	for name, cs := range map[string]viewsvc.ClusterStatus{"copying": cluster(copying()), "empty": {}} {
		report, _ := newStatusReport(cs, "")
		var text, js strings.Builder
		writeStatus(&text, report)
		if err := writeJSON(&js, report); err != nil {
			t.Fatal(err)
		}
		golden(t, "status_"+name+".txt", text.String())
		golden(t, "status_"+name+".json", js.String())
	}
}

// TestJSONListsAreNeverNull: a program can range over them without a check.
func TestJSONListsAreNeverNull(t *testing.T) {
	bare := viewsvc.VolumeStatus{Volume: viewsvc.Volume{Name: "vol0"}}
	report, _ := newStatusReport(viewsvc.ClusterStatus{Volumes: []viewsvc.VolumeStatus{bare}}, "")
	for _, v := range []any{report, newHistory(nil), newHistory([]viewsvc.HistoryEntry{{}})} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "null") {
			t.Errorf("%s", b)
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s is missing; make it with go test -update, and look at it", file)
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}
