package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"path"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// memNode starts a node on a file system in memory; told gets its events.
func (c *cluster) memNode(id viewsvc.NodeID, disk *memfs.FS, told func(Event)) *Node {
	c.t.Helper()
	n, err := StartNode(NodeOptions{ID: id, Dir: string(id), FS: disk, Listen: "127.0.0.1:0", NBD: "127.0.0.1:0",
		View: []string{c.view.Addr()}, LogBytes: 16 << 20, OnEvent: func(e Event) {
			c.t.Logf("%s: %+v", id, e)
			if told != nil {
				told(e)
			}
		}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[id] = n
	return n
}

// A disk that hangs while a replica is opened keeps that replica from serving, and neither the others of its node nor the
// node's pings. When it comes back so does the replica.
func TestHangingOpenHoldsUpNeitherPingsNorOtherVolumes(t *testing.T) {
	c := startCluster(t, 1)
	disk := memfs.New()
	c.memNode("n2", disk, nil)
	for _, name := range []string{"hangs", "works"} {
		c.create(viewsvc.Volume{Name: name, Size: 4 << 20, Copies: 2})
		c.safe(name, 2)
		c.handover(name, "n1")
	}
	hangs := c.safe("hangs", 2)
	c.stop("n2")
	c.safe("hangs", 1)
	c.safe("works", 1)

	release := make(chan struct{})
	let := sync.OnceFunc(func() { close(release) })
	defer let()
	disk.Inject(func(op memfs.Op) (e memfs.Effect) {
		if op.Kind == "read" && strings.Contains(op.Name, string(hangs.Volume.ID)) {
			e.Hang = release
		}
		return e
	})
	n2 := c.memNode("n2", disk, nil)
	c.safe("works", 2)
	for _, v := range c.await("a live n2", func(s viewsvc.ClusterStatus) bool { return s.Nodes[1].Alive }).Volumes {
		if v.Volume.Name == "hangs" && len(v.View.Members()) != 1 {
			t.Errorf("the replica that cannot be opened is in view %+v", v.View)
		}
	}
	if n2.replicaOf(hangs.Volume.ID) != nil {
		t.Error("nothing hung")
	}
	let()
	c.safe("hangs", 2)
}

// Whoever stops a node is told when a disk hangs, and goes on; the directory is free when the disk is back. Seen to fail with a
// Close that waits for what is being opened.
func TestCloseDoesNotWaitForAnOpenThatHangs(t *testing.T) {
	c := startCluster(t, 1)
	disk := memfs.New()
	c.memNode("n2", disk, nil)
	c.create(viewsvc.Volume{Name: "vol0", Size: 4 << 20, Copies: 2})
	c.safe("vol0", 2)
	c.stop("n2")
	release, hangs := make(chan struct{}), make(chan struct{})
	begun := sync.OnceFunc(func() { close(hangs) })
	disk.Inject(func(op memfs.Op) (e memfs.Effect) {
		if op.Kind == "read" && strings.HasSuffix(op.Name, ".seg") {
			begun()
			e.Hang = release
		}
		return e
	})
	n2 := c.memNode("n2", disk, nil)
	delete(c.nodes, "n2") // c need not stop it
	<-hangs
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n2.Close(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nothing is lost") {
		t.Errorf("closed: %v", err)
	}
	again := NodeOptions{ID: "n2", Dir: "n2", FS: disk, Listen: "127.0.0.1:0", NBD: "127.0.0.1:0", View: []string{c.view.Addr()}}
	start := func() error {
		n, err := StartNode(again)
		if err == nil {
			c.nodes["n2"] = n
		}
		return err
	}
	if err := start(); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second one beside the open that hangs: %v", err)
	}
	close(release)
	c.await("free directory", func(viewsvc.ClusterStatus) bool { return c.nodes["n2"] != nil || start() == nil })
	c.safe("vol0", 2)
}

// Who hangs while it is opened does not keep its turn for ever.
func TestTurnOfWhoHangsIsGivenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{slots: make(chan struct{}, openAtOnce)}
		began := time.Now()
		for range openAtOnce {
			n.slot() // and never released
		}
		release := n.slot()
		if waited := time.Since(began); waited != slotPatience {
			t.Errorf("the next had its turn after %v", waited)
		}
		release()
		release()
		if len(n.slots) > openAtOnce {
			t.Error("a turn was given back twice")
		}
	})
}

// A replica that lost a frame of its log is no use, and no reason to call an operator while another member has everything: it
// is set aside whole, told of, and a new one is filled. That holds for a backup and for the primary.
func TestReplicaWithARottenFrameHeaderIsSetAsideAndMadeAnew(t *testing.T) {
	for _, role := range []string{"backup", "primary"} {
		t.Run(role, func(t *testing.T) {
			c := startCluster(t, 1)
			disk := memfs.New()
			c.memNode("n2", disk, nil)
			c.create(viewsvc.Volume{Name: "vol0", Size: 4 << 20, Copies: 2})
			c.safe("vol0", 2)
			c.handover("vol0", map[string]viewsvc.NodeID{"backup": "n1", "primary": "n2"}[role])
			v := c.safe("vol0", 2)
			want := make([]byte, 4<<20)
			conn := c.dial(v)
			for i := range 20 {
				copy(want[i*blockdev.BlockSize:], bytes.Repeat([]byte{byte(i + 1)}, blockdev.BlockSize))
				if _, err := conn.WriteAt(want[i*blockdev.BlockSize:][:blockdev.BlockSize], int64(i*blockdev.BlockSize)); err != nil {
					t.Fatal(err)
				}
			}
			conn.Close()
			old := nodeNamed(v, "n2").Replica
			dir := c.nodes["n2"].home.volumeDir(v.Volume.ID)
			killed := disk.Kill()
			c.stop("n2")
			c.safe("vol0", 1)
			if err := killed.Flip(path.Join(dir, "wal/00.seg"), frameAmong(t, killed, dir, 10)+20, 1); err != nil {
				t.Fatal(err)
			}

			told := make(chan Event, 100)
			n2 := c.memNode("n2", killed, func(e Event) {
				if e.Kind == EventOutcast || e.Kind == EventUnusable {
					told <- e
				}
			})
			v = c.safe("vol0", 2)
			if got := nodeNamed(v, "n2").Replica; got == old || v.View.Has(old) {
				t.Errorf("the damaged replica is a member of %+v", v.View)
			}
			for _, kind := range []EventKind{EventUnusable, EventOutcast} {
				if e := <-told; e.Kind != kind || !blockdev.Damaged(e.Err) {
					t.Errorf("told of %+v, want %s for damage", e, kind)
				}
			}
			names, err := killed.List(path.Dir(dir))
			if err != nil || len(names) != 2 || !strings.HasPrefix(names[1], names[0]+".damaged.") {
				t.Fatalf("in the directory: %v, %v", names, err)
			}
			if kept, err := killed.List(path.Join(path.Dir(dir), names[1])); err != nil || len(kept) < 7 {
				t.Errorf("kept of the damaged replica: %v, %v", kept, err)
			}
			if n2.replicaOf(v.Volume.ID) == nil {
				t.Fatal("no replica")
			}
			c.stop("n1")
			v = c.safe("vol0", 1)
			conn = c.dial(v)
			defer conn.Close()
			got := make([]byte, len(want))
			if _, err := conn.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the new replica's content: %v, as written: %v", err, bytes.Equal(got, want))
			}
		})
	}
}

func nodeNamed(v viewsvc.VolumeStatus, id viewsvc.NodeID) viewsvc.Peer {
	for _, p := range v.Peers {
		if p.Node == id {
			return p
		}
	}
	return viewsvc.Peer{}
}

// frameAmong finds where in the first segment the n-th frame begins.
func frameAmong(t *testing.T, fsys *memfs.FS, dir string, n int) int64 {
	t.Helper()
	f, err := fsys.Open(path.Join(dir, "wal/00.seg"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [4]byte
	for off := int64(0); ; off += blockdev.BlockSize {
		if _, err := f.ReadAt(b[:], off); err != nil {
			t.Fatal(err)
		}
		if binary.LittleEndian.Uint32(b[:]) != 0x31534b4c { // "LKS1"
			continue
		}
		if n--; n == 0 {
			return off
		}
	}
}
