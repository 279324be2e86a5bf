package replication

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// rot overwrites a block of a replica's image behind its back, once the image has it.
func (c *cluster) rot(v viewsvc.VolumeStatus, node viewsvc.NodeID, block int64) {
	c.t.Helper()
	st := c.nodes[node].replicaOf(v.Volume.ID).store
	for deadline := time.Now().Add(20 * time.Second); st.Marks().Applied < st.Marks().End; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("%s does not apply: %+v", node, st.Marks())
		}
	}
	f, err := os.OpenFile(filepath.Join(c.dir, string(node), volumesDir, string(v.Volume.ID), "data.img"), os.O_WRONLY, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("rotten"), block*blockdev.BlockSize+100); err != nil {
		c.t.Fatal(err)
	}
}

func TestRottenBlockIsRepairedFromTheBackupElseEIO(t *testing.T) {
	c := startCluster(t, 2)
	c.create(viewsvc.Volume{Name: "vol0", Size: 16 << 20, Copies: 2, MinCopies: 1, Sync: viewsvc.SyncAlways})
	v := c.safe("vol0", 2)
	d := c.dial(v)
	defer d.Close()
	want := bytes.Repeat([]byte("fresh..."), 4*blockdev.BlockSize/8)
	if _, err := d.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	primary := nodeOf(v, v.View.Primary).Node
	got := make([]byte, len(want))
	for _, block := range []int64{0, 3} {
		c.rot(v, primary, block)
	}
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read of rotten blocks beside a good copy: %v, right data: %v", err, bytes.Equal(got, want))
	}

	// A write to a part of a rotten block has to be merged with what was there.
	c.rot(v, primary, 1)
	copy(want[blockdev.BlockSize+7:], "patch")
	if _, err := d.WriteAt([]byte("patch"), blockdev.BlockSize+7); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("after a merge with a rotten block: %v, right data: %v", err, bytes.Equal(got, want))
	}

	// Without another copy the block is an error, and its neighbours are not.
	c.stop(nodeOf(v, v.View.Backups[0]).Node)
	v = c.safe("vol0", 1)
	c.rot(v, primary, 2)
	if _, err := d.ReadAt(got[:blockdev.BlockSize], 2*blockdev.BlockSize); !errors.Is(err, blockdev.ErrIO) {
		t.Errorf("read of a rotten block without a good copy: %v, want ErrIO", err)
	}
	if _, err := d.ReadAt(got[:blockdev.BlockSize], 3*blockdev.BlockSize); err != nil || !bytes.Equal(got[:blockdev.BlockSize], want[3*blockdev.BlockSize:]) {
		t.Errorf("its neighbour: %v", err)
	}
}

// A scrub finds rot that nobody reads, and repairs it: at the primary from a backup, at a backup from the primary.
func TestScrubRepairsFromTheOtherMember(t *testing.T) {
	c := startCluster(t, 2)
	c.create(viewsvc.Volume{Name: "vol0", Size: 16 << 20, Copies: 2, MinCopies: 1, Sync: viewsvc.SyncAlways})
	v := c.safe("vol0", 2)
	d := c.dial(v)
	defer d.Close()
	if _, err := d.WriteAt(bytes.Repeat([]byte("fresh..."), 8*blockdev.BlockSize/8), 0); err != nil {
		t.Fatal(err)
	}
	for i, id := range []viewsvc.ReplicaID{v.View.Primary, v.View.Backups[0]} {
		node := nodeOf(v, id).Node
		c.rot(v, node, int64(i))
		c.rot(v, node, int64(i+5))
		st := c.nodes[node].replicaOf(v.Volume.ID).store
		got, err := st.Scrub(t.Context(), 0)
		if err != nil || got.Bad != 2 || got.Repaired != 2 {
			t.Errorf("%s: %+v, %v", node, got, err)
		}
		if got, err = st.Scrub(t.Context(), 0); err != nil || got.Bad != 0 || got.Blocks < 8 {
			t.Errorf("%s, once more: %+v, %v", node, got, err)
		}
	}
}
