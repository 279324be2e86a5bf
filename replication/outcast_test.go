package replication

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// A forced promotion makes history go on without what the former primary has. When that returns it is set aside, and its
// node gets a copy that is like the others.
func TestReplicaOfALostBranchIsSetAsideAndMadeAnew(t *testing.T) {
	c := startCluster(t, 2)
	c.create(viewsvc.Volume{Name: "vol0", Size: 4 << 20, Copies: 2, MinCopies: 1, Sync: viewsvc.SyncAlways})
	v := c.safe("vol0", 2)
	old := nodeOf(v, v.View.Primary)
	other := nodeOf(v, v.View.Backups[0])
	put := func(v viewsvc.VolumeStatus, what string, off int64) {
		t.Helper()
		d := c.dial(v)
		defer d.Close()
		if _, err := d.WriteAt(bytes.Repeat([]byte(what), 4096/len(what)), off); err != nil {
			t.Fatal(err)
		}
	}
	put(v, "both....", 0)
	c.stop(other.Node)
	v = c.safe("vol0", 1)
	put(v, "lost....", 0)
	put(v, "lost....", 1<<20) // where the other branch never writes
	c.stop(old.Node)          // cleanly: it is all in the image

	c.start(other.Node)
	c.await("forced promotion", func(viewsvc.ClusterStatus) bool { // when the node has opened its copy
		_, err := c.c.Force(context.Background(), "vol0", other.Node, "test")
		return err == nil
	})
	v = c.safe("vol0", 1)
	put(v, "kept....", 8192)
	c.start(old.Node)
	v = c.safe("vol0", 2)
	if v.View.Has(old.Replica) {
		t.Fatal("the replica of the lost branch is a member")
	}
	aside, err := filepath.Glob(filepath.Join(c.dir, string(old.Node), volumesDir, "*.outcast.*"))
	if err != nil || len(aside) != 1 || !strings.Contains(aside[0], string(old.Replica)) {
		t.Errorf("set aside: %v, %v", aside, err)
	}
	c.stop(other.Node)
	v = c.safe("vol0", 1)
	d := c.dial(v)
	defer d.Close()
	got := make([]byte, 4<<20)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4<<20)
	copy(want, bytes.Repeat([]byte("both...."), 512))
	copy(want[8192:], bytes.Repeat([]byte("kept...."), 512))
	if !bytes.Equal(got, want) {
		t.Error("the new copy is not the history that went on")
	}
}

// What a replica of a lost branch has committed counts as what it has applied: a copy brings it into the image before
// anything is copied over that. So it is disowned also when its image has nothing of the lost branch yet.
func TestCommittedRecordsOfALostBranchAreNotBuiltUpon(t *testing.T) {
	outageGroup(t, func(g *group, _ *memNet) {
		g.mustComplete(g.attachTo(g.open(2)), writeVersion(0, 1))
		g.stop("b")
		g.open(1)
		g.stop("a") // with all that b has in its image
		g.start("a")
		c := g.attachTo(g.open(1))
		const lost = 5 * blockdev.RegionBlocks // where the other branch never writes
		g.mustComplete(c, writeVersion(lost, 2))
		g.mustComplete(c, writeVersion(lost+1, 3)) // says that the one before is committed
		unpin := g.pin()
		defer unpin()
		g.kill("a")
		g.start("b")
		g.become("b") // by force
		c = g.attachTo(g.open(1))
		outage{blocks: 512, stride: 1, times: 4, length: 1}.writes(g, c, make([]byte, outageVolume)) // cheaper to copy than to ship
		unpin()
		g.start("a")
		if m := g.replica("a").store.Marks(); m.Applied >= m.Committed {
			t.Fatalf("nothing to see: applied %d, committed %d", m.Applied, m.Committed)
		}
		time.Sleep(10 * time.Second)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.view.Has("a") {
			t.Error("the replica of the lost branch is a member")
		}
	})
}
