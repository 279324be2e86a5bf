package viewsvc

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// goldenSnapshot is what a release with snapshotFormat 1 wrote; every later one must read it.
const goldenSnapshot = `{"format":1,"cluster":"c","nodes":{"n1":{"id":"n1","addr":"n1:1","nbd":"n1:2"}},"volumes":{"v":{` +
	`"volume":{"id":"v","name":"vol0","size":1048576,"sync":"always","copies":1,"min_copies":1},` +
	`"assigned":[{"node":"n1","replica":"r1"}],` +
	`"view":{"volume":"v","num":1,"tenure":1,"primary":"r1","backups":null,"data_loss_gen":0},"replicas":{"r1":"n1"},` +
	`"history":[{"view":{"volume":"v","num":1,"tenure":1,"primary":"r1","backups":null,"data_loss_gen":0},` +
	`"kind":"first","reason":"new","time":"0001-01-01T00:00:00Z"}]}}}`

func TestSnapshotFormatIsStable(t *testing.T) {
	s := NewState()
	mustApply(t, s, Command{Op: OpInit, Cluster: "c"}, nodeCommand("n1"),
		Command{Op: OpCreate, Create: &Volume{ID: "v", Name: "vol0", Size: 1 << 20, Sync: SyncAlways, Copies: 1, MinCopies: 1}, Nodes: []NodeID{"n1"}},
		Command{Op: OpReplica, Volume: "v", Node: NodeInfo{ID: "n1"}, Replica: "r1"},
		viewCommand(Proposal{Volume: "v", Kind: KindFirst, Primary: "r1", Reason: "new"}))
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != goldenSnapshot {
		t.Errorf("the snapshot is\n%s\nand was\n%s", b, goldenSnapshot)
	}
	if _, err := DecodeState(strings.NewReader(goldenSnapshot)); err != nil {
		t.Error(err)
	}
}

func TestDamagedSnapshotIsRefused(t *testing.T) {
	for name, change := range map[string][2]string{
		"newer format":          {`"format":1`, `"format":2`},
		"cut off":               {`}}}`, ``},
		"another last view":     {`"history":[{"view":{"volume":"v","num":1,`, `"history":[{"view":{"volume":"v","num":2,`},
		"unknown member":        {`"replicas":{"r1":"n1"}`, `"replicas":{"r2":"n1"}`},
		"another volume":        {`{"id":"v"`, `{"id":"w"`},
		"tenure from beyond":    {`"tenure":1`, `"tenure":7`},
		"no history":            {`"history":[`, `"history":[],"old":[`},
		"null volume":           {`"volumes":{`, `"volumes":{"x":null,`},
		"odd size":              {`1048576`, `1048577`},
		"two views of a number": {`"history":[`, `"history":[{"view":{"volume":"v","num":1,"tenure":1,"primary":"r1"}},`},
	} {
		s := strings.ReplaceAll(goldenSnapshot, change[0], change[1])
		if s == goldenSnapshot {
			t.Fatalf("%s: the text to change is not there", name)
		}
		if _, err := DecodeState(strings.NewReader(s)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add([]byte(goldenSnapshot))
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeState(bytes.NewReader(b))
		if err != nil {
			return
		}
		// What is accepted can be worked with and written again.
		m := NewMonitor(s, testOptions)
		for range 2 * testOptions.TDead {
			m.Tick(false)
		}
		again, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeState(bytes.NewReader(again)); err != nil {
			t.Fatalf("its own snapshot is refused: %v", err)
		}
	})
}

// FuzzCommand applies arbitrary log entries: none may panic, and none may make a state that a snapshot cannot hold.
func FuzzCommand(f *testing.F) {
	for _, c := range []Command{
		nodeCommand("n9"), {Op: OpDelete, Volume: vol}, {Op: OpAssign, Volume: vol, Node: NodeInfo{ID: "n4"}},
		{Op: OpResize, Volume: vol, Size: 2 << 20}, {Op: OpGrown, Volume: vol, Size: 2 << 20},
		viewCommand(Proposal{Volume: vol, Expect: 2, Kind: KindPromote, Primary: "r2"}),
		{Op: OpCreate, Create: &Volume{ID: "w", Name: "w", Size: 1 << 20, Sync: SyncFlush, Copies: 2, MinCopies: 1}, Nodes: []NodeID{"n1", "n4"}},
	} {
		b, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := inView(t)
		cmd, err := decodeCommand(b)
		if err != nil {
			return
		}
		cur := s.volumes[vol].View
		r, err := s.Apply(cmd)
		if err == nil && cmd.Op == OpView {
			if err := checkStep(cur, r.View, *cmd.Proposal); err != nil {
				t.Fatal(err)
			}
		}
		b, err = s.Encode()
		if err != nil {
			t.Skip() // a time that JSON cannot hold
		}
		if _, err := DecodeState(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzPing feeds arbitrary pings to a leader.
func FuzzPing(f *testing.F) {
	b, err := json.Marshal(PingRequest{Node: "n1", Incarnation: "i", Addr: "n1:1", Replicas: []ReplicaReport{
		{Volume: vol, Replica: "r1", Role: RoleRecovering, View: 2, Dead: ids("r2")}, {Volume: vol, Replica: "r9"}, {Volume: "w", Replica: "x"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var req PingRequest
		if json.Unmarshal(b, &req) != nil {
			return
		}
		m := NewMonitor(inView(t), testOptions)
		for range 3 {
			if m.Ping(req) != nil {
				return
			}
			reply, err := m.Reply(req)
			if err != nil {
				t.Fatal(err)
			}
			req.Echo, req.News = reply.Seq, reply.News
			m.Tick(false)
		}
		for _, c := range m.Take().Commands {
			if r, err := m.state.Apply(c.Command); err == nil {
				m.Changed(c.Command, r)
			}
			m.Done(c.Key, nil)
		}
	})
}
