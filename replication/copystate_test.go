package replication

import (
	"encoding/json"
	"io"
	"net"
	"path"
	"testing"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// A view that a learner hears of while a copy of it begins, or ends, is on its disk afterwards (I1): each takes the disk for a
// while, and the learner acts in the view meanwhile.
func TestViewHeardDuringACopyStaysStored(t *testing.T) {
	disk := memfs.New()
	err := blockdev.Format(disk, "vol", blockdev.FormatOptions{LogBytes: 1 << 20, SegmentBytes: 256 << 10,
		Identity: blockdev.Identity{Cluster: groupCluster, Volume: "v", Replica: "b", Size: 4 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	st, err := blockdev.OpenStore(blockdev.StoreOptions{FS: disk, Dir: "vol", Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenReplica(ReplicaOptions{Store: st, Cluster: groupCluster, Volume: viewsvc.Volume{ID: "v", Name: "vol0"}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	here, there := net.Pipe()
	defer here.Close()
	go io.Copy(io.Discard, there) // until here is closed
	f := &follower{r: r, conn: here, from: "a", answer: r.rt.Mutex()}

	for num, work := range []func() error{
		func() error { return f.beginAnew(startCopy{}) },
		func() error { return f.onCopyDone(0) },
	} {
		v := viewsvc.View{Volume: "v", Num: viewsvc.ViewNum(num + 1), Tenure: 1, Primary: "a"}
		disk.BeforeEach(func(op memfs.Op) {
			if op.Kind == "sync" && path.Base(op.Name) == "data.img" {
				disk.BeforeEach(nil)
				r.do(func(c *Core) { c.Observe(v) })
			}
		})
		if err := work(); err != nil {
			t.Fatal(err)
		}
		var hard hardState
		if err := json.Unmarshal(st.Protocol(), &hard); err != nil || r.core.View().Num != v.Num || hard.View.Num != v.Num {
			t.Errorf("in view %d, stored is view %d: %v", r.core.View().Num, hard.View.Num, err)
		}
	}
	if st.Copying() {
		t.Error("the copy has not ended")
	}
}
