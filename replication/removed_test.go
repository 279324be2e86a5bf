package replication

import (
	"errors"
	"testing"
	"time"

	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// first is the first error that comes, nil if none does.
func first(told <-chan error) error {
	select {
	case err := <-told:
		return err
	case <-time.After(20 * time.Second):
		return nil
	}
}

// Seen to fail: the volume stayed safe with a copy that had no name any more.
func TestReplicaWhoseDirectoryIsRemovedIsNoMember(t *testing.T) {
	c := startCluster(t, 1)
	disk := memfs.New()
	told := make(chan error, 100)
	n2 := c.memNode("n2", disk, func(e Event) {
		if e.Kind == EventStorage || e.Kind == EventPoisoned {
			told <- e.Err
		}
	})
	c.create(viewsvc.Volume{Name: "vol0", Size: 4 << 20, Copies: 2})
	c.safe("vol0", 2)
	c.handover("vol0", "n2")
	v := c.safe("vol0", 2)
	n2.look()
	if len(told) > 0 {
		t.Fatalf("nothing was removed, and it says %v", <-told)
	}
	if err := disk.RemoveAll(n2.home.volumeDir(v.Volume.ID)); err != nil {
		t.Fatal(err)
	}
	n2.look()
	if err := first(told); !errors.Is(err, errRemoved) {
		t.Errorf("it says %v", err)
	}
	if v = c.safe("vol0", 1); nodeOf(v, v.View.Primary).Node != "n1" {
		t.Errorf("view %+v", v.View)
	}
}

// The only copy there is goes on, nameless as it is: another can be made from it.
func TestOnlyReplicaGoesOnWithoutItsDirectory(t *testing.T) {
	c := startCluster(t, 0)
	disk := memfs.New()
	told := make(chan error, 100)
	n1 := c.memNode("n1", disk, func(e Event) {
		if e.Kind == EventStorage {
			told <- e.Err
		}
	})
	c.await("n1", func(s viewsvc.ClusterStatus) bool { return len(s.Nodes) == 1 && s.Nodes[0].Alive })
	c.create(viewsvc.Volume{Name: "vol0", Size: 4 << 20, Copies: 2})
	v := c.safe("vol0", 1)
	if err := disk.RemoveAll(n1.home.volumeDir(v.Volume.ID)); err != nil {
		t.Fatal(err)
	}
	n1.look()
	if err := first(told); !errors.Is(err, errRemoved) {
		t.Errorf("it says %v", err)
	}
	conn := c.dial(v)
	defer conn.Close()
	if _, err := conn.WriteAt([]byte("still here"), 0); err != nil {
		t.Error(err)
	}
	c.start("n2")
	c.safe("vol0", 2)
	n1.look()
	if v = c.safe("vol0", 1); nodeOf(v, v.View.Primary).Node != "n2" {
		t.Errorf("view %+v", v.View)
	}
}
