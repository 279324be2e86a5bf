package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/replication/exportname"
	"lockstep/viewsvc"
)

// Limits.
const (
	// DefaultMaxClients is how many clients a gateway has when Options do not say.
	DefaultMaxClients = 256
	// maxInFlight is how many requests one client may have in flight, and so the most that a replay sends.
	maxInFlight = nbd.DefaultMaxInFlight
	// maxRemembered is how many idle volumes are known while the view service does not answer.
	maxRemembered = 1024
	// drainTimeout is how long Close waits for requests in flight, if its context does not end before.
	drainTimeout = 2 * time.Second
	// openPatience is how long a client that connects waits for the view service. It is less than a handshake may
	// take, so that the client hears why.
	openPatience = 8 * time.Second
	// minTimeout is the least that Options.Timeout may be, and timeoutParts how finely it is observed.
	minTimeout   = 100 * time.Millisecond
	timeoutParts = 4
)

// Options say where a gateway listens and whom it asks.
type Options struct {
	View  []string    // host:port of every view server
	Views ViewService // instead of View

	Listen   string       // as nbd.Listen takes it; "" serves only clients that are brought by Server
	Listener net.Listener // instead of Listen; the gateway closes it

	SocketMode fs.FileMode // of a unix socket; 0 means nbd.DefaultSocketMode

	MaxClients          int // connections in all; 0 means DefaultMaxClients
	MaxClientsPerVolume int // 0 is no limit of its own

	TLS        nbd.TLSOptions // for clients
	PrimaryTLS nbd.TLSOptions // to the nodes

	// Clients may read only, all volumes or those that are named.
	ReadOnly        bool
	ReadOnlyVolumes []string

	// Timeout is how long a request may wait for a primary that answers; then it is completed with an I/O error. It is
	// observed with some slack, of half its length at most. 0 means for ever, which is what file systems want.
	Timeout time.Duration

	// Attach is how every client is attached that comes by Listen. Its Session makes sense only with Exclusive.
	Attach AttachOptions

	// OnEvent is told what happens. It may be called by many goroutines at once and must not block.
	OnEvent func(Event)
}

// Validate fills in defaults and checks the rest.
func (o *Options) Validate() error {
	if o.MaxClients == 0 {
		o.MaxClients = DefaultMaxClients
	}
	if o.SocketMode == 0 {
		o.SocketMode = nbd.DefaultSocketMode
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	switch {
	case o.MaxClients < 1:
		return fmt.Errorf("gateway: MaxClients is %d, must be at least 1", o.MaxClients)
	case o.Timeout != 0 && o.Timeout < minTimeout:
		return fmt.Errorf("gateway: Timeout is %v, must be 0 (wait for ever) or at least %v", o.Timeout, minTimeout)
	case o.Listen != "" && o.Listener != nil:
		return errors.New("gateway: Listen and Listener exclude each other")
	case o.Attach.Session != "" && !o.Attach.Exclusive:
		return errors.New("gateway: a session's name is for exclusive attachments: several clients cannot share it")
	}
	return o.Attach.validate()
}

// Gateway serves all volumes of a cluster. It implements nbd.Exporter.
type Gateway struct {
	opts   Options
	views  ViewService
	client *viewsvc.Client // views, if it is the gateway's own
	server *nbd.Server
	tls    *nbd.ClientTLS // to the nodes; nil without TLS
	addr   net.Addr

	start  time.Time
	ctx    context.Context // ends when Close has drained; watchers and sessions end with it
	cancel context.CancelFunc
	wg     sync.WaitGroup // one for each session, watcher, and the listener

	// mu guards everything below. It comes before volume.mu.
	mu       sync.Mutex
	closed   bool
	sessions int // those being fenced (G5) included
	volumes  map[viewsvc.VolumeID]*volume
	known    map[string]viewsvc.VolumeStatus // the newest status of volumes that were used
	holds    map[viewsvc.VolumeID]*hold      // volumes with an exclusive client here
	tookOver map[viewsvc.VolumeID]bool       // of which volumes Options.TakeOver is spent

	generations map[string]uint64 // newest generation of each session whose name a client brought
}

// Start begins to listen and serves until Close. ctx is for starting only.
func Start(ctx context.Context, opts Options) (*Gateway, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	g := &Gateway{
		opts: opts, views: opts.Views, start: time.Now(),
		volumes: make(map[viewsvc.VolumeID]*volume),
		known:   make(map[string]viewsvc.VolumeStatus),
		holds:   make(map[viewsvc.VolumeID]*hold), tookOver: make(map[viewsvc.VolumeID]bool),
		generations: make(map[string]uint64),
	}
	if g.views == nil {
		c, err := viewsvc.NewClient(viewsvc.ClientOptions{Servers: opts.View})
		if err != nil {
			return nil, fmt.Errorf("gateway: %w", err)
		}
		g.views, g.client = c, c
	}
	server, err := nbd.NewServer(nbd.ServerOptions{
		Exporter: g, MaxClients: opts.MaxClients, MaxClientsPerExport: opts.MaxClientsPerVolume, MaxInFlight: maxInFlight,
		TLS:     opts.TLS,
		OnEvent: func(e nbd.Event) { g.emit(Event{Kind: EventClient, Volume: e.Export, Err: e.Err, Client: e}) },
	})
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g.server = server
	if g.tls, err = nbd.NewClientTLS(opts.PrimaryTLS); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	var listeners []net.Listener
	if opts.Listener != nil {
		listeners = append(listeners, opts.Listener)
	}
	if opts.Listen != "" {
		if listeners, err = nbd.Listen(ctx, opts.Listen, opts.SocketMode); err != nil {
			return nil, fmt.Errorf("gateway: %w", err)
		}
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	for i, l := range listeners {
		if i == 0 {
			g.addr = l.Addr()
		}
		g.wg.Go(func() { // ends by Server.Shutdown
			if err := server.Serve(l); !errors.Is(err, nbd.ErrServerClosed) {
				g.emit(Event{Kind: EventStopped, Err: err})
			}
		})
	}
	return g, nil
}

// Addr is where the gateway listens, the first of several; nil if it does not.
func (g *Gateway) Addr() net.Addr { return g.addr }

// Server is the gateway's NBD server, for clients on connections that were made elsewhere.
func (g *Gateway) Server() *nbd.Server { return g.server }

// Close takes no new clients, waits a little for requests in flight, and ends everything.
func (g *Gateway) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	err := g.server.Shutdown(ctx)
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	g.wg.Wait()
	if g.client != nil {
		g.client.Close()
	}
	if err != nil {
		return fmt.Errorf("gateway: close: some requests were not answered: %w", err)
	}
	return nil
}

// List gives all volumes. It implements nbd.Exporter.
func (g *Gateway) List(ctx context.Context) ([]nbd.ExportInfo, error) {
	cluster, err := g.views.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("gateway: list volumes: %w", err)
	}
	list := make([]nbd.ExportInfo, 0, len(cluster.Volumes))
	for _, st := range cluster.Volumes {
		if !st.Deleting {
			list = append(list, nbd.ExportInfo{Name: st.Volume.Name, Size: st.Volume.Size})
		}
	}
	return list, nil
}

// Open resolves a volume's name. It implements nbd.Exporter.
func (g *Gateway) Open(ctx context.Context, name string) (nbd.Export, error) {
	if _, id, err := exportname.Parse(name); err != nil || id != (blockdev.SessionID{}) {
		return nbd.Export{}, fmt.Errorf("gateway: %q is no volume's name: %w", name, nbd.ErrUnknownExport)
	}
	st, err := g.resolve(ctx, name)
	if err != nil {
		return nbd.Export{}, err
	}
	return g.export(st, g.opts.Attach), nil
}

// resolve finds a volume by name. One in use is watched; of another the view service is asked. If that does not
// answer, what was known last is good enough: who is primary is for the primary to know.
func (g *Gateway) resolve(ctx context.Context, name string) (viewsvc.VolumeStatus, error) {
	g.mu.Lock()
	st, known := g.known[name]
	_, used := g.volumes[st.Volume.ID]
	g.mu.Unlock()
	if used {
		return st, nil
	}
	ctx, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	fresh, err := g.views.Watch(ctx, name, 0)
	switch {
	case err == nil && !fresh.Deleting:
		g.remember(fresh)
		return fresh, nil
	case err == nil, errors.Is(err, viewsvc.ErrNotFound):
		g.forget(name, st.Volume.ID)
		return viewsvc.VolumeStatus{}, fmt.Errorf("gateway: volume %s: %w", name, nbd.ErrUnknownExport)
	case known:
		return st, nil
	}
	return viewsvc.VolumeStatus{}, fmt.Errorf("gateway: find volume %s: %w", name, err)
}

// remember keeps a volume's status for the time when the view service does not answer. It tells whether the volume has
// grown.
func (g *Gateway) remember(st viewsvc.VolumeStatus) (grown bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, known := g.known[st.Volume.Name]
	if known && old.Volume.ID == st.Volume.ID {
		if old.View.Num > st.View.Num {
			return false
		}
		grown = st.Volume.Size > old.Volume.Size
		st.Volume.Size = max(st.Volume.Size, old.Volume.Size) // G13: what says that it has shrunk is of an earlier time
	}
	if !known && len(g.known) >= maxRemembered {
		for name, st := range g.known {
			if g.volumes[st.Volume.ID] == nil {
				delete(g.known, name)
				break
			}
		}
	}
	g.known[st.Volume.Name] = st
	return grown
}

// sizeOf is how large a volume is by now.
func (g *Gateway) sizeOf(v viewsvc.Volume) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := g.known[v.Name].Volume; now.ID == v.ID {
		return max(v.Size, now.Size)
	}
	return v.Size
}

// forget drops what is known of a volume that is gone.
func (g *Gateway) forget(name string, id viewsvc.VolumeID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known[name].Volume.ID == id {
		delete(g.known, name)
	}
}

// acquire takes a volume into use for one session; put gives it back.
func (g *Gateway) acquire(st viewsvc.VolumeStatus) (*volume, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return nil, fmt.Errorf("gateway: closing: %w", blockdev.ErrSessionClosed)
	case g.sessions >= g.opts.MaxClients:
		return nil, fmt.Errorf("gateway: there are %d clients already, those included whose last writes are being fenced; raise MaxClients", g.sessions)
	}
	g.sessions++
	g.wg.Add(1)
	v := g.volumes[st.Volume.ID]
	if v == nil {
		v = newVolume(g, st)
		ctx, cancel := context.WithCancel(g.ctx)
		v.stop = cancel
		g.volumes[v.id] = v
		g.wg.Go(func() { v.watch(ctx, st.News) })
	}
	v.refs++
	return v, nil
}

// put gives a volume back.
func (g *Gateway) put(v *volume) {
	g.mu.Lock()
	g.sessions--
	if v.refs--; v.refs == 0 {
		v.stop()
		delete(g.volumes, v.id)
		v.mu.Lock()
		v.route.end()
		v.mu.Unlock()
	}
	g.mu.Unlock()
	g.wg.Done()
}

// clock is ns since the start; it stands still when nobody needs it.
func (g *Gateway) clock() int64 {
	if g.opts.Timeout == 0 {
		return 0
	}
	return int64(time.Since(g.start))
}

func (g *Gateway) emit(e Event) { g.opts.OnEvent(e) }
