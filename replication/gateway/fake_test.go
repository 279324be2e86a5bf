package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/replication/exportname"
	"lockstep/viewsvc"
)

// fakeViews is a view service in memory.
type fakeViews struct {
	// mu guards everything below.
	mu      sync.Mutex
	volumes map[string]viewsvc.VolumeStatus
	changed chan struct{}
	down    bool
	loses   viewsvc.ClaimAct // whose answers are lost
	heard   uint64           // the latest news that a watcher has come back with
}

func newFakeViews() *fakeViews {
	return &fakeViews{volumes: make(map[string]viewsvc.VolumeStatus), changed: make(chan struct{})}
}

// change edits a volume's status and tells the watchers.
func (f *fakeViews) change(name string, edit func(*viewsvc.VolumeStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.volumes[name]
	st.Peers = slices.Clone(st.Peers)
	edit(&st)
	st.News++
	f.volumes[name] = st
	close(f.changed)
	f.changed = make(chan struct{})
}

// allHeard tells whether a volume's watcher has acted on the newest status.
func (f *fakeViews) allHeard(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heard == f.volumes[name].News
}

func (f *fakeViews) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.volumes, name)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeViews) setDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
	close(f.changed)
	f.changed = make(chan struct{})
}

// lose has the answers to an act of claiming lost from now on.
func (f *fakeViews) lose(act viewsvc.ClaimAct) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loses = act
}

func (f *fakeViews) claim(name string) viewsvc.Claim {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.volumes[name].Volume.Claim
}

func (f *fakeViews) Watch(ctx context.Context, name string, news uint64) (viewsvc.VolumeStatus, error) {
	hold := time.After(50 * time.Millisecond)
	for {
		f.mu.Lock()
		f.heard = max(f.heard, news)
		st, ok := f.volumes[name]
		changed, down := f.changed, f.down
		f.mu.Unlock()
		switch {
		case down:
			return viewsvc.VolumeStatus{}, errors.New("nobody is there")
		case !ok:
			return viewsvc.VolumeStatus{}, fmt.Errorf("volume %s: %w", name, viewsvc.ErrNotFound)
		case st.News != news:
			return st, nil
		}
		select {
		case <-ctx.Done():
			return viewsvc.VolumeStatus{}, ctx.Err()
		case <-hold:
			return st, nil
		case <-changed:
		}
	}
}

func (f *fakeViews) Status(context.Context) (viewsvc.ClusterStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return viewsvc.ClusterStatus{}, errors.New("nobody is there")
	}
	var c viewsvc.ClusterStatus
	for _, st := range f.volumes {
		c.Volumes = append(c.Volumes, st)
	}
	return c, nil
}

func (f *fakeViews) Claim(_ context.Context, name string, c viewsvc.ClaimChange) (made viewsvc.Claim, err error) {
	f.mu.Lock()
	down, lost := f.down, f.loses == c.Act
	claim := f.volumes[name].Volume.Claim
	f.mu.Unlock()
	if lost {
		defer func() { made, err = viewsvc.Claim{}, viewsvc.ErrTimeout }()
	}
	switch {
	case down:
		return viewsvc.Claim{}, errors.New("nobody is there")
	case c.Act == viewsvc.ClaimAsk && claim.Owner != "" && claim.Owner != c.Owner:
		return viewsvc.Claim{}, fmt.Errorf("%w by %v", viewsvc.ErrClaimed, claim)
	case c.Act == viewsvc.ClaimAsk && claim.Owner == "":
		claim = viewsvc.Claim{Num: claim.Num, Era: claim.Era, Owner: c.Owner, Host: c.Host, PID: c.PID}
	case c.Act == viewsvc.ClaimTakeOver:
		claim = viewsvc.Claim{Num: claim.Num, Era: claim.Era + 1, Owner: c.Owner, Host: c.Host, PID: c.PID}
	case c.Act == viewsvc.ClaimHold && !claim.Held:
		claim.Held, claim.Era = true, claim.Era+1
	case c.Act == viewsvc.ClaimRelease && claim.Owner == c.Owner:
		claim = viewsvc.Claim{Num: claim.Num, Era: claim.Era}
	case c.Act == viewsvc.ClaimEvict:
		claim = viewsvc.Claim{Num: claim.Num, Era: claim.Era + 1}
	default:
		return claim, nil
	}
	claim.Num++
	f.change(name, func(st *viewsvc.VolumeStatus) { st.Volume.Claim = claim })
	return claim, nil
}

// fakeDisk is what the fake nodes of a cluster share: a replicated disk of which every member has everything.
type fakeDisk struct {
	// mu guards everything below.
	mu          sync.Mutex
	data        []byte
	generations map[string]uint64 // newest attachment of each session, cluster-wide
	unfenced    bool              // nodes do not look at generations: the bug of hazard 2
	failing     map[uint64]error  // by offset
}

func (d *fakeDisk) block(offset, length int) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return string(d.data[offset : offset+length])
}

// fakeNode is a node that can be primary: an NBD server over the shared disk.
type fakeNode struct {
	name string
	disk *fakeDisk
	addr string
	srv  *nbd.Server

	// mu guards everything below.
	mu      sync.Mutex
	changed *sync.Cond
	primary bool
	barred  string // a session that is refused
	hint    string // what is said to those who come when it is not primary
	paused  bool   // requests are received and not carried out
	mute    bool   // requests are carried out and not answered
	halfway bool   // those that change the disk are carried out and not answered; reads are answered
	arrived []blockdev.Request
	ids     []blockdev.SessionID // of attachments
	clients map[*fakeSession]blockdev.Client
}

func startNode(tb testing.TB, disk *fakeDisk, name string, listen net.Listener) *fakeNode {
	tb.Helper()
	n := &fakeNode{name: name, disk: disk, clients: make(map[*fakeSession]blockdev.Client)}
	n.changed = sync.NewCond(&n.mu)
	srv, err := nbd.NewServer(nbd.ServerOptions{Exporter: n})
	if err != nil {
		tb.Fatal(err)
	}
	n.srv = srv
	n.addr = listen.Addr().String()
	if listen.Addr().Network() == "unix" {
		n.addr = "unix:" + n.addr
	}
	served := make(chan struct{})
	go func() { defer close(served); srv.Serve(listen) }()
	tb.Cleanup(func() { n.kill(); <-served })
	return n
}

// kill ends the node as kill -9 does, as far as others can see.
func (n *fakeNode) kill() {
	n.set(func() { n.primary, n.paused = false, false })
	n.srv.Close()
}

// set changes the node's behaviour.
func (n *fakeNode) set(change func()) {
	n.mu.Lock()
	change()
	n.mu.Unlock()
	n.changed.Broadcast()
}

// depose closes all sessions, as a node does that is no primary any more.
func (n *fakeNode) depose() {
	n.mu.Lock()
	n.primary = false
	var clients []blockdev.Client
	for _, c := range n.clients {
		clients = append(clients, c)
	}
	n.mu.Unlock()
	for _, c := range clients {
		c.Abort(blockdev.ErrNotPrimary)
	}
}

func (n *fakeNode) seen() []blockdev.Request {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.arrived)
}

func (n *fakeNode) sessions() []blockdev.SessionID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.ids)
}

func (n *fakeNode) List(context.Context) ([]nbd.ExportInfo, error) { return nil, nil }

func (n *fakeNode) Open(_ context.Context, name string) (nbd.Export, error) {
	volume, id, err := exportname.Parse(name)
	if err != nil || volume != "vol0" {
		return nbd.Export{}, fmt.Errorf("%q: %w", name, nbd.ErrUnknownExport)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hint == "" && !n.primary || id.Name == n.barred && id.Name != "" {
		return nbd.Export{}, blockdev.ErrNotPrimary
	}
	return nbd.Export{Name: name, Device: n, Session: id}, nil
}

func (n *fakeNode) Geometry() blockdev.Geometry {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	return blockdev.Geometry{Size: uint64(len(n.disk.data))}
}

// grow makes the volume larger: first its disk, then what the view service says.
func (c *cluster) grow(bytes uint64) {
	c.disk.mu.Lock()
	c.disk.data = append(c.disk.data, make([]byte, bytes)...)
	size := uint64(len(c.disk.data))
	c.disk.mu.Unlock()
	c.views.change("vol0", func(st *viewsvc.VolumeStatus) { st.Volume.Size = size })
}

func (n *fakeNode) Attach(_ context.Context, id blockdev.SessionID, c blockdev.Client) (blockdev.Session, error) {
	n.mu.Lock()
	if !n.primary {
		defer n.mu.Unlock()
		return nil, &blockdev.MovedError{To: n.hint}
	}
	n.mu.Unlock()
	n.disk.mu.Lock()
	if id != (blockdev.SessionID{}) && n.disk.generations[id.Name] >= id.Generation {
		n.disk.mu.Unlock()
		return nil, blockdev.ErrSessionClosed
	}
	n.disk.generations[id.Name] = id.Generation
	n.disk.mu.Unlock()
	s := &fakeSession{n: n, id: id, client: c}
	n.mu.Lock()
	n.ids = append(n.ids, id)
	n.clients[s] = c
	n.mu.Unlock()
	return s, nil
}

type fakeSession struct {
	n      *fakeNode
	id     blockdev.SessionID
	client blockdev.Client
	done   []*blockdev.Request
}

func (s *fakeSession) Submit(burst []*blockdev.Request) {
	n, d := s.n, s.n.disk
	n.mu.Lock()
	if !n.mute && !n.paused && n.arrived == nil { // not recording, not to allocate
		n.mu.Unlock()
	} else {
		for _, r := range burst {
			seen := *r
			seen.Data = slices.Clone(r.Data)
			n.arrived = append(n.arrived, seen)
		}
		for n.paused {
			n.changed.Wait()
		}
		n.mu.Unlock()
	}
	d.mu.Lock()
	s.done = s.done[:0]
	for _, r := range burst {
		if !d.unfenced && d.generations[s.id.Name] != s.id.Generation {
			break // fenced
		}
		switch {
		case d.failing[r.Offset] != nil:
			r.Err = d.failing[r.Offset]
		case r.Op == blockdev.OpFlush, r.Op == blockdev.OpCache:
			r.Err = nil
		case r.Offset+uint64(r.Length) > uint64(len(d.data)):
			r.Err = blockdev.ErrOutOfRange
		case r.Op == blockdev.OpRead:
			r.Err = nil
			copy(r.Data, d.data[r.Offset:])
		case r.Op == blockdev.OpExtents:
			r.Err = nil
			r.AddExtent(1, blockdev.ExtentHole)
			r.AddExtent(r.Length-1, blockdev.ExtentZero)
		case r.Op == blockdev.OpWrite:
			r.Err = nil
			copy(d.data[r.Offset:], r.Data)
		default:
			r.Err = nil
			clear(d.data[r.Offset:][:r.Length])
		}
		s.done = append(s.done, r)
	}
	d.mu.Unlock()
	n.mu.Lock()
	mute, halfway := n.mute, n.halfway
	n.mu.Unlock()
	if halfway {
		s.done = slices.DeleteFunc(s.done, func(r *blockdev.Request) bool { return r.Op.Mutates() })
	}
	if !mute && len(s.done) > 0 {
		s.client.Complete(s.done)
	}
}

func (s *fakeSession) Close() {
	s.n.mu.Lock()
	defer s.n.mu.Unlock()
	delete(s.n.clients, s)
}

// cluster is a gateway over fake nodes with one volume, vol0.
type cluster struct {
	tb    testing.TB
	views *fakeViews
	disk  *fakeDisk
	nodes []*fakeNode
	gw    *Gateway
	addr  string

	// mu guards everything below.
	mu     sync.Mutex
	events []Event
}

const fakeDiskBytes = 8 << 20

func startCluster(tb testing.TB, nodes int, adjust func(*Options)) *cluster {
	tb.Helper()
	c := &cluster{tb: tb, views: newFakeViews()}
	c.disk = &fakeDisk{data: make([]byte, fakeDiskBytes), generations: make(map[string]uint64)}
	c.views.change("vol0", func(st *viewsvc.VolumeStatus) {
		st.Volume = viewsvc.Volume{ID: "id-of-vol0", Name: "vol0", Size: fakeDiskBytes}
	})
	dir := tb.TempDir()
	for i := range nodes {
		l, err := net.Listen("unix", filepath.Join(dir, fmt.Sprintf("n%d", i)))
		if i%2 == 1 {
			l, err = net.Listen("tcp", "127.0.0.1:0")
		}
		if err != nil {
			tb.Fatal(err)
		}
		c.addNode(l)
	}
	c.moveTo(0)
	opts := Options{Views: c.views, Listen: "unix:" + filepath.Join(dir, "gw"), OnEvent: c.onEvent}
	if adjust != nil {
		adjust(&opts)
	}
	gw, err := Start(tb.Context(), opts)
	if err != nil {
		tb.Fatal(err)
	}
	c.gw = gw
	c.addr = gw.Addr().String()
	if gw.Addr().Network() == "unix" {
		c.addr = "unix:" + c.addr
	}
	tb.Cleanup(func() {
		for _, n := range c.nodes {
			n.set(func() { n.paused = false })
		}
		gw.Close(context.Background())
	})
	return c
}

func (c *cluster) addNode(l net.Listener) {
	n := startNode(c.tb, c.disk, fmt.Sprintf("n%d", len(c.nodes)), l)
	c.nodes = append(c.nodes, n)
	c.views.change("vol0", func(st *viewsvc.VolumeStatus) {
		st.Peers = append(st.Peers, viewsvc.Peer{Replica: viewsvc.ReplicaID(n.name), NBD: n.addr})
	})
}

// moveTo makes a node primary, in a new tenure. The old primary is not told.
func (c *cluster) moveTo(i int) {
	n := c.nodes[i]
	n.set(func() { n.primary = true })
	c.views.change("vol0", func(st *viewsvc.VolumeStatus) {
		st.View.Num++
		st.View.Tenure, st.View.Primary = st.View.Num, viewsvc.ReplicaID(n.name)
	})
}

func (c *cluster) onEvent(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
}

func (c *cluster) count(kind EventKind) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// dial connects a client to the gateway.
func (c *cluster) dial() *nbd.Disk {
	c.tb.Helper()
	d, err := nbd.OpenDisk(c.tb.Context(), c.addr, nbd.ClientOptions{Export: "vol0"})
	if err != nil {
		c.tb.Fatal(err)
	}
	c.tb.Cleanup(func() { d.Close() })
	return d
}

// eventually polls for something that another goroutine brings about.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			tb.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond) // between polls of what other goroutines do
	}
}
