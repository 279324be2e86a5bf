package main

import (
	"fmt"
	"time"

	"lockstep/viewsvc"
)

// What an operator does who is told that a volume does not go on by itself, and what he orders besides. His acts that
// accept a loss end what the histories of clients have to explain (loss).

const (
	operatorLooks = 300 * time.Millisecond // how often he looks at the volume
	checkPatience = 5 * time.Second        // before he orders a check again
)

// operate resumes the volume when it is held. It goes on until the end of the run.
func (c *cluster) operate() {
	c.w.after(operatorLooks, func() {
		c.operate()
		c.forceElsewhere()
		if o := c.views.lead; o != nil && c.held() && o.mon.OrderResume(volumeName) == nil {
			c.lose(false)
			c.w.stats.note(resumedHeld)
			c.views.flush()
		}
	})
}

// forceElsewhere is for a volume that was forced to a node on which a copy began before it heard of that: half of one does not
// serve.
func (c *cluster) forceElsewhere() {
	m := c.byReplica(c.views.current().Primary)
	if c.views.lead == nil || m == nil || m.replica == nil || m.replica.Report().Role != viewsvc.RolePoisoned || !m.store.Copying() {
		return
	}
	for _, o := range c.machines {
		if o == m || o.replica == nil || o.store.Copying() {
			continue
		}
		cmd, err := c.views.lead.mon.PlanForce(volumeName, viewsvc.NodeID(o.name), "the other copy is unfinished")
		c.w.tr("force to %s: %s", o.name, errText(err))
		if err == nil {
			c.views.commit(cmd, func(viewsvc.Result, error) {})
			m.kill()
			m.start()
			return
		}
	}
}

// lose is an operator's acceptance of a loss: what was acknowledged may be gone. Nothing is acknowledged at the moment.
func (c *cluster) lose(forced bool) {
	c.w.tr("an operator accepts that acknowledged writes are lost, by force: %v", forced)
	c.history.lost(forced)
	c.acked, c.ackedEpoch, c.ackedIn, c.minAcked = 0, 0, 0, 0
}

// outdate has a backup fall behind, for an operator to make it primary when all others are gone.
func (n *nemesis) outdate(m *machine) {
	c, w := n.c, n.c.w
	if v := c.views.current(); m.p == nil || !v.Has(m.replicaID()) || v.Primary == m.replicaID() || c.mayFailReads {
		n.force(m)
		return
	}
	n.during(func() { m.kill(); m.condemned = true }, func() { m.condemned = false; m.start() })
	w.after(w.between(200*time.Millisecond, 1500*time.Millisecond), func() {
		if m.condemned && !n.over {
			m.condemned = false
			m.start()
			n.force(m)
		}
	})
}

// force makes a replica that is no member primary, an old one perhaps, when all members are gone. They come back when
// that was done, or given up.
func (n *nemesis) force(m *machine) {
	c, w := n.c, n.c.w
	v := c.views.current()
	if v.Num == 0 || m.p == nil || m.copies == 0 || v.Has(m.replicaID()) || c.mayFailReads {
		return
	}
	var gone []*machine
	for _, o := range c.machines {
		if o != m && (v.Has(o.replicaID()) || w.one(2)) {
			gone = append(gone, o)
		}
	}
	n.during(func() {
		w.tr("all members are gone for good, as it seems; %s is left", m.name)
		for _, o := range gone {
			o.cut(n.fate())
			o.condemned = true
		}
	}, func() {
		for _, o := range gone {
			o.condemned = false
			o.start()
		}
	})
	w.after(w.between(50*time.Millisecond, 800*time.Millisecond), func() { n.forceNow(m, gone) })
}

// forceNow gives the order, if the members still are gone.
func (n *nemesis) forceNow(m *machine, gone []*machine) {
	v := n.c.views
	if v.lead == nil || m.p == nil || n.over {
		return
	}
	for _, r := range v.current().Members() {
		if o := n.c.byReplica(r); o != nil && !o.condemned {
			return
		}
	}
	cmd, err := v.lead.mon.PlanForce(volumeName, viewsvc.NodeID(m.name), "nobody else is left")
	if err != nil {
		n.c.w.tr("force: %v", err)
		return
	}
	v.commit(cmd, func(_ viewsvc.Result, err error) { n.c.w.tr("force: %s", errText(err)) })
}

// check orders a comparison of the members, or a scrub.
func (c *cluster) check(scrub bool) (id uint64) {
	lead := c.views.lead
	if lead == nil {
		return 0
	}
	o, err := lead.mon.OrderCheck(volumeName, scrub)
	c.w.tr("check ordered, scrub %v: %d %s", scrub, o.ID, errText(err))
	c.views.flush()
	return o.ID
}

// checked looks at what a replica says of a check that is finished.
func (c *cluster) checked(m *machine, r *viewsvc.CheckReport) {
	if r == nil || !r.Finished || r.ID == m.checked {
		return
	}
	m.checked = r.ID
	c.w.tr("%s: check %+v", m.name, *r)
	switch {
	case r.Error != "":
	case r.Repaired > r.Bad:
		c.w.fail("%s: check %d repaired %d of %d bad blocks", m.name, r.ID, r.Repaired, r.Bad)
	case r.Bad > 0 && m.store.Copying(): // it began to be copied meanwhile
	case r.Bad > 0 && len(c.damagedBlocks) == 0:
		c.w.fail("%s: check %d found %d bad blocks, and nothing was done to any", m.name, r.ID, r.Bad)
	case r.Bad > 0:
		c.w.stats.note(badFound)
	default:
		c.w.stats.note(soundFound)
	}
}

// settleDamage has the whole volume scrubbed and compared when the faults are over, and returns why it is not sound then.
// A block without any good copy is none of the check's business.
func (c *cluster) settleDamage() string {
	for _, scrub := range []bool{true, false} {
		if why := c.awaitCheck(scrub); why != "" {
			return why
		}
	}
	return ""
}

func (c *cluster) awaitCheck(scrub bool) string {
	w := c.w
	deadline := w.now + healTime
	id, ordered := uint64(0), w.now
	for w.bad == "" && w.now < deadline {
		if id == 0 || w.now-ordered > checkPatience { // another view server may lead by now, and knows of no order
			id, ordered = c.check(scrub), w.now
		}
		w.run(w.now+100*time.Millisecond, nil)
		done, again := 0, false
		for i, r := range c.views.current().Members() {
			m := c.byReplica(r)
			if m == nil || m.replica == nil {
				continue
			}
			rep := m.replica.Report().Check
			switch {
			case !scrub && i > 0:
				done++
			case rep == nil || rep.ID != id || !rep.Finished:
			case rep.Error != "":
				again = true
			case !scrub && rep.Bad > rep.Repaired:
				return fmt.Sprintf("the members differ in %d blocks that could not be mended", rep.Bad-rep.Repaired)
			default:
				if rep.Bad > rep.Repaired {
					c.lostBlocks = true // no member has a good copy
				}
				done++
			}
		}
		if again {
			id = 0
		} else if done == len(c.views.current().Members()) {
			return ""
		}
	}
	if w.bad != "" {
		return w.bad
	}
	return fmt.Sprintf("a check, scrub %v, was not finished within %v", scrub, healTime)
}
