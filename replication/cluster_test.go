package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/replication/exportname"
	"lockstep/viewsvc"
)

// cluster is a view server and nodes in this process, over loopback and real files.
type cluster struct {
	t     testing.TB
	dir   string
	view  *viewsvc.Server
	c     *viewsvc.Client
	nodes map[viewsvc.NodeID]*Node
	addrs map[viewsvc.NodeID][2]string
}

func startCluster(t testing.TB, nodes int) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), nodes: map[viewsvc.NodeID]*Node{}, addrs: map[viewsvc.NodeID][2]string{}}
	var err error
	c.view, err = viewsvc.StartServer(viewsvc.ServerOptions{ID: "v1", Dir: filepath.Join(c.dir, "v1"), Listen: "127.0.0.1:0",
		RecruitAfter: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c.c, err = viewsvc.NewClient(viewsvc.ClientOptions{Servers: []string{c.view.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for id := range c.nodes {
			c.stop(id)
		}
		c.c.Close()
		c.view.Close()
	})
	for i := range nodes {
		c.start(viewsvc.NodeID(fmt.Sprintf("n%d", i+1)))
	}
	c.await("nodes alive", func(s viewsvc.ClusterStatus) bool {
		alive := 0
		for _, n := range s.Nodes {
			if n.Alive {
				alive++
			}
		}
		return alive == nodes
	})
	return c
}

func (c *cluster) start(id viewsvc.NodeID) *Node {
	c.t.Helper()
	at, ok := c.addrs[id]
	if !ok {
		at = [2]string{"127.0.0.1:0", "127.0.0.1:0"}
	}
	n, err := StartNode(NodeOptions{ID: id, Dir: filepath.Join(c.dir, string(id)), Listen: at[0], NBD: at[1],
		View: []string{c.view.Addr()}, LogBytes: 256 << 20, OnEvent: func(e Event) { c.t.Logf("%s: %+v", id, e) }})
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[id] = n
	c.addrs[id] = [2]string{n.PeerAddr().String(), n.NBDAddr().String()}
	return n
}

func (c *cluster) stop(id viewsvc.NodeID) {
	if n := c.nodes[id]; n != nil {
		delete(c.nodes, id)
		if err := n.Close(context.Background()); err != nil {
			c.t.Errorf("close %s: %v", id, err)
		}
	}
}

func (c *cluster) create(v viewsvc.Volume) {
	c.t.Helper()
	if _, err := c.c.CreateVolume(context.Background(), v); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) await(what string, ok func(viewsvc.ClusterStatus) bool) viewsvc.ClusterStatus {
	c.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		s, err := c.c.Status(context.Background())
		if err == nil && ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("no %s within 30 s: %+v, %v", what, s, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// safe waits until the volume has an open primary and n members.
func (c *cluster) safe(name string, n int) viewsvc.VolumeStatus {
	c.t.Helper()
	var v viewsvc.VolumeStatus
	c.await(fmt.Sprintf("view of %s with %d members", name, n), func(s viewsvc.ClusterStatus) bool {
		for _, v = range s.Volumes {
			if v.Volume.Name != name || len(v.View.Members()) != n {
				continue
			}
			for _, r := range v.Reports {
				if r.Replica == v.View.Primary && r.Role == viewsvc.RolePrimary && r.View == v.View.Num {
					return true
				}
			}
		}
		return false
	})
	return v
}

// nodeOf finds the node of a replica.
func nodeOf(v viewsvc.VolumeStatus, r viewsvc.ReplicaID) viewsvc.Peer {
	for _, p := range v.Peers {
		if p.Replica == r {
			return p
		}
	}
	return viewsvc.Peer{}
}

func (c *cluster) dial(v viewsvc.VolumeStatus) *nbd.Disk {
	c.t.Helper()
	conn, err := nbd.OpenDisk(context.Background(), nodeOf(v, v.View.Primary).NBD, nbd.ClientOptions{Export: v.Volume.Name})
	if err != nil {
		c.t.Fatal(err)
	}
	return conn
}

func TestAckedWritesSurviveTheLossOfEachReplicaInTurn(t *testing.T) {
	c := startCluster(t, 2)
	c.create(viewsvc.Volume{Name: "vol0", Size: 64 << 20, Copies: 2, MinCopies: 1, Sync: viewsvc.SyncAlways})
	want := make([]byte, 64<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 4 {
		v := c.safe("vol0", 2)
		conn := c.dial(v)
		for range 100 {
			n := 1 + rng.IntN(70000)
			off := rng.IntN(len(want) - n)
			for i := off; i < off+n; i++ {
				want[i] = byte(rng.Uint32())
			}
			if _, err := conn.WriteAt(want[off:off+n], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		conn.Close()
		primary := nodeOf(v, v.View.Primary).Node
		c.stop(primary)
		v = c.safe("vol0", 1)
		conn = c.dial(v)
		got := make([]byte, 1<<20)
		for off := 0; off < len(want); off += len(got) {
			if _, err := conn.ReadAt(got, int64(off)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want[off:off+len(got)]) {
				t.Fatalf("round %d: MiB %d differs after %s was lost", round, off>>20, primary)
			}
		}
		conn.Close()
		c.start(primary)
	}
	c.safe("vol0", 2)
}

// TestBackupTellsAGatewayWhoServes: a client without a name, a kernel most likely, is hung up on without a word.
func TestBackupTellsAGatewayWhoServes(t *testing.T) {
	c := startCluster(t, 2)
	c.create(viewsvc.Volume{Name: "vol0", Size: 1 << 20, Copies: 2})
	v := c.safe("vol0", 2)
	primary, backup := nodeOf(v, v.View.Primary), nodeOf(v, v.View.Backups[0])
	name := exportname.Format("vol0", blockdev.SessionID{Name: "gateway", Generation: 1})
	var refusal *nbd.OptionError
	c.await("the backup knows", func(viewsvc.ClusterStatus) bool { // its orders may be on their way
		_, err := nbd.Dial(t.Context(), backup.NBD, nbd.ClientOptions{Export: name})
		return errors.As(err, &refusal)
	})
	want := exportname.Primary{View: uint64(v.View.Tenure), NBD: primary.NBD}
	if got, err := exportname.ParsePrimary(refusal.Text); err != nil || got != want {
		t.Errorf("the backup points to %+v, %v, want %+v", got, err, want)
	}
	if _, err := nbd.Dial(t.Context(), backup.NBD, nbd.ClientOptions{Export: "vol0"}); !errors.Is(err, nbd.ErrHungUp) {
		t.Errorf("a client without a name got %v", err)
	}
}
