package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

// devDefaultDir is where dev keeps everything if it is not told, below the working directory.
const devDefaultDir = "lockstep-data"

// devNodesMax bounds --nodes. A volume has at most viewsvc.MaxCopies copies; the nodes beyond are spares.
const devNodesMax = 9

// devOptions is the command line of `lockstep dev`. What was not given is taken from the directory, where there is
// something.
type devOptions struct {
	dir    string
	nodes  int
	size   sizeFlag
	volume string
	sync   syncFlag
	listen *addressFlag
	given  func(flag string) bool
}

func newDev(env *environment) *cobra.Command {
	o := devOptions{
		dir: devDefaultDir, nodes: 2, size: 1 << 30, volume: "vol0", sync: syncFlag(viewsvc.SyncAlways),
		listen: clientExport("127.0.0.1:10809"),
	}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster on this machine, for trying things out",
		Long: `Run a whole cluster on this machine: a view server, nodes and a gateway, as child processes that end with it.
It creates the volume if it is missing and prints one line on standard output when a client can write:

  ready nbd://127.0.0.1:10809/vol0

What can be tried then goes to standard error. The data stays in --dir, and the next start goes on with it.
A node that dies stays dead until "lockstep dev restart n1", or until dev is started again.`,
		Args: wantArgs(),
	}
	// --dir means the same for `dev` and `dev restart`.
	cmd.PersistentFlags().StringVar(&o.dir, "dir", o.dir, "directory for everything; made if it is missing")
	flags := cmd.Flags()
	flags.IntVar(&o.nodes, "nodes", o.nodes, fmt.Sprintf("number of nodes, 1 to %d; each holds a copy, up to %d copies", devNodesMax, viewsvc.MaxCopies))
	flags.Var(&o.size, "size", "size of the volume")
	flags.StringVar(&o.volume, "volume", o.volume, "name of the volume")
	flags.Var(&o.sync, "sync", syncHelp)
	flags.Var(o.listen, "listen", "where clients reach the gateway")
	o.given = flags.Changed

	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := o.check(); err != nil {
			return err
		}
		return runDev(cmd.Context(), env, o)
	}
	cmd.AddCommand(newDevRestart(env, &o.dir))
	return cmd
}

func newDevRestart(env *environment, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "restart NODE",
		Short: "Start a node of a running dev again",
		Long: `Start a node (n1, n2, ...) of a running dev again; one that still runs is stopped first. The view server (v1)
and the gateway can be named too.`,
		Args: wantArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			reply, err := askDev(cmd.Context(), *dir, devRequest{Restart: args[0]})
			if err != nil {
				return err
			}
			fmt.Fprintf(env.stdout, "%s runs, pid %d\n", args[0], reply.PID)
			return nil
		},
	}
}

func (o *devOptions) check() error {
	if o.nodes < 1 || o.nodes > devNodesMax {
		return usagef("dev: --nodes %d: from 1 to %d", o.nodes, devNodesMax)
	}
	if err := checkVolume(o.newVolume()); err != nil {
		return usagef("dev: %w", err)
	}
	return nil
}

// newVolume is the volume that dev creates when it is missing.
func (o *devOptions) newVolume() viewsvc.Volume {
	return viewsvc.Volume{
		Name: o.volume, Size: uint64(o.size), Sync: viewsvc.SyncMode(o.sync),
		Copies: min(o.nodes, viewsvc.MaxCopies), MinCopies: 1,
	}
}

// devCluster is the children of a dev process.
type devCluster struct {
	dir    *devDir
	layout devLayout
	exe    string
	say    io.Writer // for people
	spawn  *spawner
	client *viewsvc.Client

	// failed gets the first child that ended before everything was ready.
	failed chan error

	// restarting is held by a restart, and for good when everything stops: one at a time.
	restarting sync.Mutex

	mu       sync.Mutex // guards everything below
	ready    bool
	children map[string]*child
	expected map[*child]bool // children that were told to end
}

func newDevCluster(env *environment, dir *devDir, layout devLayout) (*devCluster, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("dev: %w", err)
	}
	client, err := viewsvc.NewClient(viewsvc.ClientOptions{Servers: []string{layout.View}})
	if err != nil {
		return nil, fmt.Errorf("dev: %w", err)
	}
	return &devCluster{
		dir: dir, layout: layout, exe: exe, say: env.stderr, spawn: newSpawner(), client: client,
		failed: make(chan error, 1), children: map[string]*child{}, expected: map[*child]bool{},
	}, nil
}

// close ends the children, and what they were started with.
func (c *devCluster) close() {
	c.stop()
	c.spawn.Close()
	c.client.Close()
}

// runDev is the life of a dev process: reserve, start, be ready, wait, stop.
func runDev(ctx context.Context, env *environment, o devOptions) (err error) {
	ctx, stop := interruptible(ctx)
	defer stop()

	path, err := filepath.Abs(o.dir)
	if err != nil {
		return fmt.Errorf("dev: %w", err)
	}
	dir, err := openDevDir(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	layout, ports, old, err := dir.prepare(o)
	if err != nil {
		return err
	}
	defer ports.Close()
	o.nodes = len(layout.Nodes)
	c, err := newDevCluster(env, dir, layout)
	if err != nil {
		return err
	}
	defer c.close()
	if layout.View != devView {
		fmt.Fprintf(env.stderr, "port %d is taken (%s), the view server listens at %s instead; elsewhere than here: export %s=%s\n",
			devViewPort, listeningOn(devView), layout.View, viewVariable, layout.View)
	}
	if old {
		fmt.Fprintf(env.stderr, "going on with %s\n", path)
	} else {
		fmt.Fprintf(env.stderr, "new cluster in %s\n", path)
	}
	if err := c.start(ctx, ports, o); err != nil {
		if ctx.Err() != nil {
			return nil // interrupted
		}
		return err
	}

	control, err := listenDev(path)
	if err != nil {
		return fmt.Errorf("dev: %w", err)
	}
	defer control.Close()
	go serveDev(control, c.restart) // until control is closed

	c.mu.Lock()
	c.ready = true
	c.mu.Unlock()
	fmt.Fprintf(env.stdout, "ready %s\n", exportURI(layout.Listen, o.volume))
	c.hints(o)
	<-ctx.Done()
	fmt.Fprintln(env.stderr, "stopping")
	return nil
}

// exportURI is what NBD clients call an export.
func exportURI(listen, volume string) string {
	if path, ok := strings.CutPrefix(listen, "unix:"); ok {
		return "nbd+unix:///" + volume + "?socket=" + path
	}
	return "nbd://" + dialable(listen) + "/" + volume
}

// dialable turns an address to listen on into one to call from this machine.
func dialable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// args is the command line of a child.
func (c *devCluster) args(name string) (args []string, listens []string) {
	switch name {
	case devServer:
		return []string{"viewd", "--id", name, "--data", filepath.Join(c.dir.path, name), "--listen", c.layout.View},
			[]string{c.layout.View}
	case devGateway:
		return []string{"gateway", "--view", c.layout.View, "--listen", c.layout.Listen}, []string{c.layout.Listen}
	}
	for _, n := range c.layout.Nodes {
		if n.ID == name {
			return []string{"node", "--id", name, "--data", filepath.Join(c.dir.path, name), "--listen", n.Listen,
				"--nbd", n.NBD, "--view", c.layout.View, "--log-size", devLogSize}, []string{n.Listen, n.NBD}
		}
	}
	return nil, nil
}

// devLogSize is the size of each replica's log in dev: enough for bursts, small enough for a laptop.
const devLogSize = "256M"

// launch starts a child under a name.
func (c *devCluster) launch(name string, ports *devPorts) (*child, error) {
	args, listens := c.args(name)
	if ports != nil {
		ports.release(listens...)
	}
	ch, err := startChild(c.spawn, c.exe, name, c.dir.log(name), args)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.children[name] = ch
	c.mu.Unlock()
	// Ends with the child, which stop waits for.
	go func() {
		<-ch.done
		c.ended(ch)
	}()
	return ch, nil
}

// ended says what became of a child that nobody told to end.
func (c *devCluster) ended(ch *child) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.expected[ch] {
		delete(c.expected, ch)
		return
	}
	if c.ready {
		fmt.Fprintf(c.say, "%s (pid %d) is dead: %s; start it again: %s\n", ch.name, ch.pid, ch.fate(), c.command("dev restart "+ch.name))
		return
	}
	err := withHint(fmt.Errorf("dev: %s did not start: %s", ch.name, ch.fate()), "see %s", ch.log)
	select {
	case c.failed <- err:
	default: // another was first, and stops everything
	}
}

// halt stops a child, whatever state it is in.
func (c *devCluster) halt(name string) {
	c.mu.Lock()
	ch := c.children[name]
	if ch == nil {
		c.mu.Unlock()
		return
	}
	if ch.running() {
		c.expected[ch] = true
	}
	c.mu.Unlock()
	ch.stop()
}

// stop ends all children in good order: clients first, so that nothing is in flight when the nodes go; the view server
// last, because nodes say goodbye to it. The nodes go at the same time: a backup that is gone first would make its primary go
// on alone for a moment, and copy afterwards.
func (c *devCluster) stop() {
	c.restarting.Lock() // never unlocked: nothing is started any more
	c.halt(devGateway)
	var nodes sync.WaitGroup
	for _, n := range c.layout.Nodes {
		nodes.Go(func() { c.halt(n.ID) })
	}
	nodes.Wait()
	c.halt(devServer)
}

// restart is what `lockstep dev restart` asks for. It returns when the child has shown that it lives.
func (c *devCluster) restart(name string) (pid int, err error) {
	c.restarting.Lock()
	defer c.restarting.Unlock()
	if args, _ := c.args(name); args == nil {
		names := []string{devServer, devGateway}
		for _, n := range c.layout.Nodes {
			names = append(names, n.ID)
		}
		return 0, fmt.Errorf("dev: there is no %q here: name one of %s", name, strings.Join(names, ", "))
	}
	c.halt(name)
	ch, err := c.launch(name, nil)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), devRestartPatience)
	defer cancel()
	err = poll(ctx, func() (bool, error) {
		if !ch.running() {
			return false, withHint(fmt.Errorf("dev: %s did not start: %s", name, ch.fate()), "see %s", ch.log)
		}
		return c.alive(ctx, ch), nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return 0, withHint(fmt.Errorf("dev: %s runs (pid %d) but does not answer", name, ch.pid), "see %s", ch.log)
	}
	return ch.pid, err
}

// devRestartPatience is how long a restarted child may take to show that it lives.
const devRestartPatience = 20 * time.Second
