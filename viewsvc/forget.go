package viewsvc

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
)

// An operator can have a node forgotten that is gone for good: it is in no status any more, its copies are nobody's spares,
// and deleted volumes do not wait for it. Only a node that is dead, and none of whose copies is a member of a view, can be: a
// member's copy counts, however dead the node is, and to give one up is what Force is for. A node that comes back all
// the same is a new one, which has old copies.

// applyForget takes a node's assignments, and its name.
func (s *State) applyForget(c Command) (Result, error) {
	id := c.Node.ID
	if _, known := s.nodes[id]; !known {
		return Result{}, fmt.Errorf("%w: there is no node %q; `lockstep status` shows all", ErrNotFound, id)
	}
	for _, vid := range s.volumeIDs() {
		v := s.volumes[vid]
		for _, r := range v.View.Members() {
			if v.Replicas[r] == id && !v.Deleting {
				return Result{}, fmt.Errorf("%w: node %s has a copy of volume %s that counts, it is a member of view %d; "+
					"start the node, or see `lockstep volume force --help`", ErrInvalid, id, v.Volume.Name, v.View.Num)
			}
		}
	}
	for _, v := range s.volumes {
		v.Assigned = slices.DeleteFunc(v.Assigned, func(a Assignment) bool { return a.Node == id })
		if v.Deleting {
			s.bury(v)
		}
	}
	delete(s.nodes, id)
	return Result{}, nil
}

// PlanForget forgets a node that is dead.
func (m *Monitor) PlanForget(id NodeID) (Command, error) {
	if _, known := m.state.nodes[id]; known && m.life(id) != lifeDead {
		return Command{}, fmt.Errorf("%w: node %s lives, or may: stop it, and ask again in some seconds", ErrInvalid, id)
	}
	return Command{Op: OpForget, Node: NodeInfo{ID: id}}, nil
}

// forgotten drops what this leader knew of a node, and of deleted volumes that waited for it alone.
func (m *Monitor) forgotten(id NodeID) {
	delete(m.nodes, id)
	m.event(Event{Kind: EventNodeForgotten, Node: id})
	for _, v := range slices.Sorted(maps.Keys(m.volumes)) {
		if m.state.volumes[v] == nil {
			m.event(Event{Kind: EventVolumeGone, Volume: v})
			m.forget(v)
		}
	}
	m.settleAll()
}

func (s *Server) handleForget(r *http.Request, _ none) (none, error) {
	_, err := s.carryOut(func(m *Monitor) (Command, error) { return m.PlanForget(NodeID(r.PathValue("id"))) })
	return none{}, err
}

// ForgetNode forgets a node that is dead for good, and holds no copy that counts.
func (c *Client) ForgetNode(ctx context.Context, id NodeID) error {
	if err := c.call(ctx, http.MethodDelete, "/v1/nodes/"+url.PathEscape(string(id)), nil, nil); err != nil {
		return fmt.Errorf("forget node %s: %w", id, err)
	}
	return nil
}
