package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The directory of `lockstep dev`:
//
//	LOCK        flock of the dev process, with its pid
//	dev.json    devLayout: who listens where
//	dev.sock    where `lockstep dev restart` reaches the dev process
//	logs/X.log  standard error of each child, appended to
//	v1, n1, …   the data directory of each role
const (
	devLockFile   = "LOCK"
	devLayoutFile = "dev.json"
	devSocketFile = "dev.sock"
	devLogDir     = "logs"
)

// First choices for the ports of a new directory; if one is taken, the next that is free. They are chosen below the
// range from which Linux takes ephemeral ports (32768 on), so that they are free again at the next start.
const (
	devViewPort  = 7400 // what --view of the operator's commands defaults to
	devPeerPort  = 7501
	devNBDPort   = 10811
	devPortTries = 500
)

// devPortPatience is how long a port may stay taken at a start: the children of a dev process that was killed a moment
// ago die right after it.
const devPortPatience = 3 * time.Second

const (
	devServer  = "v1"
	devGateway = "gateway"
)

// devLayout says who listens where. It is chosen at the first start in a directory and kept: view servers are known to
// each other by address.
type devLayout struct {
	View   string    `json:"view"`
	Listen string    `json:"listen"` // of the gateway; given by --listen, and kept
	Nodes  []devNode `json:"nodes"`
}

type devNode struct {
	ID     string `json:"id"`
	Listen string `json:"listen"`
	NBD    string `json:"nbd"`
}

// devDir is a directory that this process has to itself.
type devDir struct {
	path string
	lock *os.File
}

// openDevDir makes the directory if it is missing, and locks it. The lock ends with the process, however it ends.
func openDevDir(path string) (*devDir, error) {
	if err := os.MkdirAll(filepath.Join(path, devLogDir), 0o755); err != nil {
		return nil, withHint(fmt.Errorf("dev: %w", err), "choose a directory that can be written with --dir")
	}
	lock, err := os.OpenFile(filepath.Join(path, devLockFile), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, withHint(fmt.Errorf("dev: %w", err), "choose a directory that can be written with --dir")
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer lock.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("dev: lock %s: %w", path, err)
		}
		holder, _ := os.ReadFile(lock.Name())
		return nil, withHint(fmt.Errorf("dev: %s is in use by another lockstep dev (pid %s)", path, strings.TrimSpace(string(holder))),
			"stop that one, or choose another directory with --dir")
	}
	// The pid is for people only; a lock file without one is as good.
	_ = lock.Truncate(0)
	_, _ = lock.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return &devDir{path, lock}, nil
}

func (d *devDir) Close() error { return d.lock.Close() }

func (d *devDir) log(child string) string { return filepath.Join(d.path, devLogDir, child+".log") }

// prepare reads the layout, or makes one in a new directory, with what the command line adds to it. It holds all ports, and
// saves what it chose.
func (d *devDir) prepare(o devOptions) (layout devLayout, ports *devPorts, old bool, err error) {
	if layout, old, err = readLayout(d.path); err != nil {
		return layout, nil, old, err
	}
	if !old || o.given("listen") {
		layout.Listen = o.listen.value
	}
	nodes := o.nodes
	if old && !o.given("nodes") {
		nodes = len(layout.Nodes)
	}
	if nodes < len(layout.Nodes) {
		return layout, nil, old, withHint(fmt.Errorf("dev: %s has %d nodes, --nodes %d would leave copies behind", d.path, len(layout.Nodes), nodes),
			"leave --nodes out, or choose another --dir")
	}
	if ports, err = reserve(&layout, nodes); err != nil {
		return layout, nil, old, err
	}
	if err = d.save(layout); err != nil {
		ports.Close()
	}
	return layout, ports, old, err
}

func readLayout(dir string) (layout devLayout, found bool, err error) {
	name := filepath.Join(dir, devLayoutFile)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return devLayout{}, false, nil
	}
	if err != nil {
		return devLayout{}, false, fmt.Errorf("dev: %w", err)
	}
	err = json.Unmarshal(b, &layout)
	if err == nil && (checkReachable(layout.View) != nil || len(layout.Nodes) == 0) {
		err = errors.New("addresses are missing")
	}
	if err != nil {
		return devLayout{}, false, withHint(fmt.Errorf("dev: %s: %w", name, err),
			"repair it, or choose another directory with --dir")
	}
	return layout, true, nil
}

// save replaces the layout at once: a crash leaves the old or the new one.
func (d *devDir) save(layout devLayout) error {
	b, err := json.MarshalIndent(layout, "", "  ")
	if err != nil {
		return fmt.Errorf("dev: %w", err)
	}
	name := filepath.Join(d.path, devLayoutFile)
	if err := os.WriteFile(name+".new", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("dev: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("dev: %w", err)
	}
	return nil
}

// devPorts holds the ports of a layout until the children that are to have them start, so that two dev processes that start
// at the same time do not choose the same ones, and so that a port that is taken is found before anything was started.
type devPorts struct {
	held map[string]net.Listener
}

// reserve fills in what a layout lacks and holds all of its ports. The caller releases them.
func reserve(layout *devLayout, nodes int) (*devPorts, error) {
	ports := &devPorts{held: map[string]net.Listener{}}
	if err := ports.fill(layout, nodes); err != nil {
		ports.Close()
		return nil, err
	}
	return ports, nil
}

func (p *devPorts) fill(layout *devLayout, nodes int) (err error) {
	// What was chosen before comes first, so that what is new keeps clear of it.
	deadline := time.Now().Add(devPortPatience)
	if err := p.hold(&layout.Listen, "the gateway, --listen", deadline); err != nil {
		return err
	}
	if layout.View != "" {
		if err := p.hold(&layout.View, "view server "+devServer, deadline); err != nil {
			return err
		}
	}
	for i := range layout.Nodes {
		n := &layout.Nodes[i]
		if err := p.hold(&n.Listen, "node "+n.ID, deadline); err != nil {
			return err
		}
		if err := p.hold(&n.NBD, "NBD of node "+n.ID, deadline); err != nil {
			return err
		}
	}
	if layout.View == "" {
		if layout.View, err = p.choose(devViewPort); err != nil {
			return err
		}
	}
	for i := len(layout.Nodes); i < nodes; i++ {
		n := devNode{ID: "n" + strconv.Itoa(i+1)}
		if n.Listen, err = p.choose(devPeerPort + i); err != nil {
			return err
		}
		if n.NBD, err = p.choose(devNBDPort + i); err != nil {
			return err
		}
		layout.Nodes = append(layout.Nodes, n)
	}
	return nil
}

// hold takes a given address, and sets the port if it was 0.
func (p *devPorts) hold(addr *string, whose string, deadline time.Time) error {
	if strings.HasPrefix(*addr, "unix:") {
		return nil
	}
	for {
		l, err := net.Listen("tcp", *addr)
		if err == nil {
			*addr = l.Addr().String()
			p.held[*addr] = l
			return nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("dev: %w", err)
		}
		if time.Now().After(deadline) {
			return withHint(fmt.Errorf("dev: %s (%s) is in use", *addr, whose),
				"stop what listens there (%s), or choose another address or --dir", listeningOn(*addr))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// choose takes the first free port of the loopback interface.
func (p *devPorts) choose(from int) (string, error) {
	for port := from; port < from+devPortTries; port++ {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		if l, err := net.Listen("tcp", addr); err == nil {
			p.held[addr] = l
			return addr, nil
		}
	}
	return "", fmt.Errorf("dev: no free port on 127.0.0.1 from %d to %d", from, from+devPortTries-1)
}

// release lets go of addresses, just before a child takes them.
func (p *devPorts) release(addrs ...string) {
	for _, a := range addrs {
		if l, ok := p.held[a]; ok {
			l.Close()
			delete(p.held, a)
		}
	}
}

// Close lets go of everything.
func (p *devPorts) Close() {
	for a := range p.held {
		p.release(a)
	}
}

// listeningOn is a command that shows who has a port.
func listeningOn(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return "see `ss -ltnp sport = :" + port + "`"
}
