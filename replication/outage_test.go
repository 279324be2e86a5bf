package replication

import (
	"fmt"
	"path"
	"sync"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// What a replica is sent that was away for a short while: the log reaches back, so whatever was written is known.

// outage is how clients write while a replica is away: every stride-th block from 0 on, blocks of them, so many times,
// length blocks at once.
type outage struct {
	blocks, stride, times, length int
}

// writes carries it out, and returns how many bytes were written at least once.
func (o outage) writes(g *group, c *client, disk []byte) int {
	for n := range o.times {
		for i := 0; i < o.blocks; i += o.length {
			q := writeVersion(i*o.stride, uint64(n+2))
			for k := 1; k < o.length; k++ {
				q.Data = append(q.Data, versionBlock(i*o.stride+k, uint64(n+2))...)
			}
			q.Length = uint32(len(q.Data))
			copy(disk[q.Offset:], q.Data)
			g.mustComplete(c, q)
		}
	}
	return o.blocks * blockdev.BlockSize
}

const outageVolume = 48 << 20

func outageGroup(t *testing.T, f func(g *group, n *memNet)) {
	bubble(t, 2, groupOptions{size: outageVolume, logBytes: 96 << 20, segBytes: 32 << 20}, f)
}

func TestShortOutageShipsHardlyMoreThanTheDistinctBytes(t *testing.T) {
	for _, o := range []outage{
		{blocks: 2048, stride: 1, times: 4, length: 1},   // written over and over
		{blocks: 1024, stride: 11, times: 3, length: 1},  // the same, all over the volume
		{blocks: 2048, stride: 5, times: 1, length: 1},   // small writes, each once: a header for each in the log
		{blocks: 4096, stride: 1, times: 2, length: 256}, // large writes
		{blocks: 4096, stride: 1, times: 1, length: 256}, // the log takes hardly more than its payload
	} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			outageGroup(t, func(g *group, n *memNet) {
				c := g.attachTo(g.open(2))
				disk := make([]byte, outageVolume)
				outage{blocks: 2048, stride: 3, times: 1, length: 1}.writes(g, c, disk)
				time.Sleep(time.Second) // the backup hears of the commit
				g.kill("b")
				g.open(1)
				distinct := o.writes(g, c, disk)
				before := n.bytes("a", "b")
				g.start("b")
				g.open(2)
				sent := n.bytes("a", "b") - before
				t.Logf("%d distinct bytes, %d sent: %.3f", distinct, sent, float64(sent)/float64(distinct))
				if float64(sent) > 1.05*float64(distinct) {
					t.Errorf("%d bytes were sent for %d that were written meanwhile", sent, distinct)
				}
				g.kill("a")
				g.open(1)
				g.sameOnAll(disk)
			})
		})
	}
}

// holdCopy has a learner's disk hang in the middle of a copy, and returns what ends that.
func (g *group) holdCopy(id viewsvc.ReplicaID) (release func()) {
	g.t.Helper()
	hung, free := make(chan struct{}), make(chan struct{})
	st, writes := g.replica(id).store, 0
	g.all[id].fs.Inject(func(op memfs.Op) (e memfs.Effect) {
		if op.Kind == "write" && path.Base(op.Name) == "data.img" && st.Copying() {
			if writes++; writes == 100 {
				close(hung)
				e.Hang = free
			}
		}
		return e
	})
	<-hung
	return sync.OnceFunc(func() { close(free) })
}

// halfCopied is a group in the middle of a copy from a to b of the blocks that changed while b was away. It returns what the
// clients wrote, and what lets b's disk go on.
func (g *group) halfCopied() (disk []byte, release func()) {
	c := g.attachTo(g.open(2))
	disk = make([]byte, outageVolume)
	outage{blocks: 1024, stride: 3, times: 1, length: 1}.writes(g, c, disk)
	g.crash("b")
	g.open(1)
	outage{blocks: 2048, stride: 5, times: 2, length: 1}.writes(g, c, disk)
	g.start("b")
	return disk, g.holdCopy("b")
}

// Half a copy is neither the old nor the new content: it does not serve, also if an operator's order names it because the view
// service has not heard yet that the copy began.
func TestForcedHalfCopyDoesNotServe(t *testing.T) {
	outageGroup(t, func(g *group, n *memNet) {
		disk, release := g.halfCopied()
		g.kill("a")
		unpin := g.pin()
		g.become("b")
		release()
		time.Sleep(10 * time.Second)
		if rep := g.replica("b").Report(); rep.Role != viewsvc.RolePoisoned || !rep.Copying {
			t.Errorf("half a copy is %v: %+v", rep.Role, rep)
		}
		g.become("a") // the operator's second thought
		unpin()
		g.start("a")
		g.kill("b")
		g.start("b")
		g.open(2)
		g.sameOnAll(disk)
	})
}

// The copy of the blocks that changed ends early, or the primary does: what is left is copied, and nothing is lost.
func TestCopyOfChangedBlocksGoesOnAfterEitherSideCrashed(t *testing.T) {
	for _, gone := range []viewsvc.ReplicaID{"a", "b"} {
		t.Run(string(gone), func(t *testing.T) {
			outageGroup(t, func(g *group, n *memNet) {
				disk, release := g.halfCopied()
				if rep := g.replica("b").Report(); rep.Role != viewsvc.RoleLearner {
					t.Errorf("half a copy is %v", rep.Role)
				}
				if gone == "b" {
					g.all["b"].fs.StopAt(0)
					release()
				}
				g.crash(gone)
				release()
				g.start(gone)
				c := g.attachTo(g.open(2))
				outage{blocks: 64, stride: 1, times: 1, length: 1}.writes(g, c, disk)
				g.sameOnAll(disk)
				if g.replica("b").store.Copying() {
					t.Error("a member has half a copy")
				}
			})
		})
	}
}
