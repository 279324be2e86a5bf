package viewsvc

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Op is what a Command does. Its text is part of the log's format; never rename.
type Op string

// The operations of the replicated state.
const (
	OpInit     Op = "init"     // give the cluster its identity; the first one counts
	OpNode     Op = "node"     // register a node, or where it is now
	OpCreate   Op = "create"   // create a volume and assign nodes to it
	OpDelete   Op = "delete"   // mark a volume as deleted
	OpAssign   Op = "assign"   // a further node shall hold a copy
	OpDrop     Op = "drop"     // a node shall drop its copy, which is a spare
	OpUnassign Op = "unassign" // a node dropped its copy: it was to, or the volume was deleted
	OpReplica  Op = "replica"  // register the copy that an assigned node made
	OpView     Op = "view"     // make a view
	OpForget   Op = "forget"   // forget a node
	OpClaim    Op = "claim"    // change who has a volume to itself
	OpResize   Op = "resize"   // a volume is to become larger
	OpGrown    Op = "grown"    // it has
	OpFloors   Op = "floors"   // volumes' histories reach so far on every member
)

// Command changes the replicated state. It carries everything that a leader decided, times and random
// identities included: applying it reads no clock.
type Command struct {
	Op       Op        `json:"op"`
	Time     time.Time `json:"time,omitzero"`     // OpView, OpClaim: for people
	Cluster  string    `json:"cluster,omitempty"` // OpInit
	Node     NodeInfo  `json:"node,omitzero"`     // OpNode; the ID alone for OpAssign, OpDrop, OpUnassign, OpReplica, OpForget
	Nodes    []NodeID  `json:"nodes,omitempty"`   // OpCreate: the assigned nodes, the first primary's first
	Create   *Volume   `json:"create,omitempty"`  // OpCreate
	Volume   VolumeID  `json:"volume,omitempty"`  // OpDelete, OpAssign, OpDrop, OpUnassign, OpReplica, OpClaim, OpResize, OpGrown
	Replica  ReplicaID `json:"replica,omitempty"` // OpReplica
	Proposal *Proposal `json:"proposal,omitempty"`
	Veto     string    `json:"veto,omitempty"` // OpView: why the leader will not have it, whatever the rules say

	Claim *ClaimChange `json:"claim,omitempty"` // OpClaim
	Size  uint64       `json:"size,omitempty"`  // OpResize, OpGrown

	Floors map[VolumeID]Floor `json:"floors,omitempty"` // OpFloors
}

// NodeInfo is what is remembered of a node, so that a new leader can tell clients where it is.
type NodeInfo struct {
	ID   NodeID `json:"id"`
	Addr string `json:"addr,omitempty"`
	NBD  string `json:"nbd,omitempty"`
}

// Result is what applying a Command made.
type Result struct {
	Volume VolumeID // the volume that changed, "" for none
	View   View     // OpView: the new one
	Claim  Claim    // OpClaim: the new one
	Size   uint64   // OpResize, OpGrown: the volume's size before
	Gone   bool     // the last copy of a deleted volume is gone, and with it the volume
}

// Assignment is a node that shall hold a copy of a volume, and the copy that it made.
type Assignment struct {
	Node    NodeID    `json:"node"`
	Replica ReplicaID `json:"replica,omitempty"` // "" until the node reported one

	Dropping bool `json:"dropping,omitempty"` // it is to be removed, and counts for nothing (drop.go)
}

// volumeState is a volume in the replicated state.
type volumeState struct {
	Volume   Volume       `json:"volume"`
	Deleting bool         `json:"deleting,omitempty"`
	Assigned []Assignment `json:"assigned"` // in order of assignment; a node once
	View     View         `json:"view"`     // Num 0: never had one

	// Replicas has the node of every replica that was ever registered. One that is no Assignment's was
	// superseded by a new copy on the same node; it can still be a member of the view.
	Replicas map[ReplicaID]NodeID `json:"replicas"`
	// Tried is the newest question of the present primary that was decided (V10).
	Tried tried `json:"tried,omitzero"`
	Floor Floor `json:"floor,omitzero"` // what every member has; zero: nothing is known of that
	// History ends with View.
	// Invariant: Num grows by one from entry to entry.
	History []HistoryEntry `json:"history"`
}

// tried is a proposer's question: its tenure, and its number in that.
type tried struct {
	Tenure ViewNum `json:"tenure"`
	Try    uint64  `json:"try"`
}

// maxReplicas bounds Replicas: a node that makes new copies in a loop must not fill the view servers.
const maxReplicas = 4096

// maxReasonBytes is how much of a proposal's reason the history keeps.
const maxReasonBytes = 256

// assignment finds a node's assignment, nil if it has none.
func (v *volumeState) assignment(n NodeID) *Assignment {
	for i := range v.Assigned {
		if v.Assigned[i].Node == n {
			return &v.Assigned[i]
		}
	}
	return nil
}

// present tells whether r is the present copy of a node that is to have one.
func (v *volumeState) present(r ReplicaID) bool {
	return r != "" && slices.ContainsFunc(v.Assigned, func(a Assignment) bool { return a.Replica == r && !a.Dropping })
}

// State is what the view servers agree on. It is pure: the same commands in the same order give the same state,
// results and errors on every server. It is not safe for concurrent use.
type State struct {
	cluster string
	nodes   map[NodeID]NodeInfo
	volumes map[VolumeID]*volumeState
}

// NewState is the state before the first command.
func NewState() *State {
	return &State{nodes: map[NodeID]NodeInfo{}, volumes: map[VolumeID]*volumeState{}}
}

// Cluster is the cluster's identity, "" before OpInit.
func (s *State) Cluster() string { return s.cluster }

// find finds the volume that bears a name now. Deleted ones bear none.
func (s *State) find(name string) *volumeState {
	for _, v := range s.volumes {
		if v.Volume.Name == name && !v.Deleting {
			return v
		}
	}
	return nil
}

// volumeIDs are the volumes in a fixed order.
func (s *State) volumeIDs() []VolumeID { return slices.Sorted(maps.Keys(s.volumes)) }

// nodeIDs are the registered nodes in a fixed order.
func (s *State) nodeIDs() []NodeID { return slices.Sorted(maps.Keys(s.nodes)) }

// Apply carries a command out, or rejects it and changes nothing.
func (s *State) Apply(c Command) (Result, error) {
	switch c.Op {
	case OpInit:
		return s.applyInit(c)
	case OpNode:
		return s.applyNode(c)
	case OpCreate:
		return s.applyCreate(c)
	case OpDelete:
		return s.applyDelete(c)
	case OpAssign:
		return s.applyAssign(c)
	case OpDrop:
		return s.applyDrop(c)
	case OpUnassign:
		return s.applyUnassign(c)
	case OpReplica:
		return s.applyReplica(c)
	case OpView:
		return s.applyView(c)
	case OpForget:
		return s.applyForget(c)
	case OpClaim:
		return s.applyClaim(c)
	case OpResize:
		return s.applyResize(c)
	case OpGrown:
		return s.applyGrown(c)
	case OpFloors:
		return s.applyFloors(c)
	}
	return Result{}, fmt.Errorf("%w: operation %q is of a newer release; upgrade every view server", ErrInvalid, c.Op)
}

var errNoCluster = errors.New("a cluster needs an identity")

func (s *State) applyInit(c Command) (Result, error) {
	if c.Cluster == "" {
		return Result{}, fmt.Errorf("%w: %w", ErrInvalid, errNoCluster)
	}
	// Two leaders in succession may both have found it empty. The first one counts; both read the outcome.
	if s.cluster == "" {
		s.cluster = c.Cluster
	}
	return Result{}, nil
}

func (s *State) applyNode(c Command) (Result, error) {
	if err := validNode(c.Node); err != nil {
		return Result{}, err
	}
	s.nodes[c.Node.ID] = c.Node
	return Result{}, nil
}

func (s *State) applyCreate(c Command) (Result, error) {
	if c.Create == nil || c.Create.ID == "" {
		return Result{}, fmt.Errorf("%w: a volume needs an identity", ErrInvalid)
	}
	v := *c.Create
	v.Claim, v.Wanted = Claim{}, 0
	if err := v.validate(); err != nil {
		return Result{}, err
	}
	if old := s.volumes[v.ID]; old != nil {
		was := old.Volume
		was.Claim = v.Claim
		if was == v && !old.Deleting {
			return Result{Volume: v.ID}, nil // the same request again
		}
		return Result{}, fmt.Errorf("%w: there is another volume with ID %s", ErrExists, v.ID)
	}
	if s.find(v.Name) != nil {
		return Result{}, fmt.Errorf("%w: there is a volume %q already; choose another name, or delete that one", ErrExists, v.Name)
	}
	made := &volumeState{
		Volume:   v,
		View:     View{Volume: v.ID},
		Replicas: map[ReplicaID]NodeID{},
	}
	for _, n := range c.Nodes {
		if _, ok := s.nodes[n]; !ok || made.assignment(n) != nil || len(made.Assigned) == v.Copies {
			return Result{}, fmt.Errorf("%w: nodes %v cannot be assigned to volume %s", ErrInvalid, c.Nodes, v.Name)
		}
		made.Assigned = append(made.Assigned, Assignment{Node: n})
	}
	s.volumes[v.ID] = made
	return Result{Volume: v.ID}, nil
}

// live finds a volume that is not being deleted.
func (s *State) live(id VolumeID) (*volumeState, error) {
	v := s.volumes[id]
	if v == nil || v.Deleting {
		return nil, fmt.Errorf("%w: there is no volume with ID %s", ErrNotFound, id)
	}
	return v, nil
}

// applyDelete leaves a tombstone: until every assigned node has said that its copy is gone, one that returns
// after a year is still told to drop it.
func (s *State) applyDelete(c Command) (Result, error) {
	v, err := s.live(c.Volume)
	if err != nil {
		return Result{}, err
	}
	v.Deleting = true
	return s.bury(v), nil
}

func (s *State) applyUnassign(c Command) (Result, error) {
	v := s.volumes[c.Volume]
	if v == nil {
		return Result{}, fmt.Errorf("%w: volume %s", ErrNotFound, c.Volume)
	}
	if a := v.assignment(c.Node.ID); !v.Deleting && (a == nil || !a.Dropping) {
		return Result{}, fmt.Errorf("%w: node %s is to keep its copy of volume %s", ErrInvalid, c.Node.ID, v.Volume.Name)
	}
	v.Assigned = slices.DeleteFunc(v.Assigned, func(a Assignment) bool { return a.Node == c.Node.ID })
	if !v.Deleting {
		return Result{Volume: v.Volume.ID}, nil
	}
	return s.bury(v), nil
}

func (s *State) bury(v *volumeState) Result {
	gone := len(v.Assigned) == 0
	if gone {
		delete(s.volumes, v.Volume.ID)
	}
	return Result{Volume: v.Volume.ID, Gone: gone}
}

func (s *State) applyAssign(c Command) (Result, error) {
	v, err := s.live(c.Volume)
	if err != nil {
		return Result{}, err
	}
	if _, ok := s.nodes[c.Node.ID]; !ok {
		return Result{}, fmt.Errorf("%w: there is no node %s", ErrNotFound, c.Node.ID)
	}
	if v.assignment(c.Node.ID) == nil {
		v.Assigned = append(v.Assigned, Assignment{Node: c.Node.ID})
	}
	return Result{Volume: c.Volume}, nil
}

// applyReplica makes a copy known. It supersedes the node's former one, which keeps its place in the view until
// the rules remove it: it is lost or unplugged, but the view's history does not change for that.
func (s *State) applyReplica(c Command) (Result, error) {
	v, err := s.live(c.Volume)
	if err != nil {
		return Result{}, err
	}
	a := v.assignment(c.Node.ID)
	node, known := v.Replicas[c.Replica]
	switch {
	case a == nil || a.Dropping:
		return Result{}, fmt.Errorf("%w: node %s is not assigned to volume %s", ErrInvalid, c.Node.ID, v.Volume.Name)
	case c.Replica == "" || len(c.Replica) > maxNameBytes:
		return Result{}, fmt.Errorf("%w: %q is no replica ID", ErrInvalid, c.Replica)
	case known && node != c.Node.ID:
		return Result{}, fmt.Errorf("%w: replica %s is node %s's", ErrInvalid, c.Replica, node)
	case !known && len(v.Replicas) >= maxReplicas:
		return Result{}, fmt.Errorf("%w: volume %s has had %d replicas; create a new volume", ErrInvalid, v.Volume.Name, maxReplicas)
	}
	v.Replicas[c.Replica] = c.Node.ID
	a.Replica = c.Replica
	return Result{Volume: c.Volume}, nil
}

// count holds V10. It changes the state also when the proposal is refused afterwards: that is its point.
func (v *volumeState) count(p Proposal) error {
	if p.Try == 0 || p.Expect != v.View.Num || p.From != v.View.Primary || p.Tenure != v.View.Tenure {
		return nil // not of the present primary in the present view: refused by other rules
	}
	if v.Tried.Tenure == p.Tenure && p.Try <= v.Tried.Try {
		return ruleErrorf("V10", "question %d came after question %d was decided", p.Try, v.Tried.Try)
	}
	v.Tried = tried{p.Tenure, p.Try}
	return nil
}

func (s *State) applyView(c Command) (Result, error) {
	if c.Proposal == nil {
		return Result{}, fmt.Errorf("%w: a view needs a proposal", ErrInvalid)
	}
	p := *c.Proposal
	v, err := s.live(p.Volume)
	if err != nil {
		return Result{}, err
	}
	if err := v.count(p); err != nil {
		return Result{}, err
	}
	if c.Veto != "" {
		return Result{}, ruleErrorf("V1", "%s", c.Veto)
	}
	next, err := nextView(v, p)
	if err != nil {
		return Result{}, err
	}
	v.View = next
	if p.Kind == KindForce {
		v.Floor = Floor{} // the operator accepts what is missing
	}
	reason := strings.ToValidUTF8(p.Reason[:min(len(p.Reason), maxReasonBytes)], "")
	v.History = append(v.History, HistoryEntry{View: next, Kind: p.Kind, Reason: reason, Time: c.Time})
	if extra := len(v.History) - MaxHistory; extra > 0 {
		v.History = slices.Delete(v.History, 0, extra)
	}
	return Result{Volume: p.Volume, View: next}, nil
}
