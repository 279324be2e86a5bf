package viewsvc

import (
	"fmt"
	"slices"
)

// life is what is known of a node.
type life int

// The lives of a node. All begin as unknown when a server becomes the leader; → alive by a sign of life; alive
// and unknown → dead by silence, goodbye or refusal; dead → alive, or → unknown by a first ping of a new process.
const (
	lifeUnknown life = iota // no sign of life yet, and still within its grace period
	lifeAlive
	lifeDead
)

const (
	// recentReplies is how many replies back an echo may be and still be a sign of life (hazard 9).
	recentReplies = 4
	// formerProcesses is how many earlier processes of a node are remembered, to tell theirs from new pings.
	formerProcesses = 8
)

// nodeWatch is the soft state of a node.
type nodeWatch struct {
	id          NodeID
	incarnation string   // of the process that pings, "" before its first ping
	former      []string // incarnations before it, newest last
	pid         int
	addr, nbd   string

	seen     bool   // this process gave a sign of life
	gone     string // why it is dead, "" if it is not
	left     bool   // this process said goodbye: what arrives later was sent earlier
	lastLife uint64 // tick
	lives    uint64 // signs of life, of all processes; a suspicion is void when it has grown
	probing  bool

	// emptied has the volumes of which the node had a copy before this process began with an empty home (hazard 5).
	emptied  map[VolumeID]bool
	sent     [recentReplies]uint64 // the last replies' Seq
	echoed   uint64                // newest of these that this process has echoed
	reports  map[ReplicaID]ReplicaReport
	absent   map[VolumeID]string // what keeps it from having a replica in service; "" while it works on that
	strange  map[VolumeID]bool   // volumes that are not of this service, and were told of
	news     uint64              // number of its present orders
	newsSeen uint64              // the orders that its last ping had seen
	orders   map[VolumeID]VolumeOrders
}

// node is the watch of a node, made on first sight.
func (m *Monitor) node(id NodeID) *nodeWatch {
	n := m.nodes[id]
	if n == nil {
		n = &nodeWatch{id: id, lastLife: m.now, orders: map[VolumeID]VolumeOrders{}, news: m.number()}
		if info, ok := m.state.nodes[id]; ok {
			n.addr, n.nbd = info.Addr, info.NBD
		}
		m.nodes[id] = n
	}
	return n
}

// life tells what is known of a node.
func (m *Monitor) life(id NodeID) life {
	n := m.nodes[id]
	switch {
	case n == nil:
		return lifeUnknown
	case n.gone != "":
		return lifeDead
	case n.seen:
		return lifeAlive
	}
	return lifeUnknown
}

// report is what the process that now runs on a replica's node says of the replica; ok is false if it says
// nothing of it.
func (m *Monitor) report(v *volumeState, r ReplicaID) (ReplicaReport, bool) {
	n := m.nodes[v.Replicas[r]]
	if n == nil {
		return ReplicaReport{}, false
	}
	rep, ok := n.reports[r]
	return rep, ok && rep.Volume == v.Volume.ID
}

// healthy tells whether a replica can be counted on: its node is alive, has it, and its storage works.
func (m *Monitor) healthy(v *volumeState, r ReplicaID) bool {
	rep, ok := m.report(v, r)
	return ok && rep.Role != RolePoisoned && m.life(v.Replicas[r]) == lifeAlive
}

// Ping takes a node's sign of life. An error refuses the node: nothing of the ping was believed.
func (m *Monitor) Ping(req PingRequest) error {
	if err := req.validate(); err != nil {
		return err
	}
	if req.Cluster != "" && req.Cluster != m.state.cluster {
		return m.refuse(req, fmt.Errorf("%w: node %s belongs to cluster %s, this view service to cluster %s: check --view and --data of the node",
			ErrForeignCluster, req.Node, req.Cluster, m.state.cluster))
	}
	n := m.node(req.Node)
	if req.Incarnation != n.incarnation {
		if req.Bye {
			return nil // of a process that was not heard of, late perhaps: it must not take the place of the next one
		}
		if err := m.newProcess(n, req); err != nil {
			return m.refuse(req, err)
		}
	}
	n.pid, n.addr, n.nbd = req.PID, req.Addr, req.NBD
	if n.left {
		return nil
	}
	if req.Bye {
		n.left = true
		m.bury(n, "said goodbye")
		m.settleAll()
		return nil
	}
	if slices.Contains(n.sent[:], req.Echo) && req.Echo != 0 {
		n.echoed = max(n.echoed, req.Echo)
		m.signOfLife(n)
	}
	n.newsSeen = req.News
	if info := (NodeInfo{ID: n.id, Addr: n.addr, NBD: n.nbd}); m.state.nodes[n.id] != info {
		m.command("node/"+string(n.id), Command{Op: OpNode, Node: info})
	}
	n.absent = make(map[VolumeID]string, len(req.Absent))
	for _, a := range req.Absent {
		n.absent[a.Volume] = a.Error
	}
	m.takeReports(n, req.Replicas)
	return nil
}

func (m *Monitor) refuse(req PingRequest, err error) error {
	m.event(Event{Kind: EventNodeRefused, Node: req.Node, Err: err})
	return err
}

// newProcess lets a new process of a node take the place of the former one, unless both seem to run.
func (m *Monitor) newProcess(n *nodeWatch, req PingRequest) error {
	if slices.Contains(n.former, req.Incarnation) {
		return fmt.Errorf("%w: a newer process (pid %d, %s) pings as node %s; this one must end", ErrDuplicateNode, n.pid, n.addr, n.id)
	}
	if n.incarnation != "" {
		if n.probing && n.addr != req.Addr {
			return fmt.Errorf("%w: it is being found out whether the former process of node %s, at %s, is dead", ErrTryAgain, n.id, n.addr)
		}
		if m.life(n.id) == lifeAlive && n.addr != req.Addr {
			return fmt.Errorf("%w: node %s is alive at %s (pid %d); give the one at %s another --id", ErrDuplicateNode, n.id, n.addr, n.pid, req.Addr)
		}
		if n.former = append(n.former, n.incarnation); len(n.former) > formerProcesses {
			n.former = n.former[1:]
		}
		m.event(Event{Kind: EventNodeRestarted, Node: n.id, Text: fmt.Sprintf("pid %d at %s", req.PID, req.Addr)})
	}
	n.incarnation = req.Incarnation
	n.emptied = map[VolumeID]bool{}
	for id, v := range m.state.volumes {
		if a := v.assignment(n.id); a != nil && a.Replica != "" && req.Cluster == "" {
			n.emptied[id] = true
		}
		w := m.volume(id)
		for r, said := range w.latest {
			if v.Replicas[r] == n.id { // how far it was is worth knowing, what it did then is not so any more
				w.latest[r] = ReplicaReport{Volume: id, Replica: r, View: said.View, Tenure: said.Tenure,
					LogEnd: said.LogEnd, Commit: said.Commit, Applied: said.Applied}
			}
		}
	}
	n.seen, n.left, n.probing, n.gone = false, false, false, ""
	n.lastLife = m.now
	n.reports, n.absent, n.strange = nil, nil, nil
	n.sent, n.echoed = [recentReplies]uint64{}, 0
	return nil
}

func (m *Monitor) signOfLife(n *nodeWatch) {
	n.lastLife = m.now
	n.lives++
	if n.seen && n.gone == "" {
		return
	}
	n.seen, n.gone = true, ""
	m.event(Event{Kind: EventNodeAlive, Node: n.id, Text: n.addr})
	m.settleAll() // it may get assignments, and its peers learn of it
}

// takeReports believes what the node says of its replicas, and looks into what it says of others.
func (m *Monitor) takeReports(n *nodeWatch, reports []ReplicaReport) {
	n.reports = make(map[ReplicaID]ReplicaReport, len(reports))
	for _, r := range reports {
		n.reports[r.Replica] = r
		delete(n.emptied, r.Volume)
	}
	for _, r := range reports {
		v := m.state.volumes[r.Volume]
		if v == nil {
			m.unknownVolume(n, r)
			continue
		}
		w := m.volume(r.Volume)
		if _, known := v.Replicas[r.Replica]; known || len(w.latest) < maxReplicas {
			w.latest[r.Replica] = r
			m.noteHealth(w, r)
			m.noteFloor(v, w, r.Replica)
		}
		if r.View > w.highest {
			w.highest, w.highestBy = r.View, r.Replica
		}
		if !v.Deleting {
			m.register(n, v, r)
		}
		for _, dead := range r.Dead {
			m.suspect(m.nodes[v.Replicas[dead]])
		}
	}
	for _, id := range m.nodeVolumes(n) {
		m.settle(id)
	}
}

// unknownVolume tells of a copy of a volume that this service does not know. It is never ordered to be deleted:
// it is more likely that the service lost its memory than that the copy is worthless (hazard 7).
func (m *Monitor) unknownVolume(n *nodeWatch, r ReplicaReport) {
	if n.strange[r.Volume] {
		return
	}
	if n.strange == nil {
		n.strange = map[VolumeID]bool{}
	}
	if len(n.strange) < maxStrange {
		n.strange[r.Volume] = true
	}
	m.event(Event{Kind: EventUnknownVolume, Node: n.id, Volume: r.Volume, Replica: r.Replica,
		Text: "the node has a copy of a volume that this service has no record of; it is left alone"})
}

// maxStrange bounds the soft state that a node's unknown volumes can take.
const maxStrange = 1 << 12

// register makes a node's copy known when it is new: a blank disk under an old name is a new replica (hazard 5).
func (m *Monitor) register(n *nodeWatch, v *volumeState, r ReplicaReport) {
	a := v.assignment(n.id)
	if a == nil || a.Replica == r.Replica {
		return
	}
	if _, both := n.reports[a.Replica]; both {
		return // it has two; the one that is known stays
	}
	m.command("replica/"+string(v.Volume.ID)+"/"+string(n.id),
		Command{Op: OpReplica, Volume: v.Volume.ID, Node: NodeInfo{ID: n.id}, Replica: r.Replica})
}

// bury calls a node dead. The caller settles the volumes when it has buried all that died together, so that
// none of them is promoted in between.
func (m *Monitor) bury(n *nodeWatch, why string) {
	if n.gone != "" {
		return
	}
	n.gone, n.probing = why, false
	m.event(Event{Kind: EventNodeDead, Node: n.id, Text: why})
}

// detectSilence buries nodes that were silent for TDead, and tells whether there were any.
func (m *Monitor) detectSilence() bool {
	var silent []NodeID
	for id, n := range m.nodes {
		if n.gone == "" && m.now-max(n.lastLife, m.graceFrom) >= m.opt.TDead {
			silent = append(silent, id)
		}
	}
	slices.Sort(silent)
	for _, id := range silent {
		m.bury(m.nodes[id], "is silent")
	}
	return len(silent) > 0
}
