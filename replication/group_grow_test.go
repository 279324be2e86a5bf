package replication

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// wish is an operator's for a larger volume; 0 takes it back.
func (g *group) wish(size uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.volume.Wanted = size
}

// grown waits until clients are told the size.
func (g *group) grown(size uint64) *Replica {
	g.t.Helper()
	var r *Replica
	g.await(fmt.Sprintf("volume of %d bytes", size), func(v viewsvc.View) bool {
		r = g.replica(v.Primary)
		return r != nil && r.Report().Serves == size
	})
	return r
}

// reaches tells whether clients may use a block.
func (g *group) reaches(r *Replica, block uint64) bool {
	g.t.Helper()
	c := g.attachTo(r)
	q := readBlock(block)
	if !c.try(q) {
		g.t.Fatalf("the session ended")
	}
	if q.Err != nil && !errors.Is(q.Err, blockdev.ErrOutOfRange) {
		g.t.Fatal(q.Err)
	}
	return q.Err == nil
}

func (w *blockWriter) extend(size uint64) {
	more := make([]uint64, size/blockdev.BlockSize-uint64(len(w.acked)))
	w.acked, w.tried = append(w.acked, more...), append(w.tried, more...)
}

func TestVolumeGrowsUnderLoad(t *testing.T) {
	for _, mode := range []viewsvc.SyncMode{viewsvc.SyncAlways, viewsvc.SyncFlush} {
		t.Run(string(mode), func(t *testing.T) {
			const first = 4 << 20
			g := newGroup(t, groupOptions{replicas: 3, size: first, logBytes: 16 << 20, segBytes: 4 << 20, sync: mode})
			w := newBlockWriter(g)
			for i, size := range []uint64{first + 3*blockdev.BlockSize, 5<<20 + blockdev.BlockSize, 9 << 20} {
				r := g.open(3)
				old := r.Geometry().Size / blockdev.BlockSize
				if g.reaches(r, old) {
					t.Errorf("block %d of %d can be read", old, old)
				}
				stop := w.background()
				w.more(5)
				g.wish(size)
				r = g.grown(size)
				if r.Geometry().Size != size || !g.reaches(r, size/blockdev.BlockSize-1) || g.reaches(r, size/blockdev.BlockSize) {
					t.Errorf("it serves %d bytes, clients are told %d", size, r.Geometry().Size)
				}
				w.more(5)
				stop()
				w.extend(size)
				stop = w.background()
				w.more(5)
				if r = g.open(3); i == 1 {
					g.stop(r.ID())
				} else {
					g.kill(r.ID())
				}
				g.grown(size)
				for _, id := range groupIDs[:3] {
					if g.replica(id) == nil {
						g.start(id)
					}
				}
				w.more(5)
				stop()
			}
			g.open(3)
			w.checkAll()
			g.sameOnAll(w.content())
		})
	}
}

// What a member has no room for is not begun: everybody goes on with the old size, and says why; and when there is room it
// happens by itself.
func TestGrowWaitsUntilEveryMemberHasRoom(t *testing.T) {
	for _, full := range []viewsvc.ReplicaID{"a", "b"} {
		bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
			c := g.attachTo(g.open(2))
			old, size, view := g.o.size, 3*g.o.size, g.view
			g.all[full].fs.Inject(func(op memfs.Op) memfs.Effect {
				if op.Kind == "truncate" && path.Base(op.Name) == "data.img" {
					return memfs.Effect{Err: syscall.EFBIG}
				}
				return memfs.Effect{}
			})
			g.wish(size)
			time.Sleep(growRetry / 2)
			for _, id := range groupIDs[:2] {
				rep := g.replica(id).Report()
				if short := rep.GrowError != ""; short != (id == full) || short && !strings.Contains(rep.GrowError, "data.img") {
					t.Errorf("%s has no room, and %s says %q", full, id, rep.GrowError)
				}
				if g.replica(id).store.Size() != old {
					t.Errorf("%s has no room, and %s has grown to %d bytes", full, id, g.replica(id).store.Size())
				}
			}
			g.mustComplete(c, writeVersion(1, 1))
			if v := g.await("the view", func(viewsvc.View) bool { return true }); v.Num != view.Num {
				t.Errorf("%s has no room, and view %d became view %d", full, view.Num, v.Num)
			}
			g.all[full].fs.Inject(nil)
			time.Sleep(growRetry)
			if rep := g.grown(size).Report(); rep.GrowError != "" {
				t.Errorf("it has grown, and says %q", rep.GrowError)
			}
			g.mustComplete(c, writeVersion(int(size/blockdev.BlockSize)-1, 2))
		})
	}
}

// The process, or the machine, of either member may die at any operation of its disk: the volume gets the size all the
// same, and keeps what was written.
func TestVolumeGrowsThoughAMemberCrashesAtAnyStep(t *testing.T) {
	const steps = 28
	every := 2
	if raceEnabled || testing.Short() {
		every = 10
	}
	grew := 0 // crashes before which the replica had taken on the size
	for step := 0; step < steps; step += every {
		for i, who := range []viewsvc.ReplicaID{"a", "b"} {
			bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
				const size = 5<<20 + blockdev.BlockSize
				c := g.attachTo(g.open(2))
				disk := make([]byte, size)
				put := func(c *client, block int, version uint64) {
					q := writeVersion(block, version)
					copy(disk[q.Offset:], q.Data)
					g.mustComplete(c, q)
				}
				for b := range 5 {
					put(c, b*200, 1)
				}
				fs := g.all[who].fs
				fs.StopAt(fs.Ops() + step)
				g.wish(size)
				time.Sleep(200 * time.Millisecond)
				if g.replica(who).store.Size() == size {
					grew++
				}
				if (step/every+i)%2 == 0 {
					g.kill(who)
				} else {
					g.crash(who)
				}
				g.start(who)
				g.open(2)
				r := g.grown(size)
				c = g.attachTo(r)
				put(c, size/blockdev.BlockSize-1, 2)
				put(c, 7, 2)
				g.kill(r.ID())
				g.open(1)
				g.grown(size)
				g.sameOnAll(disk)
			})
			if t.Failed() {
				t.Fatalf("%s crashed at step %d", who, step)
			}
		}
	}
	if grew == 0 || grew == 2*steps/every {
		t.Errorf("all crashes came before, or after, everything: %d of them after", grew)
	}
}

// A replica that was away while the volume grew grows when it is brought up to date, by the log or by regions, also one that
// was made when the volume was small.
func TestLearnerThatWasAwayGrows(t *testing.T) {
	for _, how := range []string{"log", "regions, growing meanwhile", "new"} {
		t.Run(how, func(t *testing.T) {
			g := smallLog(t, 2)
			w := newBlockWriter(g)
			g.open(2)
			size := g.o.size + 5*blockdev.RegionBytes + blockdev.BlockSize
			stop := w.background()
			w.more(5)
			end := uint64(g.replica("b").store.Marks().End)
			g.stop("b")
			g.open(1)
			if how != "regions, growing meanwhile" {
				g.wish(size)
				g.grown(size)
			}
			stop()
			w.extend(g.grown(g.replica("a").Geometry().Size).Geometry().Size)
			stop = w.background()
			w.more(5)
			if how != "log" {
				g.outgrow(w, end)
			}
			if how == "new" {
				g.all["b"].fs = memfs.New()
				if err := blockdev.Format(g.all["b"].fs, "vol", blockdev.FormatOptions{LogBytes: g.o.logBytes, SegmentBytes: g.o.segBytes,
					Identity: blockdev.Identity{Cluster: groupCluster, Volume: "v", Replica: "b", Size: g.o.size}}); err != nil {
					t.Fatal(err)
				}
			}
			stop() // the log is short, and a slow machine would never see the learner arrive
			g.start("b")
			if how == "regions, growing meanwhile" {
				learner := g.replica("b").store
				g.await("copy", func(v viewsvc.View) bool { return learner.Copying() || len(v.Backups) == 1 })
				g.wish(size)
				g.grown(size)
				w.extend(size)
			}
			g.open(2)
			stop = w.background()
			w.more(5)
			stop()
			g.sameOnAll(w.content())
			g.kill("a")
			if r := g.grown(size); r.ID() != "b" {
				t.Errorf("%s is primary", r.ID())
			}
			g.sameOnAll(w.content())
		})
	}
}

// A size that a primary ordered and nobody else heard of was never offered. The next primary does without it; its former
// one keeps what it has, and offers it when it is primary again.
func TestGrowthThatWasCutOffIsNotOffered(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, n *memNet) {
		const size = 6 << 20
		old := g.o.size
		c := g.attachTo(g.open(2))
		g.mustComplete(c, writeVersion(3, 1))
		unpin := g.pin()
		n.setCut("a", "b", true)
		n.setCut("b", "a", true)
		g.wish(size)
		time.Sleep(500 * time.Millisecond)
		a, b := g.replica("a"), g.replica("b")
		if a.store.Size() != size || a.Report().Serves != old || b.store.Size() != old || b.store.Room() != size {
			t.Fatalf("the primary has %d bytes and serves %d, its backup has %d and room for %d",
				a.store.Size(), a.Report().Serves, b.store.Size(), b.store.Room())
		}
		g.wish(0)
		g.kill("a")
		unpin()
		g.open(1)
		g.grown(old)
		n.setCut("a", "b", false)
		n.setCut("b", "a", false)
		c = g.attachTo(b)
		g.mustComplete(c, writeVersion(4, 2))
		g.start("a")
		g.open(2)
		if a = g.replica("a"); a.store.Size() != size || g.reaches(b, old/blockdev.BlockSize) {
			t.Fatalf("it has %d bytes", a.store.Size())
		}
		g.kill("b")
		g.grown(size)
		g.start("b")
		g.open(2)
		if b = g.replica("b"); b.store.Size() != size {
			t.Errorf("the primary serves %d bytes, its backup has %d", size, b.store.Size())
		}
		g.mustComplete(g.attachTo(g.replica("a")), writeVersion(size/blockdev.BlockSize-1, 3))
	})
}

// A copy that is made primary by force, and is of a time before the volume grew, grows before it serves; without room it
// lets nobody in, for clients count on the size that they were told.
func TestForcedCopyCatchesUpWithTheSize(t *testing.T) {
	for _, room := range []bool{true, false} {
		bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
			const size = 6 << 20
			g.open(2)
			g.stop("b")
			g.open(1)
			g.wish(size)
			g.mustComplete(g.attachTo(g.grown(size)), writeVersion(size/blockdev.BlockSize-1, 1))
			g.await("view service that knows", func(viewsvc.View) bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				return g.volume.Size == size
			})
			unpin := g.pin()
			defer unpin()
			g.kill("a")
			if !room {
				g.all["b"].fs.Inject(func(op memfs.Op) memfs.Effect {
					if op.Kind == "truncate" {
						return memfs.Effect{Err: syscall.ENOSPC}
					}
					return memfs.Effect{}
				})
			}
			g.start("b")
			g.become("b")
			if room {
				g.mustComplete(g.attachTo(g.grown(size)), writeVersion(size/blockdev.BlockSize-1, 2))
				return
			}
			time.Sleep(time.Second)
			b := g.replica("b")
			if _, err := dialReplica(b, "", 0); !errors.Is(err, blockdev.ErrNotPrimary) || b.Report().GrowError == "" {
				t.Errorf("a copy of %d bytes in place of %d lets clients in: %v; it says %q", b.store.Size(), size, err, b.Report().GrowError)
			}
			g.all["b"].fs.Inject(nil)
			time.Sleep(growRetry + time.Second)
			g.mustComplete(g.attachTo(g.grown(size)), writeVersion(size/blockdev.BlockSize-1, 3))
		})
	}
}

// Members need not be equally large for their regions to be the same.
func TestDigestIsThatOfWhatWasWritten(t *testing.T) {
	if digest([]uint32{1, 0, 2}) != digest([]uint32{1, 0, 2, 0, 0}) || digest(nil) != digest([]uint32{0}) {
		t.Error("zeroes at the end count")
	}
	if digest([]uint32{1}) == digest([]uint32{0, 1}) || digest([]uint32{1, 0, 2}) == digest([]uint32{1, 2}) {
		t.Error("other zeroes do not")
	}
}

// A learner hears of the primary's size at three places, and takes it on at each.
func TestFollowerTakesOnThePrimarysSize(t *testing.T) {
	const size = 7 << 20
	var b wal.Builder
	b.Reset()
	b.Add(wal.Record{Kind: wal.KindView, Block: 1, Seq: size / blockdev.BlockSize}, nil, nil)
	copied := func(size uint64) []byte { // what comes before regions, too
		return msg{}.encodeJSON(startCopy{To: 5, Size: size, Epochs: blockdev.EpochIndex{{Epoch: 1, First: 1}}})[headerSize:]
	}
	for _, c := range []struct {
		name   string
		handle func(f *follower) error
	}{
		{"Copy", func(f *follower) error { return f.handle(msg{Type: msgCopy}, copied(size)) }},
		{"Region", func(f *follower) error {
			return errors.Join(f.handle(msg{Type: msgCopy}, copied(0)),
				f.handle(msg{Type: msgRegion, A: 6, B: 5, Nonce: size}, encodeRegion(&blockdev.RegionImage{})))
		}},
		{"VIEW record", func(f *follower) error {
			return f.handle(msg{Type: msgAppend}, b.Seal(wal.Header{Salt: f.r.store.Salt(), Epoch: 1, First: 1}).Bytes())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memfs.New()
			err := blockdev.Format(m, "vol", blockdev.FormatOptions{LogBytes: 2 << 20, SegmentBytes: 512 << 10,
				Identity: blockdev.Identity{Cluster: groupCluster, Volume: "v", Replica: "b", Size: 1 << 20}})
			if err != nil {
				t.Fatal(err)
			}
			st, err := blockdev.OpenStore(blockdev.StoreOptions{FS: m, Dir: "vol"})
			if err != nil {
				t.Fatal(err)
			}
			r, err := OpenReplica(ReplicaOptions{Store: st, Cluster: groupCluster})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if err := c.handle(&follower{r: r, from: "a", answer: r.rt.Mutex()}); err != nil || st.Size() != size {
				t.Errorf("it has %d bytes: %v", st.Size(), err)
			}
		})
	}
}
