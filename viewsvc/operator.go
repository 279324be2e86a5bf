package viewsvc

import "fmt"

// handoverOrder is an operator's order to the primary; the zero value is none.
type handoverOrder struct {
	to     ReplicaID
	tenure ViewNum // in which it was given; another ends it
	until  uint64  // tick
}

// endOrders drops operators' orders that were carried out or that cannot be any more.
func (m *Monitor) endOrders(v *volumeState, w *volumeWatch) {
	h := w.handover
	if h.to != "" && (h.tenure != v.View.Tenure || m.now >= h.until || !v.View.Has(h.to) || !m.healthy(v, h.to)) {
		w.handover = handoverOrder{}
	}
	if w.check != nil && m.checkDone(v, w.check) {
		w.check = nil
	}
	if w.resumed != 0 {
		rep, ok := m.report(v, v.View.Primary)
		if w.resumed != v.View.Tenure || ok && rep.Role != RoleHeld {
			w.resumed = 0
		}
	}
}

// named finds a volume that an operator or a gateway means.
func (m *Monitor) named(name string) (*volumeState, *volumeWatch, error) {
	v := m.state.find(name)
	if v == nil {
		return nil, nil, fmt.Errorf("%w: there is no volume %q; `lockstep volume list` shows all", ErrNotFound, name)
	}
	return v, m.volume(v.Volume.ID), nil
}

// PlanCreate chooses the nodes of a new volume.
func (m *Monitor) PlanCreate(v Volume) (Command, error) {
	v = v.withDefaults()
	if err := v.validate(); err != nil {
		return Command{}, err
	}
	if old := m.state.volumes[v.ID]; old != nil { // asked again: applying it tells whether it is the same
		return Command{Op: OpCreate, Create: &v}, nil
	}
	nodes := m.pickNodes(v.Copies, func(NodeID) bool { return false })
	if len(nodes) < v.MinCopies {
		return Command{}, fmt.Errorf("%w: volume %s needs %d living nodes, there are %d; start nodes and try again",
			ErrNotEnoughNodes, v.Name, v.MinCopies, len(nodes))
	}
	return Command{Op: OpCreate, Create: &v, Nodes: nodes}, nil
}

// PlanDelete marks a volume as deleted.
func (m *Monitor) PlanDelete(name string) (Command, error) {
	v, _, err := m.named(name)
	if err != nil {
		return Command{}, err
	}
	if c := v.Volume.Claim; c.Owner != "" {
		return Command{}, fmt.Errorf("%w: volume %s is attached exclusively by %v; detach it there, or `lockstep volume detach-all %s`, first",
			ErrClaimed, name, c, name)
	}
	return Command{Op: OpDelete, Volume: v.Volume.ID}, nil
}

// PlanForce makes the replica of a node the only member. A volume with views that this service does not know is
// refused: its next number would be ignored by those that have seen a higher one.
func (m *Monitor) PlanForce(name string, node NodeID, reason string) (Command, error) {
	v, w, err := m.named(name)
	if err != nil {
		return Command{}, err
	}
	if m.rolledBack(v, w) {
		return Command{}, fmt.Errorf("%w: %s", ErrRolledBack, m.problem(v, w))
	}
	a := v.assignment(node)
	if a == nil || a.Replica == "" {
		return Command{}, fmt.Errorf("%w: node %q has no copy of volume %s", ErrNotFound, node, name)
	}
	rep, ok := m.report(v, a.Replica)
	switch {
	case !ok:
		return Command{}, fmt.Errorf("%w: node %s has not told of its copy of volume %s yet; start it, and try again", ErrInvalid, node, name)
	case m.life(node) == lifeDead: // it may have another disk when it comes back, and no other member would be left
		return Command{}, fmt.Errorf("%w: node %s is down, and may not have its copy of volume %s any more; start it, and try again", ErrInvalid, node, name)
	case rep.Copying && !v.View.Has(a.Replica):
		return Command{}, fmt.Errorf("%w: the copy of volume %s on node %s is unfinished, neither the old nor the new content: it cannot be "+
			"primary; what there is of it can be read from data.img in its directory", ErrInvalid, name, node)
	}
	if reason == "" {
		reason = "forced by an operator"
	}
	return Command{Op: OpView, Proposal: &Proposal{Volume: v.Volume.ID, Expect: v.View.Num, Kind: KindForce,
		Primary: a.Replica, Reason: reason}}, nil
}

// OrderHandover orders the primary to hand over, and returns to whom and in which tenure.
func (m *Monitor) OrderHandover(name string, node NodeID) (VolumeID, ReplicaID, error) {
	v, w, err := m.named(name)
	if err != nil {
		return "", "", err
	}
	if m.rolledBack(v, w) {
		return "", "", fmt.Errorf("%w: %s", ErrRolledBack, m.problem(v, w))
	}
	if node != "" && v.View.Num > 0 && v.Replicas[v.View.Primary] == node {
		return "", "", fmt.Errorf("%w: node %s is the primary of volume %s already", ErrInvalid, node, name)
	}
	for _, r := range m.livingBackups(v) {
		if node == "" || v.Replicas[r] == node {
			if rep, _ := m.report(v, r); rep.Suspect { // it would be held, whatever it has by then
				return "", "", fmt.Errorf("%w: node %s has been back for a moment only and is brought up to date; try again", ErrInvalid, v.Replicas[r])
			}
			w.handover = handoverOrder{to: r, tenure: v.View.Tenure, until: m.now + m.opt.HandoverWait}
			m.settle(v.Volume.ID)
			return v.Volume.ID, r, nil
		}
	}
	if node == "" {
		return "", "", fmt.Errorf("%w: volume %s has no living backup to hand over to", ErrInvalid, name)
	}
	return "", "", fmt.Errorf("%w: node %s is no living backup of volume %s; `lockstep status %s` shows its members", ErrInvalid, node, name, name)
}

// handoverStands tells whether an order to hand over is neither carried out nor dropped.
func (m *Monitor) handoverStands(id VolumeID, to ReplicaID) bool {
	w := m.volumes[id]
	return w != nil && w.handover.to == to
}

// CancelHandover takes the order back that OrderHandover gave.
func (m *Monitor) CancelHandover(id VolumeID, to ReplicaID) {
	if w := m.volumes[id]; w != nil && w.handover.to == to {
		w.handover = handoverOrder{}
		m.settle(id)
	}
}

// OrderResume lets a held primary serve.
func (m *Monitor) OrderResume(name string) error {
	v, w, err := m.named(name)
	if err != nil {
		return err
	}
	if w.awaited != "" {
		return fmt.Errorf("%w: volume %s is not held yet: %s", ErrInvalid, name, m.problem(v, w))
	}
	if rep, ok := m.report(v, v.View.Primary); !ok || rep.Role != RoleHeld {
		return fmt.Errorf("%w: volume %s is not held; there is nothing to resume", ErrInvalid, name)
	}
	w.resumed = v.View.Tenure
	m.settle(v.Volume.ID)
	return nil
}

// Vet makes the command of a node's proposal. What soft knowledge forbids goes through Raft too, with a veto: a refusal
// that is not in the log would not hold for a repetition that another leader gets (V10).
func (m *Monitor) Vet(p Proposal) (Command, error) {
	if p.Cluster != "" && p.Cluster != m.state.cluster {
		return Command{}, fmt.Errorf("%w: the proposal is for cluster %s, this is %s", ErrForeignCluster, p.Cluster, m.state.cluster)
	}
	switch p.Kind {
	case KindAdd, KindRemove, KindHandover:
	case KindFirst, KindPromote, KindResume, KindForce:
		return Command{}, ruleErrorf("V1", "nodes do not propose kind %q", p.Kind)
	default:
		return Command{}, ruleErrorf("V1", "kind %q is unknown", p.Kind)
	}
	v := m.state.volumes[p.Volume]
	if v == nil || v.Deleting {
		return Command{}, fmt.Errorf("%w: there is no volume with ID %s", ErrNotFound, p.Volume)
	}
	if w := m.volume(p.Volume); m.rolledBack(v, w) {
		return Command{}, fmt.Errorf("%w: %s", ErrRolledBack, m.problem(v, w))
	}
	c := Command{Op: OpView, Proposal: &p}
	for _, r := range append([]ReplicaID{p.Primary}, p.Backups...) {
		if rep, ok := m.report(v, r); ok && rep.Role == RolePoisoned && (p.Kind == KindAdd && !v.View.Has(r) || r == p.Primary && p.Kind == KindHandover) {
			c.Veto = fmt.Sprintf("the storage of replica %s failed: %s", r, rep.Error)
		}
	}
	return c, nil
}
