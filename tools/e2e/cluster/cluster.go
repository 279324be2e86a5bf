package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Limits of what a healthy cluster may take on a busy machine with two cores.
const (
	startLimit = 30 * time.Second
	safeLimit  = 60 * time.Second
)

// Options describe a cluster.
type Options struct {
	Binary string
	Dir    string // must exist; everything is kept in it
	Views  int    // view servers, default 1
	Nodes  int    // default 2
	Volume string // default vol0
	Size   string // default 256M
	Sync   string // default always
	Host   string // address of this machine that everything listens at, if there is no Lab; default 127.0.0.1
	// ViewOf gives where a node asks for the view servers, in place of where they are. nil: there.
	ViewOf func(node, view string) string
	// NodeArgs are more arguments for every node.
	NodeArgs []string
	// GatewayArgs are more arguments for the gateway.
	GatewayArgs []string
	// Lab puts each role on the host of its name: v1, n1, n2 …, gateway. Clients reach the gateway over a unix socket,
	// which namespaces of the network do not hide. nil: all roles on the loopback interface.
	Lab *Lab
}

func (o *Options) setDefaults() {
	if o.Views == 0 {
		o.Views = 1
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Volume == "" {
		o.Volume = "vol0"
	}
	if o.Size == "" {
		o.Size = "256M"
	}
	if o.Sync == "" {
		o.Sync = "always"
	}
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if o.ViewOf == nil {
		o.ViewOf = func(_, view string) string { return view }
	}
}

// Cluster is view servers, nodes and a gateway, each a process of its own, with one volume.
type Cluster struct {
	o    Options
	View string // addresses of the view servers, as --view takes them
	URI  string // of the volume at the gateway

	Viewd   *Process // the first view server
	Gateway *Process
	viewds  []*Process
	more    []*Process // further gateways
	nodes   map[string]*Process
	peer    map[string]string // address for other nodes, by node
	nbd     map[string]string // NBD address, by node
}

// Start starts everything, makes the volume, and waits until the volume is safe and the gateway serves it. When
// it fails nothing is left running; the logs are in the returned cluster.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	o.setDefaults()
	place, err := o.placement()
	if err != nil {
		return nil, err
	}
	logs := filepath.Join(o.Dir, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, fmt.Errorf("cluster: start: %w", err)
	}
	c := &Cluster{
		o: o, View: strings.Join(place.views, ","), URI: place.uri,
		nodes: make(map[string]*Process), nbd: make(map[string]string), peer: make(map[string]string),
	}
	process := func(role string, args ...string) *Process {
		line := o.onHost(role, append([]string{o.Binary}, args...)...)
		return NewProcess(role, line[0], logs, line[1:]...)
	}
	for i, addr := range place.views {
		id := viewID(i)
		args := []string{"viewd", "--id", id, "--data", c.DataDir(id), "--listen", addr}
		for k, peer := range place.views {
			if k != i {
				args = append(args, "--peer", viewID(k)+"="+peer)
			}
		}
		c.viewds = append(c.viewds, process(id, args...))
	}
	c.Viewd = c.viewds[0]
	c.Gateway = process("gateway", append([]string{"gateway", "--view", c.View, "--listen", place.gateway}, o.GatewayArgs...)...)
	for i := range o.Nodes {
		id := nodeID(i)
		c.peer[id], c.nbd[id] = place.nodes[i][0], place.nodes[i][1]
		args := []string{"node", "--id", id, "--data", c.DataDir(id), "--listen", c.peer[id], "--nbd", c.nbd[id], "--view", o.ViewOf(id, c.View)}
		c.nodes[id] = process(id, append(args, o.NodeArgs...)...)
	}
	if err := c.boot(ctx); err != nil {
		c.KillAll()
		return c, err
	}
	return c, nil
}

// placement is where everybody listens.
type placement struct {
	views        []string
	gateway, uri string
	nodes        [][2]string // for peers, for NBD clients
}

func (o *Options) placement() (placement, error) {
	if o.Lab != nil {
		socket := filepath.Join(o.Dir, "nbd.sock")
		p := placement{gateway: "unix:" + socket, uri: "nbd+unix:///" + o.Volume + "?socket=" + socket}
		for i := range o.Views {
			p.views = append(p.views, o.Lab.IP(viewID(i))+":7400")
		}
		for i := range o.Nodes {
			ip := o.Lab.IP(nodeID(i))
			p.nodes = append(p.nodes, [2]string{ip + ":7500", ip + ":10810"})
		}
		return p, nil
	}
	ports, err := freePortsAt(o.Host, 1+o.Views+2*o.Nodes)
	if err != nil {
		return placement{}, err
	}
	p := placement{gateway: ports[0], uri: "nbd://" + ports[0] + "/" + o.Volume}
	ports = ports[1:]
	p.views, ports = ports[:o.Views], ports[o.Views:]
	for i := range o.Nodes {
		p.nodes = append(p.nodes, [2]string{ports[2*i], ports[2*i+1]})
	}
	return p, nil
}

func viewID(i int) string { return "v" + strconv.Itoa(i+1) }

func nodeID(i int) string { return "n" + strconv.Itoa(i+1) }

// onHost is a command line that runs another on the host of a role.
func (o *Options) onHost(role string, args ...string) []string {
	if o.Lab == nil {
		return args
	}
	return o.Lab.wrap(role, args...)
}

// boot brings up processes that were never started.
func (c *Cluster) boot(ctx context.Context) error {
	if err := c.StartAll(); err != nil {
		return err
	}
	err := Await(ctx, startLimit, "create the volume", func() error {
		for _, p := range c.Processes() {
			if !p.Running() {
				return fmt.Errorf("%w: %s: %s", ErrDown, p.Name, p.LogTail(500))
			}
		}
		r, err := c.Command(ctx, "volume", "create", c.o.Volume, "--size", c.o.Size, "--sync", c.o.Sync,
			"--copies", strconv.Itoa(c.o.Nodes))
		if err == nil && r.Code != 0 {
			err = errors.New(r.Line())
		}
		return err
	})
	if err != nil {
		return err
	}
	return c.AwaitSafe(ctx)
}

// DataDir is the data directory of a role: v1, n1, n2 …
func (c *Cluster) DataDir(role string) string { return filepath.Join(c.o.Dir, role) }

// Volume is the volume's name.
func (c *Cluster) Volume() string { return c.o.Volume }

// Lab is the network that the cluster is on; nil if that is the loopback interface.
func (c *Cluster) Lab() *Lab { return c.o.Lab }

// Nodes are the nodes' names in order.
func (c *Cluster) Nodes() []string {
	var ids []string
	for id := range c.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Node is a node's process.
func (c *Cluster) Node(id string) *Process {
	p, ok := c.nodes[id]
	if !ok {
		panic("cluster: no node " + strconv.Quote(id))
	}
	return p
}

// PeerAddr and NBDAddr are where a node listens.
func (c *Cluster) PeerAddr(id string) string { return c.peer[id] }

// NBDAddr is where a node listens for NBD clients.
func (c *Cluster) NBDAddr(id string) string { return c.nbd[id] }

// Processes are all of them, in the order in which they start.
func (c *Cluster) Processes() []*Process {
	all := slices.Clone(c.viewds)
	for _, id := range c.Nodes() {
		all = append(all, c.nodes[id])
	}
	return append(append(all, c.Gateway), c.more...)
}

// AddGateway starts a further gateway, on a host of the lab, and returns the volume's URI at it.
func (c *Cluster) AddGateway(host string) (*Process, string, error) {
	name := fmt.Sprintf("gateway%d", 2+len(c.more))
	socket := filepath.Join(c.o.Dir, name+".sock")
	line := c.o.onHost(host, c.o.Binary, "gateway", "--view", c.View, "--listen", "unix:"+socket)
	p := NewProcess(name, line[0], filepath.Join(c.o.Dir, "logs"), line[1:]...)
	c.more = append(c.more, p)
	return p, "nbd+unix:///" + c.o.Volume + "?socket=" + socket, p.Start()
}

// StartAll starts what does not run.
func (c *Cluster) StartAll() error {
	for _, p := range c.Processes() {
		if p.Running() {
			continue
		}
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
}

// KillAll ends every process at once with SIGKILL: first all are signalled, then it waits for them.
func (c *Cluster) KillAll() {
	for _, p := range c.Processes() {
		_ = p.Signal(syscall.SIGKILL) // not running: fine
	}
	for _, p := range c.Processes() {
		p.Kill()
	}
}

// StopAll ends every process in good order, the gateway first, the view server last.
func (c *Cluster) StopAll() error {
	var errs []error
	all := c.Processes()
	slices.Reverse(all)
	for _, p := range all {
		if p.Running() {
			errs = append(errs, p.Stop())
		}
	}
	return errors.Join(errs...)
}

// Logs are the tails of all logs.
func (c *Cluster) Logs(n int) string {
	var b strings.Builder
	for _, p := range c.Processes() {
		fmt.Fprintf(&b, "--- %s (pid %d) ---\n%s\n", p.Name, p.PID(), p.LogTail(n))
	}
	return b.String()
}

// Images are the data.img files of every replica, one per node.
func (c *Cluster) Images() (map[string]string, error) {
	images := make(map[string]string)
	for _, id := range c.Nodes() {
		err := filepath.WalkDir(c.DataDir(id), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Name() == "data.img" {
				if images[id] != "" {
					return fmt.Errorf("two images: %s and %s", images[id], path)
				}
				images[id] = path
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("cluster: images of %s: %w", id, err)
		}
		if images[id] == "" {
			return nil, fmt.Errorf("cluster: node %s has no data.img", id)
		}
	}
	return images, nil
}
