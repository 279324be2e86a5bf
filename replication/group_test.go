package replication

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal/vfs"
	"lockstep/wal/vfs/memfs"
)

// group is the replicas of one volume in this process, over loopback and disks in memory, with logs as small as a test
// wants and a view service that is one mutex: so that a test decides what crashes, and what hears of what.
type group struct {
	t      testing.TB
	o      groupOptions
	ended  chan struct{}
	tended chan struct{}

	mu     sync.Mutex // guards everything below
	volume viewsvc.Volume
	view   viewsvc.View
	all    map[viewsvc.ReplicaID]*groupReplica
	check  *viewsvc.CheckOrder
	pins   int // while > 0 the view service makes no views by itself
}

type groupOptions struct {
	replicas           int
	size               uint64
	logBytes, segBytes int64
	sync               viewsvc.SyncMode
	minCopies          int
	logOf              map[viewsvc.ReplicaID]int64 // instead of logBytes, of four segments
	net                *memNet                     // nil: loopback
}

type groupReplica struct {
	id    viewsvc.ReplicaID
	fs    *memfs.FS
	boot  int
	addr  string
	r     *Replica // nil while down
	l     net.Listener
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
	deaf  bool // hears nothing of the view service, nor is it heard
}

const groupCluster = "group"

// groupIDs are the names that replicas of a group get.
var groupIDs = []viewsvc.ReplicaID{"a", "b", "c", "d"}

func newGroup(t testing.TB, o groupOptions) *group {
	t.Helper()
	g := &group{t: t, o: o, ended: make(chan struct{}), tended: make(chan struct{}), all: map[viewsvc.ReplicaID]*groupReplica{},
		volume: viewsvc.Volume{ID: "v", Name: "vol0", Size: o.size, Sync: o.sync, Copies: o.replicas, MinCopies: max(o.minCopies, 1)}}
	for i := range o.replicas {
		m := &groupReplica{id: groupIDs[i], fs: memfs.New()}
		logBytes, segBytes := o.logBytes, o.segBytes
		if n := o.logOf[m.id]; n != 0 {
			logBytes, segBytes = n, n/4
		}
		err := blockdev.Format(m.fs, "vol", blockdev.FormatOptions{LogBytes: logBytes, SegmentBytes: segBytes,
			Identity: blockdev.Identity{Cluster: groupCluster, Volume: "v", Replica: string(m.id), Size: o.size}})
		if err != nil {
			t.Fatal(err)
		}
		g.all[m.id] = m
		g.start(m.id)
	}
	g.view = viewsvc.View{Volume: "v", Num: 1, Tenure: 1, Primary: "a"}
	go g.tend() // until the test ends
	t.Cleanup(func() {
		close(g.ended)
		<-g.tended
		for id := range g.all {
			g.stop(id)
		}
	})
	return g
}

// start opens a replica on its disk.
func (g *group) start(id viewsvc.ReplicaID) {
	g.t.Helper()
	g.mu.Lock()
	m, volume := g.all[id], g.volume
	g.mu.Unlock()
	var made *Replica
	var ready sync.WaitGroup
	ready.Add(1)
	st, err := blockdev.OpenStore(blockdev.StoreOptions{FS: vfs.FS(m.fs), Dir: "vol", BootID: fmt.Sprint("boot", m.boot), Learner: Learner,
		OnRoom: func() { ready.Wait(); made.RoomMade() }})
	if err != nil {
		g.t.Fatal(err)
	}
	dial := dialTCP
	if g.o.net != nil {
		dial = func(ctx context.Context, addr string) (net.Conn, error) { return g.o.net.dial(ctx, id, addr) }
	}
	made, err = OpenReplica(ReplicaOptions{Store: st, Cluster: groupCluster, Volume: volume, Propose: g.propose, Leases: true, Dial: dial,
		Clock: func() Instant { return Instant(time.Now().UnixNano()) },
		OnEvent: func(e Event) {
			if e.Kind == EventPoisoned || testing.Verbose() {
				g.t.Logf("%s: %s %s peer %s view %d %s %v", e.Replica, e.Kind, e.State, e.Peer, e.View, e.Text, e.Err)
			}
		}})
	if err != nil {
		g.t.Fatal(err)
	}
	ready.Done()
	var l net.Listener
	if g.o.net != nil {
		l = g.o.net.listen(id)
	} else if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	m.r, m.l, m.addr, m.conns = made, l, l.Addr().String(), map[net.Conn]struct{}{}
	g.mu.Unlock()
	m.wg.Go(func() { // until stop closes the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			m.conns[c] = struct{}{}
			g.mu.Unlock()
			m.wg.Go(func() { // until the connection ends
				defer c.Close()
				rd := newReader(c)
				var h hello
				m, body, err := rd.next()
				if err == nil && m.Type == msgHello && decodeJSON(body, &h) == nil {
					made.ServeStream(c, rd, h)
				}
				var f fetch
				if err == nil && m.Type == msgFetch && decodeJSON(body, &f) == nil {
					made.ServeFetch(c, f)
				}
			})
		}
	})
}

// stop closes a replica properly.
func (g *group) stop(id viewsvc.ReplicaID) { g.end(id, func(r *Replica) error { return r.Close() }) }

// kill ends a replica as if its process was killed: what was written is in the page cache.
func (g *group) kill(id viewsvc.ReplicaID) { g.down(memfs.All, 0, id) }

// crash ends replicas as if their machines went down: what was not synced is lost.
func (g *group) crash(ids ...viewsvc.ReplicaID) { g.down(memfs.None, 1, ids...) }

func (g *group) down(fate memfs.Fate, boots int, ids ...viewsvc.ReplicaID) {
	for _, id := range ids { // before any of them can write or sync once more
		g.all[id].fs.StopAt(0)
	}
	for _, id := range ids {
		m := g.all[id]
		disk := m.fs.Crash(fate)
		g.end(id, func(r *Replica) error { r.Close(); return nil }) // whatever the stopped disk says
		m.fs = disk
		m.boot += boots
	}
}

func (g *group) end(id viewsvc.ReplicaID, by func(*Replica) error) {
	g.mu.Lock()
	m := g.all[id]
	r := m.r
	m.r = nil // its address stays: a dial is refused
	if r != nil {
		m.l.Close()
		for c := range m.conns {
			c.Close()
		}
	}
	g.mu.Unlock()
	if r == nil {
		return
	}
	if err := by(r); err != nil {
		g.t.Errorf("end %s: %v", id, err)
	}
	m.wg.Wait()
}

// replica is the running one of that name, or nil.
func (g *group) replica(id viewsvc.ReplicaID) *Replica {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all[id].r
}

// pin keeps the view service from making views by itself until the func that it returns is called.
func (g *group) pin() func() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pins++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.pins--
	})
}

// deafen cuts a replica off from the view service, or no more.
func (g *group) deafen(id viewsvc.ReplicaID, deaf bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all[id].deaf = deaf
}

// propose is the view service's answer to a primary.
func (g *group) propose(_ context.Context, p viewsvc.Proposal) (viewsvc.View, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.all[p.From].deaf:
		return viewsvc.View{}, errNoAnswer
	case p.Expect != g.view.Num:
		return viewsvc.View{}, &viewsvc.ConflictError{Current: g.view}
	case p.From != g.view.Primary || p.Tenure != g.view.Tenure:
		return viewsvc.View{}, &viewsvc.RuleError{}
	}
	tenure := g.view.Tenure
	if p.Kind == viewsvc.KindHandover {
		tenure = 0
	}
	g.makeLocked(p.Primary, slices.Clone(p.Backups), tenure)
	return g.view, nil
}

func (g *group) makeLocked(primary viewsvc.ReplicaID, backups []viewsvc.ReplicaID, tenure viewsvc.ViewNum) {
	v := viewsvc.View{Volume: "v", Num: g.view.Num + 1, Tenure: tenure, Primary: primary, Backups: backups}
	if tenure == 0 {
		v.Tenure = v.Num
	}
	g.view = v
	if testing.Verbose() {
		g.t.Logf("view %d.%d %s %v", v.Num, v.Tenure, v.Primary, v.Backups)
	}
}

// tend is the view service's own work: it replaces primaries that are gone and tells everybody.
func (g *group) tend() {
	defer close(g.tended)
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-g.ended:
			return
		case <-t.C:
			g.orders()
		}
	}
}

func (g *group) orders() {
	g.mu.Lock()
	var peers []viewsvc.Peer
	var recruits []viewsvc.ReplicaID
	reports := map[viewsvc.ReplicaID]viewsvc.ReplicaReport{}
	for _, id := range groupIDs {
		m := g.all[id]
		if m == nil {
			continue
		}
		alive := m.r != nil && m.r.Report().Role != viewsvc.RolePoisoned && !m.r.Report().Full
		p := viewsvc.Peer{Replica: id, Addr: m.addr, Alive: alive}
		if m.r != nil && !m.deaf {
			reports[id] = m.r.Report()
			p.Room = reports[id].Room
			if !g.view.Has(id) && !reports[id].Full {
				recruits = append(recruits, id)
			}
		}
		peers = append(peers, p)
	}
	if g.pins == 0 {
		g.failOverLocked(reports)
	}
	if served := reports[g.view.Primary].Serves; served > g.volume.Size {
		g.volume.Size = served
		if g.volume.Wanted <= served {
			g.volume.Wanted = 0
		}
	}
	volume, view, check := g.volume, g.view, g.check
	var hear []*Replica
	for id := range reports {
		hear = append(hear, g.all[id].r)
	}
	g.mu.Unlock()
	for _, r := range hear {
		o := viewsvc.VolumeOrders{Volume: volume, Replica: r.ID(), View: view, Peers: peers, Check: check}
		if r.ID() == view.Primary {
			o.Recruit = recruits
		}
		r.Orders(o)
	}
}

func (g *group) failOverLocked(reports map[viewsvc.ReplicaID]viewsvc.ReplicaReport) {
	rep, alive := reports[g.view.Primary]
	lost := !alive || rep.Role == viewsvc.RolePoisoned
	recovering := rep.Role == viewsvc.RoleRecovering && rep.View >= g.view.Tenure
	if !lost && !recovering && !rep.Full {
		return
	}
	var living []viewsvc.ReplicaID
	for _, id := range g.view.Backups {
		if b, ok := reports[id]; ok && b.Role != viewsvc.RolePoisoned && !b.Full {
			living = append(living, id)
		}
	}
	slices.SortFunc(living, func(x, y viewsvc.ReplicaID) int { return int(reports[y].LogEnd) - int(reports[x].LogEnd) })
	switch {
	case len(living) > 0:
		g.makeLocked(living[0], living[1:], 0)
	case recovering:
		g.makeLocked(g.view.Primary, nil, 0)
	}
}

// await polls until ok holds.
func (g *group) await(what string, ok func(viewsvc.View) bool) viewsvc.View {
	g.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		g.mu.Lock()
		v := g.view
		g.mu.Unlock()
		if ok(v) {
			return v
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("no %s within 30 s; view %+v", what, v)
		}
	}
}

// open waits for a view of n members with an open primary, which it returns.
func (g *group) open(n int) *Replica {
	g.t.Helper()
	var r *Replica
	g.await(fmt.Sprintf("open view of %d members", n), func(v viewsvc.View) bool {
		r = g.replica(v.Primary)
		if r == nil || len(v.Members()) != n {
			return false
		}
		rep := r.Report()
		return rep.Role == viewsvc.RolePrimary && rep.View == v.Num
	})
	return r
}

// client is a session with a primary, for a test's goroutine.
type client struct {
	counter
	s       blockdev.Session
	aborted chan struct{}
	once    sync.Once
}

func (c *client) Abort(error) { c.once.Do(func() { close(c.aborted) }) }

func dialReplica(r *Replica, name string, generation uint64) (*client, error) {
	c := &client{counter: counter{done: make(chan *blockdev.Request, 4096)}, aborted: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := r.Attach(ctx, blockdev.SessionID{Name: name, Generation: generation}, c)
	c.s = s
	return c, err
}

// try submits a burst and waits for it. It is false if the session ended before.
func (c *client) try(burst ...*blockdev.Request) bool {
	c.s.Submit(burst)
	for range burst {
		select {
		case <-c.done:
		case <-c.aborted:
			c.s.Close() // from here on the requests are ours again
			return false
		}
	}
	return true
}

// sameOnAll checks that all running replicas hold want once nothing is written any more (I12).
func (g *group) sameOnAll(want []byte) {
	g.t.Helper()
	for _, id := range groupIDs {
		m := g.all[id]
		if m == nil || m.r == nil {
			continue
		}
		got := make([]byte, len(want))
		g.await("same content on "+string(id), func(v viewsvc.View) bool {
			p := g.replica(v.Primary)
			if p == nil || p.store.Marks().Committed != m.r.store.Marks().Committed {
				return false
			}
			if err := m.r.store.Read(0, got); err != nil {
				g.t.Fatalf("read %s: %v", id, err)
			}
			return true
		})
		for i := 0; i < len(want); i += blockdev.BlockSize {
			if !slices.Equal(got[i:i+blockdev.BlockSize], want[i:i+blockdev.BlockSize]) {
				g.t.Fatalf("block %d of %s is not what was written", i/blockdev.BlockSize, id)
			}
		}
	}
}
