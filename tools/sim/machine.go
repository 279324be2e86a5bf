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
	"lockstep/wal"
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
	release int
	full    int           // how many faults have its disk full
	filled  time.Duration // when it was full last

	p         *proc // nil: no process
	powered   bool
	runs      int     // processes that were ever started
	leaving   bool    // the process is to end, and says goodbye
	condemned bool    // it does not start, whoever wants it to
	had       wal.LSN // up to where its last process had the log
	pings     uint64
	checked   uint64 // the last check that its replica has finished
	stopped   time.Duration
	store     *blockdev.Store
	replica   *replication.Replica
	lastOps   int
	flipped   bool            // a bit of its image
	told      viewsvc.ViewNum // newest view that the view service told it
	opening   time.Duration   // since when its replica is opening; 0: it is not
	empty     bool            // the disk was replaced, and has no replica yet
}

func newMachine(c *cluster, name string) *machine {
	m := &machine{c: c, w: c.w, name: name, fs: memfs.New(), powered: true, slow: 1}
	return m
}

// slowPiece is how much of a slow disk's work is waited for at a time, about: it may be faster after that.
const slowPiece = 100 * time.Millisecond

// work is how long the disk operations took that nobody has waited for yet. Of a slow disk it is the first few of them.
func (m *machine) work() time.Duration {
	n := m.fs.Ops()
	if m.slow > 1 {
		n = min(n, m.lastOps+1+int(slowPiece/(time.Duration(m.slow)*m.c.diskTime)))
	}
	d := time.Duration(n-m.lastOps) * time.Duration(m.slow) * m.c.diskTime
	m.lastOps = n
	if d > 0 {
		d = m.w.between(d/2, d+d/2)
	}
	return d
}

// start starts the node's process.
func (m *machine) start() {
	if m.p != nil || m.condemned {
		return
	}
	if !m.powered {
		m.powered = true
		m.boot++
	}
	m.c.net.back(m.name)
	m.runs++
	m.fs.Inject(m.noRoom)
	m.p = m.w.newProc(fmt.Sprintf("%s.%d", m.name, m.runs))
	m.p.work = m.work
	m.p.jitter = m.c.jitter
	m.leaving = false
	m.lastOps = m.fs.Ops()
	m.w.tr("%s starts", m.p.name)
	p := m.p
	p.Go(func() {
		if err := m.open(viewsvc.Volume{}); err != nil && !errors.Is(err, blockdev.ErrNotReplica) && !errors.Is(err, blockdev.ErrHalfFormatted) {
			m.w.fail("%s cannot open its replica, whatever was done to it: %v", m.name, err)
		}
		p.Go(func() { m.pingLoop(p) })
	})
}

// open opens the replica that is on the disk.
func (m *machine) open(v viewsvc.Volume) error {
	p := m.p
	st, err := blockdev.OpenStore(blockdev.StoreOptions{FS: m.fs, Dir: volumeDir, BootID: fmt.Sprintf("%s-%d", m.name, m.boot), Manual: true, Now: p.Now,
		Learner: replication.Learner,
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
		OnOutcast: func() { p.Go(m.setAside) },
		OnEvent:   func(e replication.Event) { m.event(p, e) }})
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

// replicaID names the replica that was made here last.
func (m *machine) replicaID() viewsvc.ReplicaID {
	return viewsvc.ReplicaID(fmt.Sprintf("%s-%d", m.name, m.copies))
}

// setAside is Node.setAside: an operator's act has made history go on without what this replica has.
func (m *machine) setAside() {
	r := m.replica
	if r == nil || m.leaving {
		return
	}
	if len(m.c.history.losses) == 0 {
		m.w.fail("%s is disowned, and no loss was ever accepted", r.ID())
	}
	m.w.stats.note(outcast)
	m.w.tr("%s is disowned", r.ID())
	m.replica = nil
	if err := r.Close(); err != nil {
		m.w.tr("%s: close: %v", m.name, err)
	}
	m.store = nil
	aside := fmt.Sprintf("%s.%s", volumeDir, r.ID())
	if err := m.fs.Rename(volumeDir, aside); err != nil {
		m.w.tr("%s: %v", m.name, err)
	}
	if err := m.fs.SyncDir("."); err != nil {
		m.w.tr("%s: %v", m.name, err)
	}
}

// stop ends the process in good order, as for an upgrade.
func (m *machine) stop() {
	p := m.p
	if p == nil || m.leaving {
		return
	}
	m.w.tr("%s is stopped in good order", p.name)
	m.leaving = true
	p.Go(func() {
		if m.cluster != "" {
			_, _ = m.c.views.ping(p, m.name, m.ping(p, viewsvc.PingReply{}, true)) // Node.farewell
		}
		if m.replica != nil {
			if err := m.replica.Close(); err != nil {
				m.w.tr("%s: close: %v", m.name, err)
			}
		}
		m.w.after(0, func() {
			if m.p == p {
				m.w.stats.note(stopped)
				m.end(false)
				m.fs.Restart()
			}
		})
	})
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
		if o := m.c.views.office(m.name); o != nil && !power && m.c.net.open(m.name, m.c.views.servers[o.server]) {
			m.w.after(m.c.net.hop(), func() {
				if o.mon != nil {
					o.mon.Broken(viewsvc.NodeID(m.name), p.name)
					m.c.views.flushOffice(o)
				}
			})
		}
	}
	if m.store != nil {
		m.had = m.c.holds(m)
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
			m.c.meet(e)
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
