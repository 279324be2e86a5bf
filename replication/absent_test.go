package replication

import (
	"context"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal/vfs"
)

// gateFS lets no image be made before go is closed, or fails it with err.
type gateFS struct {
	vfs.OS
	reached chan struct{}
	open    chan struct{}
	err     error
}

func (f gateFS) Create(name string) (vfs.File, error) {
	if path.Base(name) == "data.img" {
		f.reached <- struct{}{}
		<-f.open
		if f.err != nil {
			return nil, f.err
		}
	}
	return f.OS.Create(name)
}

// startOn starts node n1 on a file system.
func (c *cluster) startOn(fsys vfs.FS) *Node {
	c.t.Helper()
	n, err := StartNode(NodeOptions{ID: "n1", Dir: filepath.Join(c.dir, "n1"), Listen: "127.0.0.1:0", NBD: "127.0.0.1:0",
		View: []string{c.view.Addr()}, LogBytes: 256 << 20, FS: fsys, OnEvent: func(e Event) { c.t.Logf("n1: %+v", e) }})
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes["n1"] = n
	c.await("n1 alive", func(s viewsvc.ClusterStatus) bool { return len(s.Nodes) == 1 && s.Nodes[0].Alive })
	return n
}

// A volume that is deleted while a node still formats its copy leaves nothing behind.
func TestVolumeDeletedWhileItsCopyIsMadeLeavesNothing(t *testing.T) {
	c := startCluster(t, 0)
	gate := gateFS{reached: make(chan struct{}, 8), open: make(chan struct{})}
	n := c.startOn(gate)
	v, err := c.c.CreateVolume(t.Context(), viewsvc.Volume{Name: "vol0", Size: 64 << 20, Copies: 1, MinCopies: 1, Sync: viewsvc.SyncAlways})
	if err != nil {
		t.Fatal(err)
	}
	<-gate.reached
	if err := c.c.DeleteVolume(t.Context(), "vol0"); err != nil {
		t.Fatal(err)
	}
	pings := n.pings.Load()
	c.await("n1 has heard of the deletion", func(s viewsvc.ClusterStatus) bool {
		if len(s.Volumes) != 1 {
			t.Fatal("the volume is forgotten while its copy is made")
		}
		return n.pings.Load() > pings+4
	})
	close(gate.open)
	c.await("the volume gone", func(s viewsvc.ClusterStatus) bool { return len(s.Volumes) == 0 })
	if n.home.has(v.ID) || n.replicaOf(v.ID) != nil {
		t.Error("the copy is still there")
	}
}

// What keeps a node from making a copy is told, takes no room, and does not keep the volume from being deleted.
func TestCopyThatCannotBeMadeIsToldOf(t *testing.T) {
	c := startCluster(t, 0)
	gate := gateFS{reached: make(chan struct{}, 8), open: make(chan struct{}), err: syscall.EFBIG}
	close(gate.open)
	n := c.startOn(gate)
	v, err := c.c.CreateVolume(t.Context(), viewsvc.Volume{Name: "vol0", Size: 64 << 20, Copies: 1, MinCopies: 1, Sync: viewsvc.SyncAlways})
	if err != nil {
		t.Fatal(err)
	}
	c.await("the trouble of n1", func(s viewsvc.ClusterStatus) bool {
		told := s.Volumes[0].Troubles
		return len(told) == 1 && told[0].Node == "n1" && strings.HasSuffix(told[0].Error, "data.img: file too large")
	})
	if names, err := (vfs.OS{}).List(n.home.volumeDir(v.ID)); err != nil || len(names) > 1 { // the lock
		t.Errorf("it left %v, %v", names, err)
	}
	if err := c.c.DeleteVolume(t.Context(), "vol0"); err != nil {
		t.Fatal(err)
	}
	c.await("the volume gone", func(s viewsvc.ClusterStatus) bool { return len(s.Volumes) == 0 })
	if n.home.has(v.ID) {
		t.Error("its directory is still there")
	}
}

// The only replica of a volume, if it is damaged, is told of and stays as it is until its volume is deleted.
func TestDamagedReplicaIsToldOfAndGoesWithItsVolume(t *testing.T) {
	c := startCluster(t, 0)
	n := c.startOn(vfs.OS{})
	v, err := c.c.CreateVolume(t.Context(), viewsvc.Volume{Name: "vol0", Size: 64 << 20, Copies: 1, MinCopies: 1, Sync: viewsvc.SyncAlways})
	if err != nil {
		t.Fatal(err)
	}
	c.safe("vol0", 1)
	c.stop("n1")
	fsys := vfs.OS{}
	if err := fsys.Rename(path.Join(n.home.volumeDir(v.ID), "regions"), path.Join(c.dir, "lost")); err != nil {
		t.Fatal(err)
	}
	n = c.startOn(fsys)
	c.await("the damage", func(s viewsvc.ClusterStatus) bool {
		told := s.Volumes[len(s.Volumes)-1].Troubles
		// The node has been ordered to make another, and has not.
		return len(told) == 1 && strings.Contains(told[0].Error, "regions: is missing") &&
			strings.HasSuffix(told[0].Error, "it is a member of view 1 and stays as it is until others go on without it")
	})
	if told := n.Stats().Unusable; len(told) != 1 || !blockdev.Damaged(told[0]) {
		t.Errorf("the node's numbers tell of %v", told)
	}
	if err := c.c.DeleteVolume(context.Background(), "vol0"); err != nil {
		t.Fatal(err)
	}
	c.await("the volume gone", func(s viewsvc.ClusterStatus) bool { return len(s.Volumes) == 0 })
	if n.home.has(v.ID) {
		t.Error("its directory is still there")
	}
}
