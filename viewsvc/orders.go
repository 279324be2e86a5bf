package viewsvc

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
)

// recruit chooses which replicas the primary is to bring up to date. A choice stays while it can: what was
// copied is not thrown away because a better candidate turns up.
func (m *Monitor) recruit(v *volumeState, w *volumeWatch) {
	missing := v.Volume.Copies - len(v.View.Members())
	if v.View.Num == 0 || v.Deleting || w.refused || missing <= 0 {
		w.recruits = nil
		return
	}
	var able []ReplicaReport
	for _, a := range v.Assigned {
		if a.Replica != "" && !a.Dropping && !v.View.Has(a.Replica) && m.healthy(v, a.Replica) && !m.impaired(v, a.Replica) {
			rep, _ := m.report(v, a.Replica)
			able = append(able, rep)
		}
	}
	chosen := func(r ReplicaReport) bool { return slices.Contains(w.recruits, r.Replica) }
	slices.SortStableFunc(able, func(a, b ReplicaReport) int {
		if chosen(a) != chosen(b) {
			if chosen(a) {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.LogEnd, a.LogEnd) // who holds data already needs only the difference
	})
	var recruits []ReplicaID
	for _, rep := range able[:min(missing, len(able))] {
		recruits = append(recruits, rep.Replica)
	}
	slices.Sort(recruits) // so that the order alone is no news
	w.recruits = recruits
}

// peers are where the replicas of a volume are: those of assigned nodes, and members that were superseded.
func (m *Monitor) peers(v *volumeState) []Peer {
	ids := make([]ReplicaID, 0, len(v.Assigned))
	for _, a := range v.Assigned {
		if a.Replica != "" && !a.Dropping {
			ids = append(ids, a.Replica)
		}
	}
	for _, r := range v.View.Members() {
		if !v.present(r) {
			ids = append(ids, r)
		}
	}
	peers := make([]Peer, 0, len(ids))
	for _, r := range ids {
		id := v.Replicas[r]
		p := Peer{Replica: r, Node: id, Alive: m.perhapsAlive(v, r)}
		if n := m.nodes[id]; n != nil {
			p.Addr, p.NBD = n.addr, n.nbd
		}
		if rep, ok := m.report(v, r); ok {
			p.Room, p.Full = rep.Room, rep.Full
		}
		peers = append(peers, p)
	}
	return peers
}

// perhapsAlive is false only on knowledge: a primary removes a backup that is called dead. In the grace period of
// a new leader nobody is dead.
func (m *Monitor) perhapsAlive(v *volumeState, r ReplicaID) bool {
	rep, reported := m.report(v, r)
	switch {
	case m.life(v.Replicas[r]) == lifeDead, reported && rep.Role == RolePoisoned:
		return false
	}
	return reported || v.present(r)
}

// ordersFor is what a node is to know and do about a volume.
func (m *Monitor) ordersFor(v *volumeState, w *volumeWatch, a Assignment, peers []Peer) VolumeOrders {
	o := VolumeOrders{Volume: v.Volume, Replica: a.Replica, View: v.View, Peers: peers, Floor: v.Floor, Delete: v.Deleting || a.Dropping}
	if c := w.check; c != nil && a.Replica != "" && (a.Replica == v.View.Primary || c.Scrub) {
		o.Check = c
	}
	if a.Replica != "" && a.Replica == v.View.Primary && !w.refused && !v.Deleting {
		o.Recruit = w.recruits
		o.Handover = w.handover.to
		o.Resume = w.resumed == v.View.Tenure
	}
	return o
}

// lost tells whether a node's copy is gone for good, as far as one can tell: the node's home is new, or the node
// has lived without the copy for RecruitAfter. Making another destroys nothing: it is a replica of its own, which
// takes the place of the lost one in the assignment and not in the view.
func (m *Monitor) lost(v *volumeState, w *volumeWatch, a Assignment) bool {
	t := w.lacking[a.Node]
	if t == nil {
		t = &timer{}
		w.lacking[a.Node] = t
	}
	lacks := a.Replica != "" && !v.Deleting && !a.Dropping && !w.refused && m.life(a.Node) == lifeAlive
	for _, r := range m.node(a.Node).reports {
		lacks = lacks && r.Volume != v.Volume.ID
	}
	waited := t.held(m.now, lacks)
	return lacks && (m.node(a.Node).emptied[v.Volume.ID] || waited >= m.opt.RecruitAfter)
}

// announce renews the orders and the status of a volume, and numbers them anew where they changed.
func (m *Monitor) announce(v *volumeState, w *volumeWatch) {
	m.endOrders(v, w)
	peers := m.peers(v)
	for _, a := range v.Assigned {
		n := m.node(a.Node)
		o := m.ordersFor(v, w, a, peers)
		if m.lost(v, w, a) {
			o.Replica = "" // it is to make a new one
		}
		if old, ok := n.orders[v.Volume.ID]; !ok || !reflect.DeepEqual(old, o) {
			n.orders[v.Volume.ID] = o
			n.news = m.number()
			m.out.News = true
		}
	}
	m.unassigned(v)

	rep, _ := m.report(v, v.View.Primary)
	status := VolumeStatus{
		Volume: v.Volume, View: v.View, Peers: peers,
		Held: rep.Role == RoleHeld, Deleting: v.Deleting, Problem: m.problem(v, w), Troubles: m.troubles(v),
	}
	if w.news == 0 || !reflect.DeepEqual(w.status, status) {
		w.status, w.news = status, m.number()
		m.out.News = true
	}
}

// troubles are what the assigned nodes that live say of a copy that they cannot make or use.
func (m *Monitor) troubles(v *volumeState) []Trouble {
	var list []Trouble
	for _, a := range v.Assigned {
		if why := m.node(a.Node).absent[v.Volume.ID]; why != "" && m.life(a.Node) == lifeAlive {
			list = append(list, Trouble{Node: a.Node, Error: why})
		}
	}
	return list
}

// unassigned takes the orders from a node that has nothing to do with a volume any more.
func (m *Monitor) unassigned(v *volumeState) {
	for _, n := range m.nodes {
		if _, ok := n.orders[v.Volume.ID]; ok && v.assignment(n.id) == nil {
			delete(n.orders, v.Volume.ID)
			n.news = m.number()
			m.out.News = true
		}
	}
}

// Held tells whether a ping of a node may be held back: the node has seen its present orders and some reply
// before. The first ping of a process is answered at once, so that the second can echo.
func (m *Monitor) Held(req PingRequest) bool {
	n := m.nodes[req.Node]
	return n != nil && n.incarnation == req.Incarnation && n.seen && n.gone == "" && n.news == req.News
}

// Reply is the answer to a ping, now. It refuses a process that another took the place of meanwhile.
func (m *Monitor) Reply(req PingRequest) (PingReply, error) {
	n := m.nodes[req.Node]
	if n == nil || n.incarnation != req.Incarnation {
		return PingReply{}, m.supersededError(req)
	}
	seq := m.number()
	copy(n.sent[1:], n.sent[:recentReplies-1])
	n.sent[0] = seq
	reply := PingReply{Cluster: m.state.cluster, Seq: seq, News: n.news, Volumes: make([]VolumeOrders, 0, len(n.orders))}
	for _, id := range slices.Sorted(maps.Keys(n.orders)) {
		reply.Volumes = append(reply.Volumes, n.orders[id])
	}
	return reply, nil
}
