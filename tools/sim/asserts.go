package main

import (
	"lockstep/viewsvc"
	"lockstep/wal"
)

// What the replicas know of each other they know from messages. The simulator sees all of them at one moment, and looks
// whether the invariants of package replication hold there and then: long before a client could notice.

// acknowledged looks at a primary that has just completed requests.
//
//	I5  what is committed is stable on every member; in sync mode flush it is written there
//	I9  no read is answered that was taken when another served in a later tenure already, whoever has heard of that
func (c *cluster) acknowledged(m *machine, changed bool, taken viewsvc.ViewNum) {
	if m.replica == nil {
		return
	}
	if changed {
		c.enough(m)
	}
	rep := m.replica.Report()
	if rep.Tenure < taken {
		c.w.fail("I9: %s answers reads in tenure %d that were taken when another served in tenure %d", m.name, rep.Tenure, taken)
	}
	marks := m.store.Marks()
	if rep.Role != viewsvc.RolePrimary || rep.View == 0 || int(rep.View) > len(c.views.history) {
		return
	}
	c.noteAcked(m, rep.Tenure, marks.Committed)
	view := c.views.history[rep.View-1]
	if view.Primary != m.replica.ID() {
		c.w.fail("I9: %s serves in view %d, whose primary is %s", m.name, view.Num, view.Primary)
	}
	for _, r := range view.Members() {
		o := c.byReplica(r)
		if o == nil || o.replica == nil || o.replica.ID() != r {
			continue
		}
		if other := o.replica.Report(); other.View != rep.View || other.Suspect || o == c.aged {
			continue // it has moved on, and may have been given another log since; or it is known to lack something
		}
		has := o.store.Marks().Durable
		if c.sync == viewsvc.SyncFlush && len(view.Backups) > 0 {
			has = o.store.Marks().End
		}
		if has < marks.Committed {
			c.w.fail("I5: %s has committed %d in view %d, member %s holds only %d", m.name, marks.Committed, view.Num, o.name, has)
		}
	}
}

// enough looks at writes that a primary has just acknowledged.
//
//	min_copies  what is acknowledged while the view has fewer members was on enough of them before
func (c *cluster) enough(m *machine) {
	if c.minCopies == 1 {
		return
	}
	commit, before := m.store.Marks().Committed, c.minAcked
	c.minAcked = max(before, commit)
	view := m.replica.Report().View
	if commit <= before || view == 0 || int(view) > len(c.views.history) || len(c.views.history[view-1].Members()) >= c.minCopies {
		return
	}
	copies := 0
	for _, o := range c.machines {
		has := o.had
		if o.store != nil {
			has = c.holds(o)
		}
		if has > before {
			copies++
		}
	}
	if copies < c.minCopies {
		c.w.fail("%s acknowledges writes after %d in view %d, and %d of %d copies have them", m.name, before, view, copies, c.minCopies)
	}
}

// holds is up to where a machine's replica has the log as safely as the sync mode asks for.
func (c *cluster) holds(m *machine) wal.LSN {
	if c.sync == viewsvc.SyncFlush {
		return m.store.Marks().End
	}
	return m.store.Marks().Durable
}

// noteAcked remembers the newest record that was committed for clients.
func (c *cluster) noteAcked(m *machine, tenure viewsvc.ViewNum, l wal.LSN) {
	if l > c.acked {
		c.acked, c.ackedIn = l, max(c.ackedIn, tenure)
		c.ackedEpoch, _ = m.store.EpochAt(l)
	}
}

// opened looks at a primary that begins to serve.
//
//	I7  an open primary's log has every acknowledged write
//
// One that was stopped for long may open in a tenure that is over. It can neither read nor commit.
func (c *cluster) opened(m *machine, view viewsvc.ViewNum) {
	c.openIn = max(c.openIn, c.views.history[view-1].Tenure)
	marks := m.store.Marks() // nothing here may give the turn away
	if c.views.history[view-1].Tenure < c.ackedIn {
		return
	}
	if marks.Committed < c.acked {
		c.w.fail("I7: %s opens with commit %d, but %d was acknowledged", m.name, marks.Committed, c.acked)
		return
	}
	if e, ok := m.store.EpochAt(c.acked); ok && c.acked > 0 && c.ackedEpoch != 0 && e != c.ackedEpoch {
		c.w.fail("I7: %s opens with record %d of epoch %d, the acknowledged one is of epoch %d", m.name, c.acked, e, c.ackedEpoch)
	}
	if m.store.Copying() {
		c.w.fail("I10: %s opens with an incomplete copy", m.name)
	}
}
