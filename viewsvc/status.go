package viewsvc

import (
	"fmt"
	"maps"
	"slices"
)

// supersededError tells a process that its node's name is another's.
func (m *Monitor) supersededError(req PingRequest) error {
	return fmt.Errorf("%w: a newer process pings as node %s; this one must end", ErrDuplicateNode, req.Node)
}

// VolumeNews is the number of a volume's present status.
func (m *Monitor) VolumeNews(name string) (uint64, error) {
	_, w, err := m.named(name)
	if err != nil {
		return 0, err
	}
	return w.news, nil
}

// VolumeStatus is what gateways and operators see of a volume.
func (m *Monitor) VolumeStatus(name string) (VolumeStatus, error) {
	v, w, err := m.named(name)
	if err != nil {
		return VolumeStatus{}, err
	}
	return w.fullStatus(v), nil
}

func (w *volumeWatch) fullStatus(v *volumeState) VolumeStatus {
	s := w.status
	s.Floor = v.Floor
	s.News = w.news
	s.Reports = make([]ReplicaReport, 0, len(w.latest))
	for _, r := range slices.Sorted(maps.Keys(w.latest)) {
		s.Reports = append(s.Reports, w.latest[r])
	}
	return s
}

// ClusterStatus is what operators see of everything; the view servers are not the Monitor's to know.
func (m *Monitor) ClusterStatus() ClusterStatus {
	s := ClusterStatus{Cluster: m.state.cluster, Volumes: []VolumeStatus{}, Nodes: []NodeStatus{}}
	for _, id := range m.state.volumeIDs() {
		s.Volumes = append(s.Volumes, m.volume(id).fullStatus(m.state.volumes[id]))
	}
	slices.SortStableFunc(s.Volumes, func(a, b VolumeStatus) int {
		return slices.Compare([]byte(a.Volume.Name), []byte(b.Volume.Name))
	})
	for _, id := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[id]
		s.Nodes = append(s.Nodes, NodeStatus{ID: id, Alive: m.life(id) == lifeAlive, PID: n.pid, Addr: n.addr, NBD: n.nbd})
	}
	return s
}

// Views is the history of a volume, oldest first, with the names of its members' nodes.
func (s *State) Views(name string) ([]HistoryEntry, error) {
	v := s.find(name)
	if v == nil {
		return nil, fmt.Errorf("%w: there is no volume %q; `lockstep volume list` shows all", ErrNotFound, name)
	}
	history := slices.Clone(v.History)
	for i, e := range history {
		nodes := map[ReplicaID]NodeID{}
		for _, r := range e.View.Members() {
			nodes[r] = v.Replicas[r]
		}
		history[i].Nodes = nodes
	}
	return history, nil
}

// LocalStatus is what this server knows if it leads; ok is false if it does not. Unlike Client.Status it asks nobody
// whether it still leads: for metrics, not for decisions.
func (s *Server) LocalStatus() (status ClusterStatus, ok bool) {
	err := s.withMonitor(func(m *Monitor) error { status = m.ClusterStatus(); return nil })
	return status, err == nil
}

// KnowsLeader tells whether some view server leads, as far as this one knows.
func (s *Server) KnowsLeader() bool {
	_, addr := s.cons.leader()
	return addr != ""
}
