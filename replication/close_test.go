package replication

import (
	"errors"
	"path"
	"testing"
	"testing/synctest"
	"time"

	"lockstep/blockdev"
	"lockstep/wal/vfs/memfs"
)

// A disk that hangs under the committer is waited for by Close, for a while. Whoever stops a node, or moves a replica away,
// then gets an error; nobody else gets the replica before the disk is back, and what it left is right.
func TestCloseGivesUpOnADiskThatHangs(t *testing.T) {
	for _, op := range []string{"write", "sync"} {
		bubble(t, 1, groupOptions{}, func(g *group, _ *memNet) {
			r := g.open(1)
			c := g.attachTo(r)
			g.mustComplete(c, writeVersion(0, 1))
			disk := g.all["a"].fs
			release := make(chan struct{})
			disk.Inject(func(o memfs.Op) (e memfs.Effect) {
				if o.Kind == op && path.Base(o.Name) == "00.seg" {
					e.Hang = release
				}
				return e
			})
			go c.s.Submit([]*blockdev.Request{writeVersion(1, 2)}) // until the disk is back
			time.Sleep(time.Second)
			began := time.Now()
			err := r.Close()
			if !errors.Is(err, blockdev.ErrDiskHangs) || time.Since(began) != closePatience {
				t.Errorf("%s: closed after %v: %v", op, time.Since(began), err)
			}
			if err := r.Close(); err != nil {
				t.Errorf("%s: closed again: %v", op, err)
			}
			again := blockdev.StoreOptions{FS: disk, Dir: "vol", Manual: true}
			if _, err := blockdev.OpenStore(again); !errors.Is(err, blockdev.ErrInUse) {
				t.Errorf("%s: opened beside the operation that hangs: %v", op, err)
			}
			close(release)
			synctest.Wait()
			st, err := blockdev.OpenStore(again)
			if err != nil {
				t.Fatalf("%s: when the disk is back: %v", op, err)
			}
			if !st.CleanStart() {
				t.Errorf("%s: it was not closed properly when the disk came back", op)
			}
			if err := st.Abandon(); err != nil {
				t.Error(err)
			}
		})
	}
}
