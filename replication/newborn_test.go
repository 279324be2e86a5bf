package replication

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal/vfs"
)

// A node can be killed right after it formatted a replica, before the replica saved anything. It starts again, and the
// replica serves when it is ordered to.
func TestNodeKilledRightAfterFormattingStartsAgain(t *testing.T) {
	c := startCluster(t, 1)
	v, err := c.c.CreateVolume(context.Background(), viewsvc.Volume{Name: "vol0", Size: 64 << 20, Copies: 1, MinCopies: 1, Sync: viewsvc.SyncFlush})
	if err != nil {
		t.Fatal(err)
	}
	c.safe("vol0", 1)
	home := c.nodes["n1"].home
	dir, cluster := home.volumeDir(v.ID), home.cluster()
	c.stop("n1")
	if err := blockdev.Remove(vfs.OS{}, dir); err != nil {
		t.Fatal(err)
	}
	err = blockdev.Format(vfs.OS{}, dir, blockdev.FormatOptions{LogBytes: 256 << 20,
		Identity: blockdev.Identity{Cluster: cluster, Volume: string(v.ID), Replica: "newborn", Size: v.Size}})
	if err != nil {
		t.Fatal(err)
	}
	n := c.start("n1")
	c.await("a report of the new replica", func(viewsvc.ClusterStatus) bool {
		return n.replicaOf(v.ID).Volume() == v // as ordered, not as guessed
	})
}

// The same for a node that was killed in the middle of formatting; but a replica that lost its meta file stops it.
func TestNodeStartsWithAHalfFormattedReplicaOnly(t *testing.T) {
	c := startCluster(t, 1)
	v, err := c.c.CreateVolume(context.Background(), viewsvc.Volume{Name: "vol0", Size: 64 << 20, Copies: 1, MinCopies: 1, Sync: viewsvc.SyncAlways})
	if err != nil {
		t.Fatal(err)
	}
	c.safe("vol0", 1)
	dir := c.nodes["n1"].home.volumeDir(v.ID)
	c.stop("n1")
	fsys := vfs.OS{}
	if err := fsys.Rename(filepath.Join(dir, "meta"), filepath.Join(dir, "saved")); err != nil {
		t.Fatal(err)
	}
	_, err = StartNode(NodeOptions{ID: "n1", Dir: filepath.Join(c.dir, "n1"), Listen: "127.0.0.1:0", NBD: "127.0.0.1:0", View: []string{c.view.Addr()}})
	if _, damaged := errors.AsType[*blockdev.DamagedError](err); !damaged {
		t.Fatalf("without meta: got %v, want a *DamagedError", err)
	}
	if err := fsys.Rename(filepath.Join(dir, "saved"), filepath.Join(dir, "meta.new")); err != nil {
		t.Fatal(err)
	}
	c.start("n1")
}
