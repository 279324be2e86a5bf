package replication

import (
	"bytes"
	"errors"
	"io"
	"path"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// flip changes a bit of a block's content in a file of a replica, wherever in the file it is.
func flip(t *testing.T, fs *memfs.FS, name string, content []byte) {
	t.Helper()
	f, err := fs.Open(path.Join("vol", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for at := 0; at < len(all); at += blockdev.BlockSize {
		if bytes.Equal(all[at:at+blockdev.BlockSize], content) {
			if _, err := f.WriteAt([]byte{content[100] ^ 8}, int64(at+100)); err != nil {
				t.Fatal(err)
			}
			found = true
		}
	}
	if !found {
		t.Fatalf("the block is not in %s", name)
	}
}

// A lone primary has a block that is bad, in the image or in the log, and nobody else has it. It gets a backup all the same,
// which has everything but that block, and of that block what the primary has: an error for whoever reads it.
func TestBadBlockOfALonePrimaryKeepsNobodyAway(t *testing.T) {
	for _, place := range []string{"data.img", "wal/00.seg"} {
		t.Run(path.Base(place), func(t *testing.T) {
			bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
				g.stop("b")
				c := g.attachTo(g.open(1))
				for i := range 64 {
					g.mustComplete(c, writeVersion(i, uint64(i+1)))
				}
				if place == "data.img" {
					g.stop("a") // now the image has it
					g.start("a")
				}
				flip(t, g.all["a"].fs, place, versionBlock(7, 8))
				if place == "data.img" {
					g.fill(g.attachTo(g.open(1))) // so that the log does not reach back to the beginning
				}
				g.start("b")
				primary := g.open(2)
				for {
					c := g.attachTo(primary)
					for i := range uint64(64) {
						q := readBlock(i)
						if o := c.submit(q, patience); o != isCompleted {
							t.Fatalf("a read of block %d %s", i, o)
						}
						switch {
						case i == 7 && !errors.Is(q.Err, blockdev.ErrIO):
							t.Errorf("%s: the bad block reads with error %v as version %d", primary.ID(), q.Err, blockVersion(q.Data))
						case i != 7 && (q.Err != nil || blockVersion(q.Data) != i+1):
							t.Errorf("%s: block %d reads with error %v as version %d", primary.ID(), i, q.Err, blockVersion(q.Data))
						}
					}
					if primary.ID() == "b" {
						break
					}
					g.kill("a")
					primary = g.open(1)
				}
				g.start("a")
				c = g.attachTo(g.open(2))
				g.mustComplete(c, writeVersion(7, 99)) // what is written again is well again, everywhere
				g.kill("b")
				q := readBlock(7)
				g.mustComplete(g.attachTo(g.open(1)), q)
				if blockVersion(q.Data) != 99 {
					t.Errorf("version %d", blockVersion(q.Data))
				}
			})
		})
	}
}

// fill writes until the log has been used once over.
func (g *group) fill(c *client) {
	g.t.Helper()
	data := bytes.Repeat([]byte("filler.."), 1<<20/8)
	for range 2 * int(g.o.logBytes) >> 20 {
		g.mustComplete(c, write(2<<20, data))
	}
}

// A block that is bad at the primary is not lost while a member that has a good one cannot be asked for a moment. Seen to
// fail: a repair that failed, for whatever reason, made it lost at the learner.
func TestBlockIsNotLostWhileAMemberMayHaveIt(t *testing.T) {
	bubble(t, 3, groupOptions{}, func(g *group, _ *memNet) {
		g.stop("c")
		c := g.attachTo(g.open(2))
		for i := range 64 {
			g.mustComplete(c, writeVersion(i, uint64(i+1)))
		}
		g.fill(c)
		b := g.all["b"].fs
		b.OnRead(func(name string, off int64, _ int) error {
			if path.Base(name) == "data.img" && off == 7*blockdev.BlockSize {
				return syscall.ENOMEM // nothing that says that the block is bad
			}
			return nil
		})
		flip(t, g.all["a"].fs, "data.img", versionBlock(7, 8))
		g.start("c")
		time.Sleep(2 * repairTries * repairPause)
		if !g.replica("c").store.Copying() {
			t.Error("the copy goes on without the block")
		}
		b.OnRead(nil)
		g.open(3)
		got := make([]byte, blockdev.BlockSize)
		if err := g.replica("c").store.Read(7, got); err != nil || !bytes.Equal(got, versionBlock(7, 8)) {
			t.Errorf("the new member reads version %d, error %v", blockVersion(got), err)
		}
	})
}

// A sector that the disk does not give any more is fetched like one whose sum is wrong, and written, which has the disk put
// another in its place.
func TestBlockThatTheDiskDoesNotGiveIsFetched(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
		c := g.attachTo(g.open(2))
		g.mustComplete(c, writeVersion(7, 8))
		g.fill(c)
		a, written := g.all["a"].fs, new(atomic.Bool)
		is := func(name string, off int64) bool { return path.Base(name) == "data.img" && off == 7*blockdev.BlockSize }
		a.OnRead(func(name string, off int64, _ int) error {
			if is(name, off) && !written.Load() {
				return syscall.EIO
			}
			return nil
		})
		a.BeforeEach(func(op memfs.Op) {
			if op.Kind == "write" && is(op.Name, op.Off) {
				written.Store(true)
			}
		})
		q := readBlock(7)
		g.mustComplete(c, q)
		if q.Err != nil || blockVersion(q.Data) != 8 || !written.Load() {
			t.Errorf("read version %d, error %v, written %v", blockVersion(q.Data), q.Err, written.Load())
		}
	})
}

// A member that had to go has the only good copy of a block: its checksum at the primary says that it is the right one.
func TestBlockIsRepairedFromAMemberThatHadToGo(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
		g.mustComplete(g.attachTo(g.open(2)), writeVersion(7, 8))
		time.Sleep(time.Second) // everybody knows that it is committed
		g.stop("b")             // now the images have it
		g.stop("a")
		g.start("a")
		g.start("b")
		primary := g.open(2)
		id, other := primary.ID(), viewsvc.ReplicaID("a")
		if id == "a" {
			other = "b"
		}
		flip(t, g.all[id].fs, "data.img", versionBlock(7, 8))
		defer g.pin()()
		g.deafen(id, true) // it cannot take the other back
		g.mu.Lock()
		g.makeLocked(id, nil, g.view.Tenure)
		v := g.view
		g.mu.Unlock()
		primary.do(func(c *Core) { c.Observe(v) })
		c := g.attachTo(primary)
		q := readBlock(7)
		c.s.Submit([]*blockdev.Request{q})
		primary.do(func(c *Core) { c.Recruits([]viewsvc.ReplicaID{other}) }) // a moment later
		if o := c.outcome(patience); o != isCompleted || q.Err != nil || blockVersion(q.Data) != 8 {
			t.Errorf("the read %s with error %v as version %d", o, q.Err, blockVersion(q.Data))
		}
	})
}
