package replication

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/replication/exportname"
	"lockstep/viewsvc"
)

// acceptPeers takes the streams of primaries.
func (n *Node) acceptPeers() {
	host := Host{Cluster: n.home.cluster, Find: n.replicaOf, OnEvent: n.opts.OnEvent, Greet: make(chan struct{}, maxGreetings)}
	for {
		c, err := n.peers.Accept()
		if err != nil {
			if n.ctx.Err() == nil {
				n.cancel(fmt.Errorf("node: accept peers: %w", err))
			}
			return
		}
		n.mu.Lock()
		if n.closed {
			n.mu.Unlock()
			c.Close()
			return
		}
		n.conns[c] = struct{}{}
		n.mu.Unlock()
		n.run(func() { // ends when the connection or the node is closed
			ServePeer(c, host)
			c.Close()
			n.mu.Lock()
			delete(n.conns, c)
			n.mu.Unlock()
		})
	}
}

// Host is what serves the connections of other nodes: a Node, or what stands for one in a simulation.
type Host struct {
	Cluster func() string
	Find    func(viewsvc.VolumeID) *Replica // nil: there is none
	OnEvent func(Event)
	Runtime Runtime       // nil means Go's own
	Greet   chan struct{} // its capacity bounds the connections that have not said Hello
}

// ServePeer serves a connection: it reads the first message and gives the connection to the replica that it names. It
// returns when the connection has served; closing it is the caller's.
func ServePeer(c net.Conn, host Host) {
	if host.Runtime == nil {
		host.Runtime = goRuntime{}
	}
	select {
	case host.Greet <- struct{}{}:
	default:
		return // too many strangers
	}
	h, rd, err := host.greeting(c)
	<-host.Greet
	if errors.Is(err, errVersion) {
		host.OnEvent(Event{Kind: EventStreamDown, Err: fmt.Errorf("refused a stream from %s: %w", c.RemoteAddr(), err)})
	}
	if err != nil || rd == nil {
		return // the view service probes whether somebody listens, and anybody may connect: not worth a word
	}
	r := host.Find(h.Volume.ID)
	if r == nil || r.ID() != h.To || h.Cluster != host.Cluster() {
		host.OnEvent(Event{Kind: EventStreamDown, Volume: h.Volume.Name, Replica: h.To, Peer: h.From,
			Err: fmt.Errorf("refused a stream for replica %s of cluster %s: it is not here", h.To, h.Cluster)})
		return
	}
	err = r.ServeStream(c, rd, h)
	host.OnEvent(Event{Kind: EventStreamDown, Volume: h.Volume.Name, Replica: h.To, Peer: h.From, Err: err})
}

// greeting reads the first message. A Fetch is answered here; a Hello is the caller's.
func (host Host) greeting(c net.Conn) (h hello, rd *reader, err error) {
	if err := c.SetReadDeadline(host.Runtime.Now().Add(greetingTimeout)); err != nil {
		return h, nil, err
	}
	rd = newReader(c)
	rd.max = maxControlBody
	m, body, err := rd.next()
	rd.max = 0
	switch {
	case err != nil:
		return h, nil, err
	case m.Type == msgHello:
		if err := errors.Join(decodeJSON(body, &h), checkView(h.View)); err != nil {
			return h, nil, err
		}
		return h, rd, c.SetReadDeadline(time.Time{})
	case m.Type == msgFetch:
		var f fetch
		if err := decodeJSON(body, &f); err != nil {
			return h, nil, err
		}
		if r := host.Find(f.Volume); r != nil && r.ID() == f.To && f.Cluster == host.Cluster() {
			return h, nil, r.ServeFetch(c, f)
		}
	}
	return h, nil, errWire
}

// exporter is a Node as an NBD server sees it.
type exporter Node

// List implements nbd.Exporter.
func (e *exporter) List(context.Context) ([]nbd.ExportInfo, error) {
	n := (*Node)(e)
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []nbd.ExportInfo
	for _, d := range n.desks {
		list = append(list, nbd.ExportInfo{Name: d.volume()})
	}
	return list, nil
}

// Open implements nbd.Exporter. Whether the replica serves clients now is for Attach to say.
func (e *exporter) Open(_ context.Context, name string) (nbd.Export, error) {
	n := (*Node)(e)
	volume, id, err := exportname.Parse(name)
	if err != nil {
		return nbd.Export{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range n.desks {
		if d.volume() == volume {
			return nbd.Export{Name: volume, Device: d.r, Session: id, FastZero: true}, nil
		}
	}
	for _, a := range n.absent {
		if a.working { // of which volume is known when it is done
			return nbd.Export{}, fmt.Errorf("node %s still opens replicas: %w", n.opts.ID, blockdev.ErrNotPrimary)
		}
	}
	return nbd.Export{}, fmt.Errorf("%w: node %s has no replica of volume %q", nbd.ErrUnknownExport, n.opts.ID, volume)
}
