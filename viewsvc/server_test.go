package viewsvc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for on a slow machine; nothing takes so long when it works.
const patience = 20 * time.Second

func startServer(t *testing.T, opt ServerOptions) *Server {
	t.Helper()
	if opt.ID == "" {
		opt.ID = "v1"
	}
	if opt.Dir == "" {
		opt.Dir = t.TempDir()
	}
	if opt.Listen == "" {
		opt.Listen = "127.0.0.1:0"
	}
	s, err := StartServer(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func newClient(t *testing.T, servers ...string) *Client {
	t.Helper()
	c, err := NewClient(ClientOptions{Servers: servers, CallTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// eventually polls until ok, or fails the test.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// testNode is a node as the service sees one: it pings, formats what it is ordered to, reports its view and role
// as a replica would, and recruits at once. Its address is a listening socket.
type testNode struct {
	t      *testing.T
	id     NodeID
	client *Client
	ln     net.Listener
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	req      PingRequest
	orders   map[VolumeID]VolumeOrders
	viewSeen map[ViewNum]time.Time // when this node heard of a view
	lastErr  error
	disk     map[VolumeID]ReplicaReport
}

func startNode(t *testing.T, id NodeID, disk map[VolumeID]ReplicaReport, servers ...string) *testNode {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(ClientOptions{Servers: servers})
	if err != nil {
		t.Fatal(err)
	}
	if disk == nil {
		disk = map[VolumeID]ReplicaReport{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &testNode{t: t, id: id, client: c, ln: ln, cancel: cancel, done: make(chan struct{}),
		orders: map[VolumeID]VolumeOrders{}, viewSeen: map[ViewNum]time.Time{}, disk: disk}
	n.req = PingRequest{Node: id, Incarnation: uuid.NewString(), PID: 1, Addr: ln.Addr().String(), NBD: ln.Addr().String()}
	for vol, r := range disk {
		if r.Role == RolePrimary {
			r.Role = RoleRecovering
			disk[vol] = r
		}
	}
	go n.run(ctx)
	t.Cleanup(n.kill)
	return n
}

// kill ends the node as SIGKILL does: its sockets close, and it says nothing.
func (n *testNode) kill() {
	n.ln.Close()
	n.cancel()
	<-n.done
	n.client.Close()
}

func (n *testNode) run(ctx context.Context) {
	defer close(n.done)
	for ctx.Err() == nil {
		n.mu.Lock()
		n.req.Seq++
		n.req.Replicas = nil
		for _, r := range n.disk {
			n.req.Replicas = append(n.req.Replicas, r)
		}
		req := n.req
		n.mu.Unlock()
		reply, err := n.client.Ping(ctx, req)
		n.mu.Lock()
		n.lastErr = err
		n.mu.Unlock()
		if err != nil {
			continue
		}
		n.obey(ctx, reply)
	}
}

func (n *testNode) obey(ctx context.Context, reply PingReply) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.req.Cluster, n.req.Echo, n.req.News = reply.Cluster, reply.Seq, reply.News
	clear(n.orders)
	for _, o := range reply.Volumes {
		id := o.Volume.ID
		n.orders[id] = o
		r, have := n.disk[id]
		switch {
		case o.Delete:
			delete(n.disk, id)
			continue
		case !have && o.Replica != "":
			continue // it is gone; the service is to say when to make another
		case !have:
			r = ReplicaReport{Volume: id, Replica: ReplicaID(uuid.NewString()), Role: RoleBlank}
		case o.View.Num > r.View:
			if _, ok := n.viewSeen[o.View.Num]; !ok {
				n.viewSeen[o.View.Num] = time.Now()
			}
			r.View, r.Tenure = o.View.Num, o.View.Tenure
			switch {
			case o.View.Primary == r.Replica:
				r.Role, r.LogEnd = RolePrimary, max(r.LogEnd, 1)
			case o.View.Has(r.Replica):
				r.Role, r.LogEnd = RoleBackup, max(r.LogEnd, 1)
			default:
				r.Role = RoleLearner
			}
		}
		n.disk[id] = r
		if r.Role != RolePrimary || o.View.Primary != r.Replica {
			continue
		}
		p := Proposal{Cluster: reply.Cluster, Volume: id, Expect: o.View.Num, Tenure: o.View.Tenure, From: r.Replica, Primary: r.Replica}
		switch {
		case o.Handover != "":
			p.Kind, p.Primary = KindHandover, o.Handover
			for _, m := range o.View.Members() {
				if m != o.Handover {
					p.Backups = append(p.Backups, m)
				}
			}
		case len(o.Recruit) > 0:
			p.Kind, p.Backups = KindAdd, append(slices.Clone(o.View.Backups), o.Recruit...)
		default:
			continue
		}
		go n.client.Propose(ctx, p) // what comes of it is heard by the next ping
	}
}

func (n *testNode) takeDisk() map[VolumeID]ReplicaReport {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.disk
}

func (n *testNode) err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lastErr
}

func createVolume(t *testing.T, c *Client, v Volume) Volume {
	t.Helper()
	var made Volume
	eventually(t, "volume "+v.Name+" is created", func() bool {
		var err error
		made, err = c.CreateVolume(t.Context(), v)
		if err != nil && !errors.Is(err, ErrNotEnoughNodes) {
			t.Fatal(err)
		}
		return err == nil
	})
	return made
}

// waitView waits for a view that satisfies ok.
func waitView(t *testing.T, c *Client, name, what string, ok func(View) bool) VolumeStatus {
	t.Helper()
	var s VolumeStatus
	eventually(t, what, func() bool {
		var err error
		if s, err = c.Watch(t.Context(), name, 0); err != nil {
			t.Fatal(err)
		}
		return ok(s.View)
	})
	return s
}

func twoMembers(v View) bool { return len(v.Backups) == 1 }

func nodeOf(s VolumeStatus, r ReplicaID) NodeID {
	for _, p := range s.Peers {
		if p.Replica == r {
			return p.Node
		}
	}
	return ""
}

func TestKilledPrimaryIsReplacedAtOnce(t *testing.T) {
	s := startServer(t, ServerOptions{})
	c := newClient(t, s.Addr())
	nodes := map[NodeID]*testNode{}
	for _, id := range []NodeID{"n1", "n2"} {
		nodes[id] = startNode(t, id, nil, s.Addr())
	}
	eventually(t, "both nodes are alive", func() bool {
		st, err := c.Status(t.Context())
		return err == nil && len(st.Nodes) == 2 && st.Nodes[0].Alive && st.Nodes[1].Alive
	})
	createVolume(t, c, Volume{Name: "vol0", Size: 1 << 20})
	before := waitView(t, c, "vol0", "two members", twoMembers)
	old := nodeOf(before, before.View.Primary)
	start := time.Now()
	nodes[old].kill()
	after := waitView(t, c, "vol0", "another primary", func(v View) bool { return v.Num > before.View.Num })
	if after.View.Primary != before.View.Backups[0] || len(after.View.Backups) != 0 {
		t.Fatalf("view %+v follows %+v", after.View, before.View)
	}
	successor := nodes[nodeOf(after, after.View.Primary)]
	eventually(t, "the successor hears of it", func() bool {
		successor.mu.Lock()
		defer successor.mu.Unlock()
		return !successor.viewSeen[after.View.Num].IsZero()
	})
	took := successor.viewSeen[after.View.Num].Sub(start)
	t.Logf("kill to the successor's hearing of view %d: %s", after.View.Num, took)
	if took > time.Second {
		t.Errorf("that took %s: it waited for silence", took)
	}
}

func TestServerRestartKeepsStateAndCluster(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, ServerOptions{Dir: dir})
	c := newClient(t, s.Addr())
	n := startNode(t, "n1", nil, s.Addr())
	made := createVolume(t, c, Volume{Name: "vol0", Size: 1 << 20})
	before := waitView(t, c, "vol0", "a first view", func(v View) bool { return v.Num == 1 })
	cluster := s.Cluster()
	n.kill()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	start := time.Now()
	s = startServer(t, ServerOptions{Dir: dir})
	c = newClient(t, s.Addr())
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("restart to the first answer: %s", time.Since(start))
	if st.Cluster != cluster || len(st.Volumes) != 1 || st.Volumes[0].Volume != made || !st.Volumes[0].View.Equal(before.View) {
		t.Errorf("after the restart: %+v; before: cluster %s %+v", st, cluster, before)
	}
	if st.Nodes[0].Addr != n.req.Addr || st.Nodes[0].Alive {
		t.Errorf("the node after the restart: %+v", st.Nodes[0])
	}
}

// reserve gives addresses for servers that must know each other's before they start.
func reserve(t *testing.T, n int) []net.Listener {
	t.Helper()
	var lns []net.Listener
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		lns = append(lns, ln)
	}
	return lns
}

func TestGroupOfThreeSurvivesTheLeader(t *testing.T) {
	lns := reserve(t, 3)
	servers := map[string]*Server{}
	var addrs []string
	for i, ln := range lns {
		peers := map[string]string{}
		for j, other := range lns {
			if i != j {
				peers[fmt.Sprintf("v%d", j+1)] = other.Addr().String()
			}
		}
		id := fmt.Sprintf("v%d", i+1)
		servers[id] = startServer(t, ServerOptions{ID: id, Listener: ln, Peers: peers})
		addrs = append(addrs, ln.Addr().String())
	}
	c := newClient(t, addrs...)
	n := startNode(t, "n1", nil, addrs...)
	createVolume(t, c, Volume{Name: "vol0", Size: 1 << 20, Copies: 1})
	before := waitView(t, c, "vol0", "a first view", func(v View) bool { return v.Num == 1 })
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs { // whoever is asked knows whom to ask
		if got, err := newClient(t, addr).Watch(t.Context(), "vol0", 0); err != nil || !got.View.Equal(before.View) {
			t.Errorf("asked at %s: view %+v, error %v", addr, got.View, err)
		}
	}
	for _, srv := range st.Servers {
		if srv.Leader {
			servers[srv.ID].Close()
		}
	}
	after, err := c.Watch(t.Context(), "vol0", 0)
	if err != nil {
		t.Fatal(err)
	}
	if !after.View.Equal(before.View) {
		t.Errorf("the view is %+v, was %+v", after.View, before.View)
	}
	if _, err := c.CreateVolume(t.Context(), Volume{Name: "vol0", Size: 1 << 20}); !errors.Is(err, ErrExists) && !errors.Is(err, ErrNotEnoughNodes) {
		t.Errorf("the name was taken: %v", err)
	}
	eventually(t, "the node pings the new leader", func() bool {
		st, err := c.Status(t.Context())
		return err == nil && st.Nodes[0].Alive
	})
	if err := n.err(); err != nil {
		t.Error(err)
	}
	createVolume(t, c, Volume{Name: "vol1", Size: 1 << 20, Copies: 1})
}
