package replication

import (
	"context"
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
		r := n.replicaOf(v.ID)
		return r != nil && r.Volume() == v // as ordered, not as guessed
	})
}

// The same for a node that was killed in the middle of formatting.
func TestHalfFormattedReplicaIsMadeAnew(t *testing.T) {
	c := startCluster(t, 1)
	c.create(viewsvc.Volume{Name: "vol0", Size: 64 << 20, Copies: 1, MinCopies: 1, Sync: viewsvc.SyncAlways})
	v := c.safe("vol0", 1)
	dir := c.nodes["n1"].home.volumeDir(v.Volume.ID)
	c.stop("n1")
	if err := (vfs.OS{}).Rename(filepath.Join(dir, "meta"), filepath.Join(dir, "meta.new")); err != nil {
		t.Fatal(err)
	}
	n := c.start("n1")
	c.await("a new replica", func(viewsvc.ClusterStatus) bool {
		r := n.replicaOf(v.Volume.ID)
		return r != nil && r.ID() != v.View.Primary
	})
}
