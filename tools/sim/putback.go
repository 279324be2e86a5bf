package main

import (
	"time"

	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// agingSeeds: in one of so many runs disks are put back. They last longer: the view service's floor is raised slowly.
const (
	agingSeeds = 10
	agingTime  = 6 * time.Second
)

// age puts disks back, one after the other: as an operator does who restores a backup of a node's directory, or a snapshot of
// a virtual machine, while everything is off. The machine has forgotten what it acknowledged since. That is done when
// the view service's floor shows that it has, so that nothing may be lost by it: others have everything, and it must
// not serve before it has, too. Where an operator forces, that would be lost knowingly; in sync mode flush there is no floor.
func (n *nemesis) age() {
	c, w := n.c, n.c.w
	if n.over || c.sync != viewsvc.SyncAlways || c.operator {
		return
	}
	m := n.some()
	if m.replica == nil {
		w.after(w.between(0, time.Second), n.age)
		return
	}
	old := &backup{of: m.replica.ID(), had: m.replica.Report()}
	n.during(func() { m.cut(n.fate()) }, m.start)
	old.fs = m.fs.Crash(memfs.All)
	n.awaitUse(m, old)
}

// backup is a disk as it was.
type backup struct {
	fs  *memfs.FS
	of  viewsvc.ReplicaID
	had viewsvc.ReplicaReport // at that time, or more
}

// older tells whether it lacks what its machine is known to have acknowledged.
func (b *backup) older(floor viewsvc.Floor) bool {
	return floor.LackedBy(b.had.Tenure, b.had.LogEnd)
}

// awaitUse waits until a backup is of no use any more, and uses it.
func (n *nemesis) awaitUse(m *machine, old *backup) {
	c, w := n.c, n.c.w
	w.after(w.between(0, 400*time.Millisecond), func() {
		if n.over {
			return
		}
		if !old.older(c.views.floor()) || m.replica == nil || m.replica.ID() != old.of || c.forgetful(m) {
			n.awaitUse(m, old)
			return
		}
		w.tr("all machines go off, for one to get a disk of before")
		for _, o := range c.machines { // else it would be no member any more when it comes back
			n.lasting(w.between(1300*time.Millisecond, 2500*time.Millisecond), func() { o.cut(n.fate()) }, o.start)
		}
		w.after(1200*time.Millisecond, func() { n.putBack(m, old) }) // nothing is under way any more
		w.after(w.between(2*time.Second, 4*time.Second), n.age)
	})
}

func (n *nemesis) putBack(m *machine, old *backup) {
	c, w := n.c, n.c.w
	if m.powered || m.empty || w.now-m.stopped < time.Second || c.aged != nil || !old.older(c.views.floor()) || !c.mayLose(m) {
		return
	}
	w.tr("%s gets a disk of before: of tenure %d, up to record %d at most", m.name, old.had.Tenure, old.had.LogEnd)
	w.stats.note(putBack)
	m.fs, m.had, c.aged = old.fs, 0, m
}

// forgetful tells whether a machine's disk was put back and has not caught up since.
func (c *cluster) forgetful(m *machine) bool {
	if c.aged == m && c.complete() && m.replica != nil && c.holds(m) >= c.acked {
		c.aged = nil
	}
	return c.aged == m
}
