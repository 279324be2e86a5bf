package replication

import (
	"path"
	"sync"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// A power failure while a learner is sent the log can take one of the frames that it had not synced, and leave later ones, which
// say that the others had it on stable storage. That is a torn tail, no damage: the learner starts, and gets the rest.
func TestLearnerStartsAfterAPowerFailure(t *testing.T) {
	bubble(t, 2, groupOptions{sync: viewsvc.SyncFlush}, func(g *group, _ *memNet) { // a burst of frames is synced at a time
		c := g.attachTo(g.open(2))
		g.mustComplete(c, writeVersion(0, 1))
		g.kill("b")
		g.open(1)
		for i := range 100 {
			g.mustComplete(c, writeVersion(i, 2))
		}
		var (
			mu    sync.Mutex
			after *memfs.FS
		)
		disk := g.all["b"].fs
		disk.BeforeEach(func(op memfs.Op) {
			mu.Lock()
			defer mu.Unlock()
			if op.Kind != "sync" || path.Base(op.Name) != "00.seg" || after != nil {
				return
			}
			var frames []int
			for i, p := range disk.Pending() {
				if p.Kind == "write" && path.Base(p.Name) == "00.seg" {
					frames = append(frames, i)
				}
			}
			if len(frames) > 10 {
				after = disk.Crash(memfs.Drop(frames[3]))
			}
		})
		g.start("b")
		g.open(2)
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		if after == nil {
			t.Fatal("the learner never had many frames to sync")
		}
		o := blockdev.StoreOptions{FS: after, Dir: "vol", Manual: true}
		if _, err := blockdev.OpenStore(o); !wal.Damaged(err) {
			t.Errorf("nothing to see: taken for a member it opens: %v", err)
		}
		after.Restart()
		o.Learner = Learner
		st, err := blockdev.OpenStore(o)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Abandon()
		if m := st.Marks(); m.End < 2 || m.End > 20 {
			t.Errorf("it opens with %+v", m)
		}
	})
}
