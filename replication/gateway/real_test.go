package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lockstep/blockdev/nbd"
	"lockstep/replication"
	"lockstep/replication/exportname"
	"lockstep/viewsvc"
)

// realCluster is a view server and storage nodes in this process, for what fake nodes would only repeat.
type realCluster struct {
	tb    testing.TB
	dir   string
	view  *viewsvc.Server
	c     *viewsvc.Client
	nodes map[viewsvc.NodeID]*replication.Node
}

func startReal(tb testing.TB, nodes int) *realCluster {
	tb.Helper()
	c := &realCluster{tb: tb, dir: tb.TempDir(), nodes: map[viewsvc.NodeID]*replication.Node{}}
	var err error
	if c.view, err = viewsvc.StartServer(viewsvc.ServerOptions{ID: "v1", Dir: filepath.Join(c.dir, "v1"), Listen: "127.0.0.1:0"}); err != nil {
		tb.Fatal(err)
	}
	if c.c, err = viewsvc.NewClient(viewsvc.ClientOptions{Servers: []string{c.view.Addr()}}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for id := range c.nodes {
			c.stop(id)
		}
		c.c.Close()
		c.view.Close()
	})
	for i := range nodes {
		c.start(viewsvc.NodeID(fmt.Sprintf("n%d", i+1)))
	}
	eventually(tb, "the nodes are known", func() bool {
		s, err := c.c.Status(tb.Context())
		return err == nil && len(s.Nodes) == nodes
	})
	eventually(tb, "a volume", func() bool {
		_, err := c.c.CreateVolume(tb.Context(), viewsvc.Volume{Name: "vol0", Size: 16 << 20, Copies: nodes})
		return err == nil
	})
	c.safe(nodes)
	return c
}

func (c *realCluster) start(id viewsvc.NodeID) {
	c.tb.Helper()
	n, err := replication.StartNode(replication.NodeOptions{
		ID: id, Dir: filepath.Join(c.dir, string(id)), Listen: "127.0.0.1:0", NBD: "127.0.0.1:0",
		View: []string{c.view.Addr()}, LogBytes: 64 << 20,
		OnEvent: func(e replication.Event) {
			if testing.Verbose() {
				c.tb.Logf("%s: %s %s view %d %s %v", id, e.Kind, e.State, e.View, e.Text, e.Err)
			}
		},
	})
	if err != nil {
		c.tb.Fatal(err)
	}
	c.nodes[id] = n
}

func (c *realCluster) stop(id viewsvc.NodeID) {
	n := c.nodes[id]
	delete(c.nodes, id)
	if err := n.Close(context.Background()); err != nil {
		c.tb.Errorf("close %s: %v", id, err)
	}
}

// safe waits for an open primary and n members, and returns the primary's node.
func (c *realCluster) safe(n int) (primary viewsvc.NodeID) {
	c.tb.Helper()
	eventually(c.tb, fmt.Sprintf("a view with %d members", n), func() bool {
		s, err := c.c.Status(c.tb.Context())
		if err != nil || len(s.Volumes) == 0 || len(s.Volumes[0].View.Members()) != n {
			return false
		}
		v := s.Volumes[0]
		for _, p := range v.Peers {
			if p.Replica == v.View.Primary {
				primary = p.Node
			}
		}
		for _, r := range v.Reports {
			if r.Replica == v.View.Primary && r.Role == viewsvc.RolePrimary && r.View == v.View.Num {
				return true
			}
		}
		return false
	})
	return primary
}

// gateway starts a gateway that listens on a unix socket.
func (c *realCluster) gateway(o AttachOptions) (addr string, g *Gateway) {
	c.tb.Helper()
	addr = "unix:" + filepath.Join(c.tb.TempDir(), "gw")
	g, err := Start(c.tb.Context(), Options{
		View: []string{c.view.Addr()}, Listen: addr, Attach: o,
		OnEvent: func(e Event) {
			if testing.Verbose() {
				c.tb.Logf("gateway: %s session %.8s/%d addr %s requests %d %v", e.Kind, e.Session, e.Generation, e.Addr, e.Requests, e.Err)
			}
		},
	})
	if err != nil {
		c.tb.Fatal(err)
	}
	c.tb.Cleanup(func() { g.Close(context.Background()) })
	return addr, g
}

// dialReal connects a client; the connection is closed when the test ends.
func dialReal(tb testing.TB, addr string) (*nbd.Disk, error) {
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	defer cancel()
	d, err := nbd.OpenDisk(ctx, addr, nbd.ClientOptions{Export: "vol0"})
	if err == nil {
		tb.Cleanup(func() { d.Close() })
	}
	return d, err
}

func mustDial(tb testing.TB, addr string) *nbd.Disk {
	tb.Helper()
	d, err := dialReal(tb, addr)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// socketPair is a connection as the kernel's NBD client gets one.
func socketPair(tb testing.TB) (ours, theirs net.Conn) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	conn := func(fd int) net.Conn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { c.Close() })
		return c
	}
	return conn(fds[0]), conn(fds[1])
}

// rawClient speaks NBD without a handshake, as the kernel does.
type rawClient struct{ net.Conn }

// write writes a byte and waits for the answer.
func (c *rawClient) write(b byte) error {
	p := binary.BigEndian.AppendUint32(nil, 0x25609513)
	p = binary.BigEndian.AppendUint16(p, 0)
	p = binary.BigEndian.AppendUint16(p, 1)
	p = binary.BigEndian.AppendUint64(p, 7)
	p = binary.BigEndian.AppendUint64(p, 4096)
	p = binary.BigEndian.AppendUint32(p, 1)
	if _, err := c.Write(append(p, b)); err != nil {
		return err
	}
	var reply [16]byte
	if _, err := io.ReadFull(c, reply[:]); err != nil {
		return err
	}
	if e := binary.BigEndian.Uint32(reply[4:]); e != 0 {
		return fmt.Errorf("NBD error %d", e)
	}
	return nil
}

// TestGatewayPrefersTheSocketOnItsHost also sees that the network is used where there is no socket.
func TestGatewayPrefersTheSocketOnItsHost(t *testing.T) {
	node, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	local, err := net.Listen("unix", exportname.LocalSocket(node.Addr().String()))
	if err != nil {
		t.Skipf("no abstract sockets here: %v", err)
	}
	seen := make(chan string, 2)
	for _, l := range []net.Listener{node, local} {
		go func() { // ends when its listener is closed
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				seen <- l.Addr().Network()
				c.Close()
			}
		}()
	}
	from := func() string {
		if _, err := connect(t.Context(), node.Addr().String(), nbd.ClientOptions{}); !errors.Is(err, nbd.ErrHungUp) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Fatal(err)
		}
		return <-seen
	}
	if got := from(); got != "unix" {
		t.Errorf("it came by %s", got)
	}
	local.Close()
	if got := from(); got != "tcp" {
		t.Errorf("without the socket it came by %s", got)
	}
}
