package viewsvc

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
)

// A node that was replaced and came back has a copy that nobody needs, and that takes space. An operator can have it
// dropped: a copy that is no member's, of a volume all of whose copies are members. It is no copy any more (present) as soon as
// that is decided, so that no primary adds it; its assignment goes when the node says that the copy is gone.

// applyDrop marks a copy as to be dropped.
func (s *State) applyDrop(c Command) (Result, error) {
	v, err := s.live(c.Volume)
	if err != nil {
		return Result{}, err
	}
	a := v.assignment(c.Node.ID)
	switch {
	case a == nil:
		return Result{}, fmt.Errorf("%w: node %q has no copy of volume %s", ErrNotFound, c.Node.ID, v.Volume.Name)
	case slices.ContainsFunc(v.View.Members(), func(r ReplicaID) bool { return v.Replicas[r] == c.Node.ID }):
		return Result{}, fmt.Errorf("%w: the copy of volume %s on node %s counts, it is a member of view %d; stop the node if it is to be replaced",
			ErrInvalid, v.Volume.Name, c.Node.ID, v.View.Num)
	case len(v.View.Members()) < v.Volume.Copies:
		return Result{}, fmt.Errorf("%w: volume %s has %d of its %d copies in view %d, and may need the one on node %s; ask again when it is safe",
			ErrInvalid, v.Volume.Name, len(v.View.Members()), v.Volume.Copies, v.View.Num, c.Node.ID)
	}
	a.Dropping = true
	return Result{Volume: v.Volume.ID}, nil
}

// PlanDrop drops a node's copy of a volume.
func (m *Monitor) PlanDrop(name string, node NodeID) (Command, error) {
	v, w, err := m.named(name)
	if err != nil {
		return Command{}, err
	}
	if m.rolledBack(v, w) {
		return Command{}, fmt.Errorf("%w: %s", ErrRolledBack, m.problem(v, w))
	}
	return Command{Op: OpDrop, Volume: v.Volume.ID, Node: NodeInfo{ID: node}}, nil
}

func (s *Server) handleDrop(r *http.Request, _ none) (none, error) {
	_, err := s.carryOut(func(m *Monitor) (Command, error) { return m.PlanDrop(r.PathValue("name"), NodeID(r.PathValue("node"))) })
	return none{}, err
}

// DropCopy has a node's copy of a volume removed that is no member's. The node does so as soon as it lives.
func (c *Client) DropCopy(ctx context.Context, name string, node NodeID) error {
	path := "/v1/volumes/" + url.PathEscape(name) + "/copies/" + url.PathEscape(string(node))
	if err := c.call(ctx, http.MethodDelete, path, nil, nil); err != nil {
		return fmt.Errorf("drop the copy of volume %s: %w", name, err)
	}
	return nil
}
