package replication

import (
	"slices"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// verified orders the members to be compared and waits for what the primary reports.
func (g *group) verified(id uint64) viewsvc.CheckReport {
	g.t.Helper()
	g.mu.Lock()
	g.check = &viewsvc.CheckOrder{ID: id}
	g.mu.Unlock()
	var rep viewsvc.CheckReport
	g.await("end of the comparison", func(v viewsvc.View) bool {
		c := g.replica(v.Primary).Report().Check
		if c == nil || c.ID != id || !c.Finished {
			return false
		}
		rep = *c
		return true
	})
	return rep
}

// loseWrite makes a replica's image hold other content than it should, with a checksum that fits: a disk that lost a
// write, of data and checksum alike.
func (g *group) loseWrite(id viewsvc.ReplicaID, block int) {
	g.t.Helper()
	st := g.replica(id).store
	g.await("applied log of "+string(id), func(viewsvc.View) bool {
		m := st.Marks()
		return m.Applied == m.End
	})
	if err := st.Repair(uint64(block), versionBlock(block, 1<<40), wal.LSN(1<<60)); err != nil {
		g.t.Fatal(err)
	}
}

// settled writes a few blocks and waits until nothing moves any more; it returns the disk's content.
func (g *group) settled(c *client) []byte {
	disk := make([]byte, g.o.size)
	for i := range 40 {
		q := writeVersion(i*25, uint64(i+1))
		copy(disk[q.Offset:], q.Data)
		g.mustComplete(c, q)
	}
	time.Sleep(10 * time.Second)
	return disk
}

func TestVerifyMendsAMemberThatLostAWrite(t *testing.T) {
	bubble(t, 2, groupOptions{}, func(g *group, _ *memNet) {
		disk := g.settled(g.attachTo(g.open(2)))
		if rep := g.verified(1); rep.Bad != 0 || rep.Error != "" || rep.Blocks != g.o.size/blockdev.BlockSize {
			t.Fatalf("equal members: %+v", rep)
		}
		g.loseWrite("b", 25)
		g.loseWrite("b", 300) // zeroes at the others
		if rep := g.verified(2); rep.Bad != 2 || rep.Repaired != 2 || rep.Error != "" {
			t.Errorf("two blocks differ: %+v", rep)
		}
		g.sameOnAll(disk)
		if rep := g.verified(3); rep.Bad != 0 {
			t.Errorf("after that: %+v", rep)
		}
	})
}

func TestVerifyMendsAPrimaryThatIsOutvoted(t *testing.T) {
	bubble(t, 3, groupOptions{}, func(g *group, _ *memNet) {
		disk := g.settled(g.attachTo(g.open(3)))
		g.loseWrite("a", 50)
		if rep := g.verified(1); rep.Bad != 1 || rep.Repaired != 1 || rep.Error != "" {
			t.Errorf("the primary lost a write: %+v", rep)
		}
		g.sameOnAll(disk)
	})
}

// Digests are as of an LSN: that clients write the very regions that are compared makes no difference.
func TestVerifyFindsNothingBesideWriters(t *testing.T) {
	bubble(t, 3, groupOptions{}, func(g *group, _ *memNet) {
		r := g.open(3)
		w := newBlockWriter(g)
		stop := w.background()
		w.more(5)
		for range 300 {
			found, err := r.compare(slices.Values([]int{0, 1, 2, 3}))
			if err != nil || len(found) > 0 {
				t.Errorf("equal members beside a writer: %d regions differ, %v", len(found), err)
				break
			}
		}
		stop()
		w.c.s.Close()
	})
}
