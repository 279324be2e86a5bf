package replication

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// What the data path has to do when nodes, links and the view service fail, rule by rule, with whole replicas over
// connections in memory and time that passes only when nobody has anything to do.

// bubble is a group in a synctest bubble, and its network.
func bubble(t *testing.T, replicas int, o groupOptions, f func(g *group, n *memNet)) {
	synctest.Test(t, func(t *testing.T) {
		o.replicas, o.net = replicas, newMemNet()
		if o.size == 0 {
			o.size, o.logBytes, o.segBytes = 4<<20, 16<<20, 4<<20
		}
		if o.sync == "" {
			o.sync = viewsvc.SyncAlways
		}
		f(newGroup(t, o), o.net)
	})
}

// attachTo is a client of a replica that is open.
func (g *group) attachTo(r *Replica) *client {
	g.t.Helper()
	c, err := dialReplica(r, "", 0)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(c.s.Close)
	return c
}

// outcome is what has become of a request within some time.
type outcome int

const (
	stillWaits outcome = iota
	isCompleted
	isAborted
)

func (o outcome) String() string {
	return [...]string{"waits", "is completed", "ends with its session"}[o]
}

// submit gives a request to the client's primary and tells what has become of it after d.
func (c *client) submit(q *blockdev.Request, d time.Duration) outcome {
	c.s.Submit([]*blockdev.Request{q})
	return c.outcome(d)
}

func (c *client) outcome(d time.Duration) outcome {
	select {
	case <-c.done:
		return isCompleted
	case <-c.aborted:
		return isAborted
	case <-time.After(d):
		return stillWaits
	}
}

func readBlock(block uint64) *blockdev.Request {
	return &blockdev.Request{Op: blockdev.OpRead, Offset: block * blockdev.BlockSize, Length: blockdev.BlockSize, Data: make([]byte, blockdev.BlockSize)}
}

func writeVersion(block int, version uint64) *blockdev.Request {
	return write(uint64(block)*blockdev.BlockSize, versionBlock(block, version))
}

// patience is longer than anything that has to happen by itself takes, and takes no time.
const patience = time.Minute

func (g *group) mustComplete(c *client, q *blockdev.Request) {
	g.t.Helper()
	if o := c.submit(q, patience); o != isCompleted || q.Err != nil {
		g.t.Fatalf("%v %s, error %v", q.Op, o, q.Err)
	}
}

func TestStateIsTransferredToANewReplica(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
		g.stop("b") // the first primary is alone when it is written to
		c := g.attachTo(g.open(1))
		disk := make([]byte, g.o.size)
		for i := range 200 {
			q := writeVersion(i*5%1024, uint64(i+1))
			copy(disk[q.Offset:], q.Data)
			g.mustComplete(c, q)
		}
		g.start("b")
		g.open(2)
		g.kill("a")
		g.open(1)
		g.sameOnAll(disk)
	})
}

func TestEveryMembersAckIsWaitedFor(t *testing.T) {
	for _, backups := range []int{1, 2, 3} {
		bubble(t, backups+1, groupOptions{}, func(g *group, n *memNet) {
			c := g.attachTo(g.open(backups + 1))
			g.mustComplete(c, writeVersion(0, 1))
			defer g.pin()()
			for i, id := range groupIDs[1 : backups+1] {
				g.deafen("a", true) // nobody can be removed
				n.setCut(id, "a", true)
				q := writeVersion(0, uint64(i)+2)
				if o := c.submit(q, time.Second); o != stillWaits {
					t.Fatalf("of %d backups the answers of %s are lost, and a write %s", backups, id, o)
				}
				n.setCut(id, "a", false)
				if o := c.outcome(patience); o != isCompleted {
					t.Fatalf("%s is back, and the write %s", id, o)
				}
				g.deafen("a", false)
			}
		})
	}
}

func TestReadNeedsTheWordOfEveryMember(t *testing.T) {
	for _, backups := range []int{1, 2, 3} {
		bubble(t, backups+1, groupOptions{}, func(g *group, n *memNet) {
			c := g.attachTo(g.open(backups + 1))
			g.mustComplete(c, readBlock(0))
			defer g.pin()()
			g.deafen("a", true)
			n.setCut(groupIDs[backups], "a", true)
			if o := c.submit(readBlock(0), 0); o != isCompleted && c.outcome(time.Millisecond) != isCompleted {
				t.Fatalf("of %d backups one was cut off just now, the lease runs, and a read %s", backups, o)
			}
			time.Sleep(grantMax)
			if o := c.submit(readBlock(0), time.Second); o != stillWaits {
				t.Fatalf("of %d backups one is cut off, the lease is over, and a read %s", backups, o)
			}
			n.setCut(groupIDs[backups], "a", false)
			if o := c.outcome(patience); o != isCompleted {
				t.Fatalf("it is back, and the read %s", o)
			}
		})
	}
}

func TestLostReplyLosesNoWrite(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, n *memNet) {
		c := g.attachTo(g.open(2))
		g.deafen("a", true)
		unpin := g.pin()
		n.setCut("b", "a", true) // b has the write, and a never hears of that
		if o := c.submit(writeVersion(7, 1), time.Second); o != stillWaits {
			t.Fatalf("a write that nobody has confirmed %s", o)
		}
		n.isolate("a", true)
		g.become("b")
		now := g.attachTo(g.open(1))
		q := readBlock(7)
		g.mustComplete(now, q)
		if blockVersion(q.Data) != 1 {
			t.Errorf("the new primary had the write in its log and reads version %d", blockVersion(q.Data))
		}
		g.mustComplete(now, writeVersion(7, 2))
		n.isolate("a", false)
		g.deafen("a", false)
		unpin()
		g.open(2)
		// The answer that was lost may still come before the news of b: the write is in the history, so that is right, too.
		if o := c.outcome(patience); o == stillWaits {
			t.Errorf("at the old primary the write %s", o)
		}
		g.mustComplete(now, q)
		if blockVersion(q.Data) != 2 {
			t.Errorf("the old primary's return has brought back version %d", blockVersion(q.Data))
		}
	})
}

// A frame that is still on its way in a connection that its sender has given up arrives after the frames of the next
// connection.
func TestFramesOfAnOldConnectionComeTooLate(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, n *memNet) {
		c := g.attachTo(g.open(2))
		disk := make([]byte, g.o.size)
		for i := range 50 {
			q := writeVersion(i%8, uint64(i+1))
			copy(disk[q.Offset:], q.Data)
			c.s.Submit([]*blockdev.Request{q})
			n.sever("a", "b", time.Duration(i%5)*time.Second)
			if o := c.outcome(patience); o != isCompleted {
				t.Fatalf("write %d %s", i, o)
			}
		}
		time.Sleep(10 * time.Second) // everything late has arrived
		g.open(2)
		g.sameOnAll(disk)
	})
}

func TestPrimaryCutOffFromTheViewServiceAloneStopsWhenReplaced(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
		old := g.attachTo(g.open(2))
		g.mustComplete(old, writeVersion(0, 1))
		g.deafen("a", true)
		g.mustComplete(old, writeVersion(0, 2)) // the view service is off the data path
		g.become("b")
		now := g.attachTo(g.open(1))
		g.mustComplete(now, writeVersion(0, 3))
		q := readBlock(0)
		if o := old.submit(q, time.Second); o == isCompleted {
			t.Errorf("the old primary answers with version %d", blockVersion(q.Data))
		}
		if o := old.outcome(patience); o != isAborted {
			t.Errorf("a member that it can reach knows better, and its client %s", o)
		}
	})
}

// As before, but the new primary is dead as well, which is the only one that could object.
func TestCutOffPrimaryServesNothingAlsoWhenItsSuccessorIsDead(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, n *memNet) {
		old := g.attachTo(g.open(2))
		g.mustComplete(old, writeVersion(0, 1))
		g.deafen("a", true)
		defer g.pin()()
		n.isolate("a", true)
		g.become("b")
		now := g.attachTo(g.open(1))
		g.mustComplete(now, writeVersion(0, 2))
		g.kill("b")
		n.isolate("a", false)
		for _, q := range []*blockdev.Request{readBlock(0), writeVersion(1, 3)} {
			if o := old.submit(q, patience); o == isCompleted {
				t.Errorf("the old primary completes a %v", q.Op)
			}
		}
		g.start("b")
		g.deafen("a", false)
		// It restarted as primary of the last view: only with a tenure of its own may it go on.
		g.become("b")
		g.await("b in office", func(v viewsvc.View) bool { return g.replica("b").Report().Role == viewsvc.RolePrimary })
		q := readBlock(0)
		g.mustComplete(g.attachTo(g.replica("b")), q)
		if blockVersion(q.Data) != 2 {
			t.Errorf("version %d after all", blockVersion(q.Data))
		}
	})
}

func TestSuccessorOpensWhenItsPromiseIsOver(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, n *memNet) {
		old := g.attachTo(g.open(2))
		g.mustComplete(old, writeVersion(0, 1))
		g.mustComplete(old, readBlock(0))
		defer g.pin()()
		asked := time.Now()
		g.deafen("a", true)
		n.isolate("a", true)
		g.become("b")
		q := readBlock(0)
		if o := old.submit(q, time.Millisecond); o != isCompleted || blockVersion(q.Data) != 1 {
			t.Errorf("while the lease runs a read %s, version %d", o, blockVersion(q.Data))
		}
		g.open(1)
		if took := time.Since(asked); took < grantMin-10*time.Millisecond || took > grantMin+50*time.Millisecond {
			t.Errorf("the successor opens after %v, its promise was for %v", took, grantMin)
		}
		if o := old.submit(q, time.Second); o == isCompleted {
			t.Errorf("the old primary reads though its successor is open")
		}
	})
}

func TestWithoutReadsASuccessorOpensAtOnce(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
		g.mustComplete(g.attachTo(g.open(2)), writeVersion(0, 1))
		time.Sleep(time.Second) // an idle volume does not ask either
		at := time.Now()
		g.kill("a")
		g.open(1)
		if took := time.Since(at); took > 20*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

func TestHandoverWaitsForNoPromise(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
		a := g.open(2)
		c := g.attachTo(a)
		g.mustComplete(c, writeVersion(0, 1))
		g.mustComplete(c, readBlock(0))
		unpin := g.pin()
		at := time.Now()
		a.do(func(c *Core) {
			if err := c.Handover("b"); err != nil {
				t.Error(err)
			}
		})
		// The group's view service takes orders to hand over back with each of its own.
		for a.Report().Role == viewsvc.RolePrimary {
			a.do(func(c *Core) { _ = c.Handover("b") })
			time.Sleep(100 * time.Microsecond)
		}
		unpin()
		g.await("b in office", func(v viewsvc.View) bool {
			return v.Primary == "b" && g.replica("b").Report().Role == viewsvc.RolePrimary
		})
		if took := time.Since(at); took > 50*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// A backup that was away is no member before it has everything, so nobody can promote it.
func TestReturningBackupIsStaleUntilSynced(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, n *memNet) {
		c := g.attachTo(g.open(2))
		g.mustComplete(c, writeVersion(0, 1))
		g.kill("b")
		g.open(1)
		g.mustComplete(c, writeVersion(0, 2))
		n.setCut("a", "b", true) // b is back, and gets nothing
		g.start("b")
		time.Sleep(10 * time.Second)
		g.kill("a")
		time.Sleep(10 * time.Second)
		g.mu.Lock()
		v := g.view
		g.mu.Unlock()
		if v.Primary != "a" || v.Has("b") || g.replica("b").Report().Role != viewsvc.RoleLearner {
			t.Fatalf("view %+v, b is %v", v, g.replica("b").Report().Role)
		}
		if _, err := dialReplica(g.replica("b"), "", 0); err == nil {
			t.Fatal("a learner serves")
		}
		n.setCut("a", "b", false)
		g.start("a")
		q := readBlock(0)
		g.open(2)
		g.kill("a")
		g.mustComplete(g.attachTo(g.open(1)), q)
		if blockVersion(q.Data) != 2 {
			t.Errorf("the backup that returned reads version %d", blockVersion(q.Data))
		}
	})
}

func TestMinCopiesMakesWritesWaitAndReadsGoOn(t *testing.T) {
	bubble(t, 2, groupOptions{minCopies: 2}, func(g *group, _ *memNet) {
		c := g.attachTo(g.open(2))
		g.mustComplete(c, writeVersion(0, 1))
		g.kill("b")
		g.open(1)
		q := writeVersion(0, 2)
		if o := c.submit(q, time.Second); o != stillWaits {
			t.Fatalf("with one member of two a write %s", o)
		}
		other := g.attachTo(g.replica("a"))
		r := readBlock(0)
		g.mustComplete(other, r)
		if blockVersion(r.Data) != 1 {
			t.Errorf("a read finds version %d, the write waits", blockVersion(r.Data))
		}
		g.start("b")
		if o := c.outcome(patience); o != isCompleted {
			t.Errorf("with two members again it %s", o)
		}
	})
}

func TestBackupWhoseStorageFailsLeavesAndWritesGoOn(t *testing.T) {
	for name, fault := range map[string]error{"EIO": errDisk, "disk full": errNoSpace} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
				c := g.attachTo(g.open(2))
				g.mustComplete(c, writeVersion(0, 1))
				g.all["b"].fs.FailAt(g.all["b"].fs.Ops()+1, fault)
				at := time.Now()
				g.mustComplete(c, writeVersion(0, 2))
				if took := time.Since(at); took > 500*time.Millisecond {
					t.Errorf("writes waited %v for a backup whose storage is known to have failed", took)
				}
				if role := g.replica("b").Report().Role; role != viewsvc.RolePoisoned {
					t.Errorf("b is %v", role)
				}
				g.kill("b")
			})
		})
	}
}

func TestPrimaryWhoseStorageFailsIsReplaced(t *testing.T) {
	for name, fault := range map[string]error{"EIO": errDisk, "disk full": errNoSpace} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
				c := g.attachTo(g.open(2))
				g.mustComplete(c, writeVersion(0, 1))
				g.all["a"].fs.FailAt(g.all["a"].fs.Ops()+1, fault)
				q := writeVersion(0, 2)
				if o := c.submit(q, patience); o != isAborted {
					t.Fatalf("a write whose log failed %s, error %v: a client would be told", o, q.Err)
				}
				now := g.attachTo(g.open(1))
				g.mustComplete(now, writeVersion(0, 2))
				if v := g.await("b alone", func(v viewsvc.View) bool { return true }); v.Primary != "b" || slices.Contains(v.Backups, "a") {
					t.Errorf("view %+v", v)
				}
				g.kill("a")
			})
		})
	}
}
