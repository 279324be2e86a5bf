package replication

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// A disk that hangs while a view is stored holds up one volume. Its node goes on telling that it lives, does what it is
// told about its other volumes, and says of the one that hangs that it does: so somebody else serves that.
func TestHangingDiskOfOneVolumeSilencesNoNode(t *testing.T) {
	c := startCluster(t, 1)
	disk := memfs.New()
	n2, err := StartNode(NodeOptions{ID: "n2", Dir: "n2", FS: disk, Listen: "127.0.0.1:0", NBD: "127.0.0.1:0",
		View: []string{c.view.Addr()}, LogBytes: 16 << 20, OnEvent: func(e Event) { t.Logf("n2: %+v", e) }})
	if err != nil {
		t.Fatal(err)
	}
	c.nodes["n2"] = n2
	for _, name := range []string{"hangs", "works"} {
		c.create(viewsvc.Volume{Name: name, Size: 4 << 20, Copies: 2})
		c.safe(name, 2)
		c.handover(name, "n1")
	}
	hangs := c.safe("hangs", 2)

	release := make(chan struct{})
	defer close(release)
	disk.Inject(func(op memfs.Op) (e memfs.Effect) {
		if op.Kind == "sync" && filepath.Base(op.Name) == "meta" && strings.Contains(op.Name, string(hangs.Volume.ID)) {
			e.Hang = release
		}
		return e
	})
	if _, err := c.c.Handover(context.Background(), "hangs", "n2"); err != nil {
		t.Fatal(err)
	}
	for _, to := range []viewsvc.NodeID{"n2", "n1", "n2"} {
		c.handover("works", to)
	}
	c.await("n1 in the place of the one whose disk hangs", func(s viewsvc.ClusterStatus) bool {
		for _, n := range s.Nodes {
			if !n.Alive {
				t.Fatalf("node %s is called dead", n.ID)
			}
		}
		for _, v := range s.Volumes {
			if v.Volume.Name == "hangs" {
				return nodeOf(v, v.View.Primary).Node == "n1"
			}
		}
		return false
	})
	c.handover("works", "n1")
	if got := n2.Stats().Replicas; len(got) != 2 {
		t.Errorf("numbers of %d replicas", len(got))
	}
}

// handover makes a node the primary of a volume, if it is not.
func (c *cluster) handover(name string, to viewsvc.NodeID) {
	c.t.Helper()
	if v := c.safe(name, 2); nodeOf(v, v.View.Primary).Node == to {
		return
	}
	if _, err := c.c.Handover(context.Background(), name, to); err != nil {
		c.t.Fatal(err)
	}
}
