package main

import (
	"slices"
	"time"

	"lockstep/viewsvc"
)

// strand is the worst that can happen to those who read: the view service, and some of the clients, lose the primary out
// of sight, while other clients go on reading there, and its backups go on granting leases, or all but one of them. In the very
// moment in which another is made primary, those lose it, too.
func (n *nemesis) strand() {
	c, w := n.c, n.c.w
	v := c.views.current()
	m := c.byReplica(v.Primary)
	if m == nil || m.p == nil || n.left != nil {
		return
	}
	sides := [2][]string{{m.name}, slices.Clone(c.views.servers)} // with him, and without
	eager := w.one(2)                                             // clients who read, and read, and do not write
	var with []*gatewayProc
	for _, g := range c.gateways {
		i := w.rng.IntN(2)
		sides[i] = append(sides[i], g.name)
		if i == 0 {
			with = append(with, g)
		}
	}
	w.tr("%v are left behind, %v do not hear of them; eager: %v", sides[0], sides[1], eager)
	n.left = m
	n.lasting(w.between(tDead, 2*tDead), func() {
		n.part(sides, c.net.block)
		n.drift(m)
		for _, g := range with {
			g.eager = eager
		}
	}, func() {
		w.tr("%v are left behind no more", sides[0])
		n.left = nil
		n.part(sides, c.net.unblock)
		for _, g := range with {
			g.eager = false
		}
	})
	if eager && len(v.Backups) > 1 && w.one(2) {
		w.after(w.between(0, tDead/4), func() { n.loseOne(m, v.Backups[w.rng.IntN(len(v.Backups))]) })
	}
	if w.one(2) { // a backup that does not remember what it promised
		w.after(w.between(tDead*2/3, tDead*9/8), func() { n.forget(m) })
	}
}

// loseOne parts a primary from one of its backups, which can be promoted then: it lacks nothing. The others go on granting, and
// for long, because their answers are late.
func (n *nemesis) loseOne(m *machine, backup viewsvc.ReplicaID) {
	c := n.c
	lost := c.byReplica(backup)
	if n.over || n.left != m || lost == nil {
		return
	}
	c.w.tr("%s is lost to %s", lost.name, m.name)
	sides := [2][]string{{m.name}, {lost.name}}
	n.lasting(2*tDead, func() { n.part(sides, c.net.block) }, func() { n.part(sides, c.net.unblock) })
	by := c.w.between(0, 80*time.Millisecond)
	for _, o := range c.machines {
		pair := hostPair{o.name, m.name}
		n.lasting(2*tDead, func() { c.net.slow[pair] += by }, func() { c.net.slow[pair] -= by })
	}
}

// replaced hears that an old primary is in office no more.
func (n *nemesis) replaced(old viewsvc.View) {
	c, m := n.c, n.left
	if m == nil || m.replicaID() != old.Primary || c.w.one(4) {
		return
	}
	sides := [2][]string{{m.name}, slices.Clone(c.views.servers)}
	for _, o := range c.machines {
		if o != m {
			sides[1] = append(sides[1], o.name)
		}
	}
	c.w.tr("nobody hears of %s any more but its clients", m.name)
	n.during(func() { n.part(sides, c.net.block) }, func() { n.part(sides, c.net.unblock) })
}

// forget has the backups of a primary begin anew, in next to no time, while it does not reach them any more.
func (n *nemesis) forget(m *machine) {
	c, w := n.c, n.c.w
	if n.over || n.left != m {
		return
	}
	for _, o := range c.machines {
		if o == m || o.p == nil || c.sync == viewsvc.SyncFlush && !c.operator {
			continue
		}
		sides := [2][]string{{m.name}, {o.name}}
		n.during(func() { n.part(sides, c.net.block) }, func() { n.part(sides, c.net.unblock) })
		n.lasting(w.between(time.Millisecond, 20*time.Millisecond), o.kill, o.start)
	}
}

// part changes whether two sides hear of each other.
func (n *nemesis) part(sides [2][]string, f func(from, to string)) {
	for _, a := range sides[0] {
		for _, b := range sides[1] {
			f(a, b)
			f(b, a)
		}
	}
}

// drift has the primary's clock run slow and all others fast, within what leases have to put up with.
func (n *nemesis) drift(m *machine) {
	if !n.c.leases || n.c.w.one(2) {
		return
	}
	for _, o := range n.c.machines {
		p, rate := o.p, 1.1
		if o == m {
			rate = 0.9
		}
		if p != nil {
			n.during(func() { p.setRate(rate) }, func() { p.setRate(1) })
		}
	}
}
