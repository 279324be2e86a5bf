package main

import (
	"time"

	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// agingSeeds: in one of so many runs that may happen.
const agingSeeds = 5

// putBack gives a machine a disk that it had some seconds ago, as an operator does who restores a backup of its directory, or a
// snapshot of a virtual machine: it has forgotten what it acknowledged since. That is done when the view service's floor
// shows that it has, so that nothing may be lost by it: others have everything, and it must not serve before it has,
// too. An operator who forces would lose it knowingly, and in sync mode flush there is no floor.
func (n *nemesis) putBack(m *machine) {
	c, w := n.c, n.c.w
	if c.sync != viewsvc.SyncAlways || c.operator || m.replica == nil || c.aged != nil {
		return
	}
	had, id := m.replica.Report(), m.replica.ID()
	n.during(func() { m.cut(n.fate()) }, m.start)
	old := m.fs.Crash(memfs.All)
	w.after(w.between(time.Second, 3*time.Second), func() {
		if n.over || m.replica == nil || m.replica.ID() != id {
			return
		}
		n.lasting(1500*time.Millisecond, func() { m.cut(memfs.None) }, m.start)
		w.after(1200*time.Millisecond, func() { // nothing of it is under way any more
			floor := c.views.floor()
			forgets := floor.Tenure > had.Tenure || floor.LSN > had.LogEnd
			if m.powered || w.now-m.stopped < time.Second || c.aged != nil || !forgets || !c.mayLose(m) {
				return
			}
			w.tr("%s gets a disk of before: of tenure %d, up to record %d at most; the floor is %+v", m.name, had.Tenure, had.LogEnd, floor)
			w.stats.note(putBack)
			m.fs, m.had, c.aged = old, 0, m
		})
	})
}

// forgetful tells whether a machine's disk was put back and has not caught up since.
func (c *cluster) forgetful(m *machine) bool {
	if c.aged == m && c.complete() && m.replica != nil && c.holds(m) >= c.acked {
		c.aged = nil
	}
	return c.aged == m
}
