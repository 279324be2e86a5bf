package replication

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/replication/exportname"
	"lockstep/viewsvc"
	"lockstep/wal/vfs"
)

// Defaults and limits of a node.
const (
	DefaultLogBytes = 1 << 30
	maxGreetings    = 256             // peers' connections that have not said Hello yet
	farewellTimeout = 1 * time.Second // for the last ping of a node that is stopped
	maxUnread       = 2 * time.Second // a direct client may have given up by then, and repeat what it sent by another connection
)

// NodeOptions say what a Node is and where.
type NodeOptions struct {
	ID       viewsvc.NodeID
	Dir      string   // data directory; made if it does not exist
	Listen   string   // host:port for peers; other nodes use it as it stands
	NBD      string   // host:port for gateways and direct clients
	View     []string // host:port of the view servers
	LogBytes int64    // size of each new replica's log; 0 means DefaultLogBytes
	Reads    ReadMode // "" means ReadAuto

	RecruitRate int64 // see ReplicaOptions

	FS      vfs.FS // nil means the operating system's
	OnEvent func(Event)
	OnNBD   func(nbd.Event)
	NBDTLS  nbd.TLSOptions // for gateways and other NBD clients
}

// Validate fills in defaults and checks the rest.
func (o *NodeOptions) Validate() error {
	if o.LogBytes == 0 {
		o.LogBytes = DefaultLogBytes
	}
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	if o.Reads == "" {
		o.Reads = ReadAuto
	}
	switch {
	case o.Reads != ReadAuto && o.Reads != ReadConfirm:
		return fmt.Errorf("node: read mode %q: use %s or %s", o.Reads, ReadAuto, ReadConfirm)
	case o.ID == "":
		return errors.New("node: it needs an id")
	case o.Dir == "":
		return errors.New("node: it needs a data directory")
	case len(o.View) == 0:
		return errors.New("node: it needs the address of a view server")
	}
	return nil
}

// Node is a storage server. It holds replicas, tells the view service that it is alive, and carries out its orders.
type Node struct {
	opts   NodeOptions
	home   *home
	view   *viewsvc.Client
	peers  net.Listener
	nbd    *nbd.Server
	nbdAt  net.Listener
	local  net.Listener    // nbdAt for those on the same host; nil if there is no such thing here
	ctx    context.Context // ends with Close, or when the node cannot go on
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	incarnation string        // of this process, in pings
	pings       atomic.Uint64 // how many were sent
	slots       chan struct{} // held by who opens or closes a replica (slot)

	mu     sync.Mutex                 // guards everything below; nothing is waited for with it held
	desks  map[viewsvc.VolumeID]*desk // of the replicas in service
	absent map[viewsvc.VolumeID]absence
	conns  map[net.Conn]struct{}
	closed bool
}

// StartNode opens the data directory, listens, and begins to ping and to open its replicas. It waits neither for the view
// service nor for the replicas.
func StartNode(o NodeOptions) (*Node, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	h, err := openHome(o.FS, o.Dir, o.ID)
	if err != nil {
		return nil, err
	}
	n := &Node{opts: o, home: h, incarnation: uuid.NewString(), slots: make(chan struct{}, openAtOnce),
		desks:  map[viewsvc.VolumeID]*desk{},
		absent: map[viewsvc.VolumeID]absence{}, conns: map[net.Conn]struct{}{}}
	n.ctx, n.cancel = context.WithCancelCause(context.Background())
	if err := n.start(); err != nil {
		n.shut(context.Background()) // what hangs comes later
		return nil, err
	}
	return n, nil
}

func (n *Node) start() (err error) {
	if n.view, err = viewsvc.NewClient(viewsvc.ClientOptions{Servers: n.opts.View}); err != nil {
		return err
	}
	if n.peers, err = net.Listen("tcp", n.opts.Listen); err != nil {
		return fmt.Errorf("node: listen for peers: %w", err)
	}
	if n.nbdAt, err = net.Listen("tcp", n.opts.NBD); err != nil {
		return fmt.Errorf("node: listen for NBD clients: %w", err)
	}
	// Without it gateways use TCP: no reason to fail.
	n.local, _ = net.Listen("unix", exportname.LocalSocket(n.nbdAt.Addr().String()))
	n.nbd, err = nbd.NewServer(nbd.ServerOptions{Exporter: (*exporter)(n), OnEvent: n.opts.OnNBD, TLS: n.opts.NBDTLS, MaxUnread: maxUnread})
	if err != nil {
		return err
	}
	if err := n.openReplicas(); err != nil {
		return err
	}
	n.run(n.acceptPeers) // each of these ends with Close
	n.run(n.pingLoop)
	n.run(n.lookLoop)
	for _, l := range []net.Listener{n.nbdAt, n.local} {
		if l == nil {
			continue
		}
		n.run(func() {
			if err := n.nbd.Serve(l); err != nil && !errors.Is(err, nbd.ErrServerClosed) {
				n.cancel(fmt.Errorf("node: serve NBD clients: %w", err))
			}
		})
	}
	return nil
}

func (n *Node) run(f func()) {
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		f()
	}()
}

// Done is closed when the node cannot go on; Err says why.
func (n *Node) Done() <-chan struct{} { return n.ctx.Done() }

// Err is why the node cannot go on, or nil.
func (n *Node) Err() error {
	if err := context.Cause(n.ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// PeerAddr and NBDAddr are where the node listens.
func (n *Node) PeerAddr() net.Addr { return n.peers.Addr() }

func (n *Node) NBDAddr() net.Addr { return n.nbdAt.Addr() }

// Close tells the view service that the node leaves, so that others take over at once, and closes everything. It waits
// for busy disks for as long as ctx lives. The error wraps ctx's then, and the rest, the end of the lock on the data directory
// too, is done when the disks are, if the process still runs.
func (n *Node) Close(ctx context.Context) error {
	n.farewell(ctx)
	return n.shut(ctx)
}

// shut closes what was opened. It is also for a start that failed half-way.
func (n *Node) shut(ctx context.Context) error {
	n.cancel(context.Canceled)
	n.mu.Lock()
	n.closed = true
	for c := range n.conns {
		c.Close()
	}
	desks := n.desks
	n.desks = map[viewsvc.VolumeID]*desk{}
	n.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- n.closeAll(desks) }() // ends when no disk is busy any more with what was begun
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("node: the disk of %s is not done yet; nothing is lost, the next start recovers: %w", n.home.dir, ctx.Err())
	}
}

// closeAll closes what serves, then what it serves, and waits for what is under way.
func (n *Node) closeAll(desks map[viewsvc.VolumeID]*desk) error {
	var errs []error
	if n.nbd != nil {
		errs = append(errs, n.nbd.Close())
	}
	for _, l := range []net.Listener{n.peers, n.nbdAt, n.local} {
		if l != nil {
			l.Close()
		}
	}
	errs = append(errs, n.closeReplicas(desks))
	n.wg.Wait() // replicas that are being opened or made
	if n.view != nil {
		n.view.Close()
	}
	return errors.Join(append(errs, n.home.close())...)
}

// openReplica opens a formatted replica and puts it into service.
func (n *Node) openReplica(id viewsvc.VolumeID, v viewsvc.Volume) error {
	var made atomic.Pointer[Replica] // the store's callbacks may come before there is one
	var name atomic.Value            // the volume's, as soon as it is known
	name.Store(string(id))
	st, err := blockdev.OpenStore(blockdev.StoreOptions{FS: n.opts.FS, Dir: n.home.volumeDir(id), Learner: Learner,
		OnEvent: func(e blockdev.Event) { n.opts.OnEvent(storageEvent(name.Load().(string), e)) },
		OnRoom: func() {
			if r := made.Load(); r != nil {
				r.RoomMade()
			}
		}})
	if err != nil {
		return err
	}
	if n := st.Identity().VolumeName; n != "" {
		name.Store(n)
	}
	if c := st.Identity().Cluster; c != n.home.cluster() {
		st.Close()
		return fmt.Errorf("the replica belongs to cluster %s, this node to %q: it was copied here from elsewhere; move it away", c, n.home.cluster())
	}
	r, err := OpenReplica(ReplicaOptions{Store: st, Cluster: n.home.cluster(), Volume: v, Propose: n.view.Propose,
		Leases: n.opts.Reads == ReadAuto && hardwareClock(), RecruitRate: n.opts.RecruitRate, OnEvent: n.opts.OnEvent,
		OnOutcast: func() {
			if r := made.Load(); r != nil {
				n.beside(r.Volume(), func(error) error { return n.setAside(id, r) })
			}
		}})
	if err != nil {
		st.Close()
		return err
	}
	made.Store(r)
	r.RoomMade()
	d := newDesk(r)
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.desks[id] = d
		n.run(d.run) // ends when the replica is taken out of service
	}
	n.mu.Unlock()
	if closed {
		return r.Close()
	}
	return nil
}

// makeReplica formats a replica and opens it.
func (n *Node) makeReplica(v viewsvc.Volume) error {
	id := uuid.NewString()
	err := blockdev.Format(n.opts.FS, n.home.volumeDir(v.ID), blockdev.FormatOptions{LogBytes: n.opts.LogBytes,
		Identity: blockdev.Identity{Cluster: n.home.cluster(), Volume: string(v.ID), VolumeName: v.Name, Replica: id, Size: v.Size}})
	if err != nil {
		return fmt.Errorf("node: format a replica of volume %s: %w", v.Name, err)
	}
	if err := n.openReplica(v.ID, v); err != nil {
		return fmt.Errorf("node: open the new replica of volume %s: %w", v.Name, err)
	}
	n.opts.OnEvent(Event{Kind: EventFormatted, Volume: v.Name, Replica: viewsvc.ReplicaID(id)})
	return nil
}

// deleteReplica removes the copy of a deleted volume; r is nil if it is not in service, because it is half-formatted,
// half-removed, or damaged.
func (n *Node) deleteReplica(v viewsvc.Volume, r *Replica) error {
	var id viewsvc.ReplicaID
	if r != nil {
		if !n.takeOut(v.ID, r) {
			return nil
		}
		id = r.ID()
		if err := r.Close(); err != nil {
			n.opts.OnEvent(Event{Kind: EventStorage, Volume: v.Name, Err: err}) // it is going to be removed all the same
		}
	}
	if err := blockdev.Remove(n.opts.FS, n.home.volumeDir(v.ID)); err != nil {
		return fmt.Errorf("node: remove the replica of volume %s: %w", v.Name, err)
	}
	n.opts.OnEvent(Event{Kind: EventDeleted, Volume: v.Name, Replica: id})
	return nil
}

// takeOut takes a replica out of service, for whoever gets true to close it.
func (n *Node) takeOut(id viewsvc.VolumeID, r *Replica) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.desks[id]
	if d == nil || d.r != r {
		return false
	}
	delete(n.desks, id)
	d.close()
	return true
}

// volumesDir is where the replicas are, below the data directory.
const volumesDir = "volumes"

func (h *home) volumeDir(id viewsvc.VolumeID) string { return path.Join(h.dir, volumesDir, string(id)) }
