package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"lockstep/blockdev"
	"lockstep/replication"
	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// What every volume of a run is.
const (
	clusterID   = "11111111-1111-1111-1111-111111111111"
	volumeID    = viewsvc.VolumeID("22222222-2222-2222-2222-222222222222")
	volumeName  = "vol0"
	volumeDir   = "volume"
	peerPort    = "7500"
	clientPort  = "10810"
	makePause   = 500 * time.Millisecond
	pingPause   = 100 * time.Millisecond
	maxGreeting = 64
)

// nobody is a context that never ends.
var nobody = context.Background()

func hostOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	return host
}

// machine is a computer with a disk, on which a node's process runs now and then. The process is replication.Node but
// for its sockets: real replicas on real storage, pings, orders, streams from peers.
type machine struct {
	c    *cluster
	w    *world
	name string

	fs      *memfs.FS
	boot    int // counts the machine's starts
	copies  int // replicas that were ever made here
	cluster string
	slow    int // disk operations take so many times as long

	p       *proc // nil: no process
	powered bool
	runs    int // processes that were ever started
	stopped time.Duration
	store   *blockdev.Store
	replica *replication.Replica
	lastOps int
	flipped bool            // a bit of its image
	told    viewsvc.ViewNum // newest view that the view service told it
	opening time.Duration   // since when its replica is opening; 0: it is not
	empty   bool            // the disk was replaced, and has no replica yet
}

func newMachine(c *cluster, name string) *machine {
	m := &machine{c: c, w: c.w, name: name, fs: memfs.New(), powered: true, slow: 1}
	return m
}

// work is how long the disk operations took since the last call.
func (m *machine) work() time.Duration {
	n := m.fs.Ops()
	d := time.Duration(n-m.lastOps) * time.Duration(m.slow) * m.c.diskTime
	m.lastOps = n
	if d > 0 {
		d = m.w.between(d/2, d+d/2)
	}
	return d
}

// start starts the node's process.
func (m *machine) start() {
	if m.p != nil {
		return
	}
	if !m.powered {
		m.powered = true
		m.boot++
	}
	m.c.net.back(m.name)
	m.runs++
	m.p = m.w.newProc(fmt.Sprintf("%s.%d", m.name, m.runs))
	m.p.work = m.work
	m.p.jitter = m.c.jitter
	m.lastOps = m.fs.Ops()
	m.w.tr("%s starts", m.p.name)
	p := m.p
	p.Go(func() {
		if err := m.open(viewsvc.Volume{}); err != nil && !errors.Is(err, blockdev.ErrNotReplica) && !errors.Is(err, blockdev.ErrHalfFormatted) {
			m.refused(err)
		}
		p.Go(func() { m.pingLoop(p) })
	})
}

// refused is a replica that cannot be opened: the operator moves its directory away.
func (m *machine) refused(err error) {
	m.w.tr("%s: %v", m.name, err)
	if !m.c.mayLose(m) {
		m.w.fail("%s cannot open its replica, which nothing was done to: %v", m.name, err)
		return
	}
	if err := blockdev.Remove(m.fs, volumeDir); err != nil {
		m.w.tr("%s: remove: %v", m.name, err)
	}
}

// open opens the replica that is on the disk.
func (m *machine) open(v viewsvc.Volume) error {
	p := m.p
	st, err := blockdev.OpenStore(blockdev.StoreOptions{FS: m.fs, Dir: volumeDir, BootID: fmt.Sprintf("%s-%d", m.name, m.boot), Manual: true,
		OnEvent: func(e blockdev.Event) { m.storageEvent(e) },
		OnRoom: func() {
			m.w.stats.note(logFull)
			if m.replica != nil {
				m.replica.RoomMade()
			}
		}})
	if err != nil {
		return err
	}
	r, err := replication.OpenReplica(replication.ReplicaOptions{Store: st, Cluster: clusterID, Volume: v, Runtime: p, Leases: m.c.leases,
		Propose: func(_ context.Context, q viewsvc.Proposal) (viewsvc.View, error) {
			return m.c.views.propose(p, m.name, q)
		},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			e, err := m.c.net.Dial(ctx, p, m.name, addr)
			if err != nil {
				return nil, err
			}
			return e, nil
		},
		OnEvent: func(e replication.Event) { m.event(p, e) }})
	if err != nil {
		return err
	}
	m.store, m.replica = st, r
	p.Go(func() { m.storeLoop(p, st) })
	return nil
}

// storeLoop is what blockdev's driver does: it applies and checkpoints. How lazily is the seed's choice.
func (m *machine) storeLoop(p *proc, st *blockdev.Store) {
	for {
		p.sleep(m.w.between(m.c.applyEvery/4, m.c.applyEvery))
		for {
			did, err := st.Step()
			if err != nil || !did {
				break
			}
			p.sleep(m.work())
		}
		if st.Err() != nil {
			return
		}
	}
}

func (m *machine) storageEvent(e blockdev.Event) {
	switch e := e.(type) {
	case blockdev.EventRepaired:
		m.w.stats.note(repaired)
	case blockdev.EventRecovered:
		if e.Torn {
			m.w.stats.note(tornTail)
		}
	}
	if m.w.trace != nil {
		m.w.tr("%s: %s", m.name, storageText(e))
	}
}

// storageText is an event without what differs from one run to the next.
func storageText(e blockdev.Event) string {
	switch e := e.(type) {
	case blockdev.EventRecovered:
		e.Took = 0
		return fmt.Sprintf("recovered %+v", e)
	case blockdev.EventCheckpoint:
		return fmt.Sprintf("checkpoint at %d", e.LSN)
	default:
		return fmt.Sprintf("%T %+v", e, e)
	}
}

func (m *machine) event(p *proc, e replication.Event) {
	if p.dead {
		return
	}
	m.w.tr("%s: %s view %d %s peer %s %s %s", p.name, e.Kind, e.View, e.State, e.Peer, e.Text, errText(e.Err))
	switch e.Kind {
	case replication.EventState, replication.EventPropose, replication.EventCopy, replication.EventTailCut:
		m.c.nemesis.provoke(m)
	}
	switch e.Kind {
	case replication.EventTailCut:
		m.w.stats.note(tailCut)
	case replication.EventCopy:
		m.w.stats.note(regionCopy)
		if by := m.c.copying[e.Peer]; by != "" && by != e.Replica {
			m.w.stats.note(copySurvived)
		}
		m.c.copying[e.Peer] = e.Replica
	case replication.EventCaughtUp:
		m.w.stats.note(caughtUp)
		delete(m.c.copying, e.Peer)
	case replication.EventPoisoned:
		m.w.stats.note(poisoned)
	case replication.EventState:
		m.noteState(e)
	}
}

// noteState looks at what a replica became.
func (m *machine) noteState(e replication.Event) {
	if e.View > m.told {
		m.w.stats.note(staleHeard)
	}
	switch e.State {
	case replication.StateOpening.String():
		m.opening = m.w.now
		if marks := m.store.Marks(); marks.End > marks.Committed {
			m.w.stats.note(inheritedTail)
		}
	case replication.StateOpen.String():
		if m.c.leases && m.opening > 0 && m.w.now-m.opening > grantShown {
			m.w.stats.note(grantWaited)
		}
		if m.opening > 0 {
			m.c.opened(m)
		}
		m.opening = 0
	}
}

// grantShown is longer than a new primary takes to open when nothing is slow and no grant has to end.
const grantShown = 60 * time.Millisecond

// pingLoop is Node.pingLoop.
func (m *machine) pingLoop(p *proc) {
	var last viewsvc.PingReply
	for seq := uint64(1); ; seq++ {
		req := viewsvc.PingRequest{Cluster: m.cluster, Node: viewsvc.NodeID(m.name), Incarnation: p.name, PID: m.runs,
			Addr: m.name + ":" + peerPort, NBD: m.name + ":" + clientPort, Seq: seq, Echo: last.Seq, News: last.News}
		if m.replica != nil {
			req.Replicas = append(req.Replicas, m.replica.Report())
		}
		reply, err := m.c.views.ping(p, m.name, req)
		if err != nil {
			p.sleep(pingPause)
			continue
		}
		last = reply
		m.cluster = reply.Cluster
		for _, o := range reply.Volumes {
			m.told = o.View.Num
			m.obey(p, o)
		}
	}
}

// obey is Node.obey.
func (m *machine) obey(p *proc, o viewsvc.VolumeOrders) {
	switch {
	case m.replica != nil:
		m.replica.Orders(o)
	case o.Replica == "" && !o.Delete:
		if err := m.make(o.Volume); err != nil {
			m.w.tr("%s: %v", m.name, err)
			p.sleep(makePause)
		}
	}
}

// make formats a replica and opens it.
func (m *machine) make(v viewsvc.Volume) error {
	m.copies++
	m.empty = false
	err := blockdev.Format(m.fs, volumeDir, blockdev.FormatOptions{LogBytes: m.c.logBytes, SegmentBytes: m.c.segmentBytes,
		Identity: blockdev.Identity{Cluster: clusterID, Volume: string(volumeID), Replica: fmt.Sprintf("%s-%d", m.name, m.copies), Size: v.Size}})
	if err != nil {
		return err
	}
	return m.open(v)
}

// kill ends the process. What it had written stays, in the page cache.
func (m *machine) kill() {
	if m.p == nil {
		return
	}
	m.w.tr("%s is killed", m.p.name)
	m.end(false)
	m.fs.Restart()
}

// cut takes the machine's power away: of what was not synced, fate decides.
func (m *machine) cut(fate memfs.Fate) {
	if !m.powered {
		return
	}
	m.w.tr("%s loses power, un-synced operations: %d, fate %s", m.name, len(m.fs.Pending()), fate.Name)
	m.end(true)
	m.powered = false
	m.fs = m.fs.Crash(fate)
}

func (m *machine) end(power bool) {
	if p := m.p; p != nil {
		p.kill()
		m.c.net.drop(p, power)
		if mon := m.c.views.mon; mon != nil && !power && m.c.net.open(m.name, m.c.views.servers[m.c.views.leader]) {
			m.w.after(m.c.net.hop(), func() {
				if m.c.views.mon == mon {
					mon.Broken(viewsvc.NodeID(m.name), p.name)
					m.c.views.flush()
				}
			})
		}
	}
	if m.store != nil {
		_ = m.store.Abandon() // as if the process died; what it says of that is nobody's business
	}
	m.p, m.store, m.replica = nil, nil, nil
	m.stopped = m.w.now
}

// wipe puts an empty disk into a machine that is off.
func (m *machine) wipe() {
	m.w.tr("%s gets an empty disk", m.name)
	m.fs, m.cluster, m.flipped = memfs.New(), "", false
	m.empty = true
}

// accept takes a connection of another machine.
func (m *machine) accept(port string, e *endpoint) acceptance {
	switch {
	case !m.powered:
		return vanished
	case m.p == nil:
		return refused
	case e == nil:
		return accepted
	}
	p := m.p
	e.p = p
	p.Go(func() {
		if port == peerPort {
			replication.ServePeer(e, m.host(p))
		} else {
			m.serveClient(p, e)
		}
		e.Close()
	})
	return accepted
}

func (m *machine) host(p *proc) replication.Host {
	return replication.Host{Cluster: func() string { return m.cluster }, Runtime: p, Greet: make(chan struct{}, maxGreeting),
		OnEvent: func(e replication.Event) { m.event(p, e) },
		Find:    func(viewsvc.VolumeID) *replication.Replica { return m.replica }}
}

// The messages between a client and a node: NBD without its bytes.
type (
	attachMsg struct {
		client int
		id     blockdev.SessionID
	}
	attached struct{ err error }
	ask      struct{ reqs []wireReq }
	answer   struct {
		tag  uint64
		err  error
		data []byte
	}
	wireReq struct {
		tag    uint64
		op     blockdev.Op
		flags  blockdev.Flags
		off    uint64
		length uint32
		data   []byte
	}
)

// serveClient is the NBD server of one connection.
func (m *machine) serveClient(p *proc, e *endpoint) {
	first, err := e.recv()
	if err != nil || m.replica == nil {
		return
	}
	hello, ok := first.(attachMsg)
	if !ok {
		return
	}
	c := &front{m: m, p: p, e: e, no: hello.client}
	s, err := m.replica.Attach(nobody, hello.id, c)
	e.post(attached{err})
	if err != nil {
		return
	}
	for {
		next, err := e.recv()
		if err != nil {
			break
		}
		var burst []*blockdev.Request
		for _, q := range next.(ask).reqs {
			r := &blockdev.Request{Op: q.op, Flags: q.flags, Offset: q.off, Length: q.length, Tag: q.tag, Data: q.data}
			if q.op == blockdev.OpRead {
				r.Data = make([]byte, q.length)
				c.reads++
			}
			burst = append(burst, r)
		}
		s.Submit(burst)
	}
	s.Close()
}

// front is the connection as the session sees it.
type front struct {
	m     *machine
	p     *proc
	e     *endpoint
	no    int // of the client
	reads int // submitted and not completed
}

// Complete implements blockdev.Client.
func (f *front) Complete(done []*blockdev.Request) {
	if f.p.dead {
		return
	}
	// A little later, when no lock is held: the invariants hold at every moment.
	f.p.w.after(0, func() { f.m.c.acknowledged(f.m) })
	for _, q := range done {
		a := answer{tag: q.Tag, err: q.Err}
		if q.Op == blockdev.OpRead {
			a.data = q.Data
			f.reads--
		}
		f.e.post(a)
	}
}

// Abort implements blockdev.Client.
func (f *front) Abort(error) {
	if f.p.dead {
		return
	}
	if f.reads > 0 {
		f.p.w.stats.note(readsFenced)
	}
	// Not at once: in which order a replica ends its sessions is chance, and here nothing may be.
	f.p.w.after(time.Duration(f.no+1), func() {
		if f.e.coming > 0 || len(f.e.in) > 0 {
			f.p.w.stats.note(fencedUnread)
		}
		f.e.Close()
	})
}
