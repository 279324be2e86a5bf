package viewsvc

import (
	"cmp"
	"fmt"
	"slices"
)

// planView asks for the view that is due for a volume, if one is.
func (m *Monitor) planView(v *volumeState, w *volumeWatch) {
	m.noteProgress(v, w)
	if m.now < w.notBefore {
		return
	}
	var p *Proposal
	if v.View.Num == 0 {
		p = m.planFirst(v, w)
	} else {
		p = m.planPrimary(v, w)
	}
	if p == nil {
		return
	}
	p.Volume, p.Expect = v.Volume.ID, v.View.Num
	m.command("view/"+string(v.Volume.ID), Command{Op: OpView, Proposal: p})
}

// noteTenure counts the tenures that the service begins. The first failover is immediate, and so is a second; if
// its primary fails too before it opened, the next waits, ever longer (hazard 13).
func (m *Monitor) noteTenure(v View, kind Kind) {
	if kind != KindPromote && kind != KindResume {
		return
	}
	w := m.volume(v.Volume)
	if w.streak++; w.streak > 1 {
		w.notBefore = m.now + m.backoff(w.streak-1)
	}
}

// noteProgress ends a streak of new tenures when a primary has opened.
func (m *Monitor) noteProgress(v *volumeState, w *volumeWatch) {
	rep, ok := m.report(v, v.View.Primary)
	if ok && rep.View >= v.View.Tenure && (rep.Role == RolePrimary || rep.Role == RoleHeld) {
		w.streak, w.notBefore = 0, 0
	}
}

// planFirst chooses the first primary: the replica that was assigned first, or after FirstWait any.
func (m *Monitor) planFirst(v *volumeState, w *volumeWatch) *Proposal {
	var chosen ReplicaID
	for _, a := range v.Assigned {
		if a.Replica != "" && m.healthy(v, a.Replica) {
			chosen = a.Replica
			break
		}
	}
	waited := w.first.held(m.now, chosen != "")
	if chosen == "" || chosen != v.Assigned[0].Replica && waited < m.opt.FirstWait {
		return nil
	}
	return &Proposal{Kind: KindFirst, Primary: chosen, Reason: "the volume is new"}
}

// planPrimary replaces or resumes a primary that does not serve any more.
func (m *Monitor) planPrimary(v *volumeState, w *volumeWatch) *Proposal {
	awaited := w.awaited
	w.awaited, w.forgot = "", ""
	why, restarted := m.primaryTrouble(v, w)
	waited := w.trouble.held(m.now, why != "")
	if why == "" {
		w.asked = 0
		return nil
	}
	if m.unheard(v) && waited < m.opt.ResumeWait {
		return nil // a member that shows up now need not be brought up to date later
	}
	living := m.livingBackups(v)
	if (why == hangs || why == isFull) && len(m.well(v, living)) == 0 {
		return nil // nobody would do better
	}
	restarted = restarted && m.life(v.Replicas[v.View.Primary]) == lifeAlive
	p := &Proposal{Reason: why}
	switch {
	case restarted && m.resumes(v, living):
		p.Kind, p.Primary, p.Backups = KindResume, v.View.Primary, living
		if len(living) == 0 {
			p.Reason += ", no backup is alive"
		} else {
			p.Reason += ", its backups may have lost writes"
		}
	case len(living) > 0:
		if !m.confirmed(v, w, living[0]) {
			return nil
		}
		p.Kind, p.Primary, p.Backups = KindPromote, living[0], living[1:]
	default:
		w.forgot = m.allBelow(v)
		return nil // nobody is left who may serve
	}
	if w.awaited = m.awaitedMember(v, p.Primary); w.awaited != "" {
		if w.awaited != awaited {
			m.event(Event{Kind: EventAwaited, Volume: v.Volume.ID, Node: v.Replicas[w.awaited], Replica: w.awaited, Text: m.problem(v, w)})
		}
		return nil
	}
	return p
}

// confirmed tells whether a backup has said since the primary's trouble that it is what it was, where it matters: in sync
// mode flush its machine may have gone down a moment ago, with what it had not flushed, and be about to come back as a
// suspect. The former primary, which lost nothing with its process, would be no member any more by then. The backup is asked
// at once, so this takes a round trip; one that does not answer is dead before long.
func (m *Monitor) confirmed(v *volumeState, w *volumeWatch, r ReplicaID) bool {
	if v.Volume.Sync != SyncFlush {
		return true
	}
	if w.asked == 0 {
		w.asked = m.number()
		for _, b := range v.View.Backups {
			m.node(v.Replicas[b]).news = m.number() // its ping is answered, and the next one echoes that
		}
		m.out.News = true
	}
	return m.node(v.Replicas[r]).echoed > w.asked
}

// resumes tells whether a primary that restarted takes office again: no backup is alive, or those that are are suspects
// and it is none, or has the longest log.
func (m *Monitor) resumes(v *volumeState, living []ReplicaID) bool {
	if len(living) == 0 {
		return true
	}
	best, _ := m.report(v, living[0])
	own, _ := m.report(v, v.View.Primary)
	return best.Suspect && (!own.Suspect || own.LogEnd > best.LogEnd)
}

// awaitedMember finds a member that may have what the next primary may have lost, "" if that one has lost nothing or
// nobody can have more. A member that is dead may come back with all it had; it is only given up when its node has made
// another copy, or by an operator's force.
func (m *Monitor) awaitedMember(v *volumeState, next ReplicaID) ReplicaID {
	if rep, _ := m.report(v, next); !rep.Suspect {
		return ""
	}
	for _, r := range v.View.Members() {
		rep, reported := m.report(v, r)
		reported = reported && m.life(v.Replicas[r]) == lifeAlive
		if reported && !rep.Suspect || !reported && v.present(r) {
			return r
		}
	}
	return ""
}

// primaryTrouble tells why the primary cannot go on, "" if it can, and whether it only restarted.
func (m *Monitor) primaryTrouble(v *volumeState, w *volumeWatch) (why string, restarted bool) {
	node := v.Replicas[v.View.Primary]
	rep, reported := m.report(v, v.View.Primary)
	life := m.life(node)
	missing := w.missing.held(m.now, life == lifeAlive && !reported)
	switch {
	case life == lifeDead:
		return fmt.Sprintf("node %s %s", node, m.nodes[node].gone), false
	case reported && rep.Role == RolePoisoned:
		return fmt.Sprintf("the storage of node %s failed: %s", node, rep.Error), false
	case reported && m.below(v, v.View.Primary):
		return fmt.Sprintf("the copy on node %s lacks what was acknowledged", node), false
	case reported && rep.Role == RoleRecovering && rep.View >= v.View.Tenure:
		// One that restarted before it heard of this tenure never acted in it: it takes office as it is.
		return fmt.Sprintf("node %s restarted", node), true
	case reported && rep.Role == RoleHeld && m.soundBackup(v):
		return "the primary may lack writes that a member has", false
	case reported && m.sick(v, v.View.Primary) && rep.Role != RoleRecovering:
		return hangs, false
	case reported && rep.Full && rep.Role != RoleRecovering:
		return isFull, false
	case life == lifeAlive && !reported && missing >= m.opt.ResumeWait:
		if m.opening(v, v.View.Primary) {
			return fmt.Sprintf("node %s has not opened its copy yet", node), false
		}
		return fmt.Sprintf("node %s has lost its copy", node), false
	}
	return "", false
}

// soundBackup tells whether a living backup lacks nothing. A primary that is held has begun no tenure: whatever was acknowledged
// was so with that backup as a member.
func (m *Monitor) soundBackup(v *volumeState) bool {
	living := m.livingBackups(v)
	if len(living) == 0 {
		return false
	}
	rep, _ := m.report(v, living[0])
	return !rep.Suspect
}

// hangs is the trouble of a primary whose disk neither works nor fails.
const hangs = "the disk of the primary hangs"

// isFull is the trouble of a primary that has no room for more writes.
const isFull = "the disk of the primary is full"

// livingBackups are the members besides the primary that can serve and are not below the floor, the best first: those that
// cannot have lost acknowledged writes, then those whose disks work and have room, then the longest log.
func (m *Monitor) livingBackups(v *volumeState) []ReplicaID {
	var living []ReplicaReport
	for _, r := range v.View.Backups {
		if m.healthy(v, r) && !m.below(v, r) {
			rep, _ := m.report(v, r)
			living = append(living, rep)
		}
	}
	slices.SortStableFunc(living, func(a, b ReplicaReport) int {
		if a.Suspect != b.Suspect {
			if b.Suspect {
				return -1
			}
			return 1
		}
		if x, y := m.impaired(v, a.Replica), m.impaired(v, b.Replica); x != y {
			if y {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.LogEnd, a.LogEnd)
	})
	ids := make([]ReplicaID, len(living))
	for i, rep := range living {
		ids[i] = rep.Replica
	}
	return ids
}

// unheard tells whether some backup may yet show up: this leader, or the backup's process, is that young.
func (m *Monitor) unheard(v *volumeState) bool {
	return slices.ContainsFunc(v.View.Backups, func(r ReplicaID) bool {
		return m.life(v.Replicas[r]) == lifeUnknown || m.opening(v, r)
	})
}

// opening tells whether a replica's node is at work on it, and may report it at any moment.
func (m *Monitor) opening(v *volumeState, r ReplicaID) bool {
	if _, reported := m.report(v, r); reported || !v.present(r) || m.life(v.Replicas[r]) != lifeAlive {
		return false
	}
	trouble, absent := m.nodes[v.Replicas[r]].absent[v.Volume.ID]
	return absent && trouble == ""
}

// planCopies assigns a further node when a volume has too few: at once if fewer were assigned than it wants, or
// after RecruitAfter if none of those that were can be recruited.
func (m *Monitor) planCopies(v *volumeState, w *volumeWatch) {
	short := len(v.View.Members()) < v.Volume.Copies && !m.hasSpare(v)
	waited := w.short.held(m.now, short)
	kept := 0
	for _, a := range v.Assigned {
		if !a.Dropping {
			kept++
		}
	}
	if kept >= v.Volume.Copies && (!short || waited < m.opt.RecruitAfter) {
		return
	}
	taken := func(n NodeID) bool { return v.assignment(n) != nil }
	if idle := m.pickNodes(1, taken); len(idle) == 1 {
		m.command("assign/"+string(v.Volume.ID), Command{Op: OpAssign, Volume: v.Volume.ID, Node: NodeInfo{ID: idle[0]}})
	}
}

// hasSpare tells whether some assigned replica outside the view could be recruited.
func (m *Monitor) hasSpare(v *volumeState) bool {
	for _, a := range v.Assigned {
		switch {
		case v.View.Has(a.Replica), a.Dropping:
		case a.Replica != "" && m.healthy(v, a.Replica) && !m.impaired(v, a.Replica),
			a.Replica == "" && m.life(a.Node) == lifeAlive && m.node(a.Node).absent[v.Volume.ID] == "": // it is being formatted
			return true
		}
	}
	return false
}

// pickNodes chooses up to n living nodes: those with the fewest copies first, then by name.
func (m *Monitor) pickNodes(n int, except func(NodeID) bool) []NodeID {
	load := map[NodeID]int{}
	for _, v := range m.state.volumes {
		for _, a := range v.Assigned {
			load[a.Node]++
		}
	}
	var alive []NodeID
	for _, id := range m.state.nodeIDs() {
		if m.life(id) == lifeAlive && !except(id) {
			alive = append(alive, id)
		}
	}
	slices.SortStableFunc(alive, func(a, b NodeID) int { return cmp.Compare(load[a], load[b]) })
	return alive[:min(n, len(alive))]
}

// planBurial forgets the assignments of a deleted volume, or those that are to be dropped, whose nodes have heard of that,
// hold no copy, and neither make nor remove one.
func (m *Monitor) planBurial(v *volumeState) {
	for _, a := range v.Assigned {
		if !v.Deleting && !a.Dropping {
			continue
		}
		n := m.nodes[a.Node]
		if n == nil || m.life(a.Node) != lifeAlive || !n.orders[v.Volume.ID].Delete || n.newsSeen != n.news {
			continue
		}
		_, held := n.absent[v.Volume.ID]
		for _, r := range n.reports {
			held = held || r.Volume == v.Volume.ID
		}
		if !held {
			m.command("unassign/"+string(v.Volume.ID)+"/"+string(a.Node),
				Command{Op: OpUnassign, Volume: v.Volume.ID, Node: NodeInfo{ID: a.Node}})
		}
	}
}
