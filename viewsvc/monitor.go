package viewsvc

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// MonitorOptions are the Monitor's waits, counted in ticks. doc.go has what they are for.
type MonitorOptions struct {
	TDead        uint64
	FirstWait    uint64
	ResumeWait   uint64
	RecruitAfter uint64
	HandoverWait uint64
	WellAfter    uint64
	FloorEvery   uint64 // how often floors are raised, a multiple of TDead
	SettleEvery  uint64 // how often every volume is looked at, whatever happens
	BackoffMin   uint64 // before a failed command is repeated; doubles
	BackoffMax   uint64
	// Epoch is higher at each leader than at any before (the Raft term). Seq and News numbers begin with it, so
	// that a number of another leader is never mistaken for one of this.
	Epoch uint64
}

// Monitor is what the leader knows and decides beyond the replicated state: who is alive, which view is due,
// what each node is to do. It is pure: calls are events, Take has the effects, and it counts ticks. It is made
// when a server becomes the leader, with nobody known to be alive or dead, and dropped with leadership.
// It is not safe for concurrent use.
type Monitor struct {
	opt   MonitorOptions
	state *State // changed by the owner, who calls Changed after each command

	now       uint64 // ticks since this server leads
	graceFrom uint64 // silence is counted from here at the earliest
	last      uint64 // the last Seq or News given

	nodes    map[NodeID]*nodeWatch
	volumes  map[VolumeID]*volumeWatch
	commands map[string]*commandWatch
	out      Effects
}

// Effects are what the Monitor wants done, in this order.
type Effects struct {
	Commands []KeyedCommand
	Probes   []Probe
	Events   []Event
	News     bool // some node's or volume's news grew
}

// KeyedCommand is a command for the Raft log. Its outcome is to be told to Done.
type KeyedCommand struct {
	Key     string
	Command Command
}

// commandWatch keeps one command per purpose under way, and a failed one from being repeated at once (hazard 13).
type commandWatch struct {
	underWay  bool
	failures  int
	notBefore uint64
}

// volumeWatch is the soft state of a volume.
type volumeWatch struct {
	latest map[ReplicaID]ReplicaReport // the last word of each replica, for status

	// highest is the newest view that any replica reported, and by whom (V9).
	highest   ViewNum
	highestBy ReplicaID
	refused   bool // was announced

	first   timer // some replica could be the first primary
	missing timer // the primary's node lives, the primary is not on it
	trouble timer // the primary cannot go on
	short   timer // too few members, and no assigned replica to recruit

	// streak counts the tenures that the service began since the last primary that opened; each waits longer.
	streak    int
	notBefore uint64

	// awaited is the member without which no other is promoted: all that live may have lost writes that it has.
	awaited ReplicaID

	said   Floor              // what the primary said in the last round of raising floors
	below  map[ReplicaID]bool // members that were told of to be below the floor
	forgot ReplicaID          // a member that does not serve because it is

	// asked is when the living backups were asked whether they are what they said last, 0 while the primary is in order: a
	// number of the Monitor's.
	asked uint64

	sick map[ReplicaID]*sickness

	// lacking has the nodes that live without their copy, and for how long.
	lacking  map[NodeID]*timer
	recruits []ReplicaID
	handover handoverOrder
	check    *CheckOrder
	resumed  ViewNum // the tenure that an operator wants resumed

	news   uint64
	status VolumeStatus // as announced; Reports and News are filled in when asked for
}

// timer measures for how long a condition holds.
type timer struct {
	running bool
	start   uint64
}

// held returns for how many ticks cond has been true at every call.
func (t *timer) held(now uint64, cond bool) uint64 {
	if !cond {
		t.running = false
		return 0
	}
	if !t.running {
		t.running, t.start = true, now
	}
	return now - t.start
}

// NewMonitor begins with a full grace period for every registered node.
func NewMonitor(state *State, opt MonitorOptions) *Monitor {
	m := &Monitor{
		opt:      opt,
		state:    state,
		last:     opt.Epoch << 32,
		nodes:    map[NodeID]*nodeWatch{},
		volumes:  map[VolumeID]*volumeWatch{},
		commands: map[string]*commandWatch{},
	}
	for _, n := range state.nodeIDs() {
		m.node(n)
	}
	m.settleAll()
	return m
}

// Take hands over the effects of the calls since the last Take.
func (m *Monitor) Take() Effects {
	out := m.out
	m.out = Effects{}
	return out
}

// Tick is one unit of time. late tells that this server was stopped, or starved, for so long that the silence of
// others means nothing.
func (m *Monitor) Tick(late bool) {
	m.now++
	if late {
		m.graceFrom = m.now
		m.event(Event{Kind: EventPaused, Text: "this server did not run for a while; nobody is called dead for a full grace period"})
	}
	if m.now%m.opt.TDead == 0 {
		m.raiseFloors(m.now%m.opt.FloorEvery == 0)
	}
	if m.detectSilence() || m.now%m.opt.SettleEvery == 0 {
		m.settleAll()
	}
}

// Changed tells that a command was applied to the state. Everything that follows from it is decided at once, so
// that orders with a new view go out as soon as it is committed.
func (m *Monitor) Changed(c Command, r Result) {
	switch c.Op {
	case OpNode:
		m.node(c.Node.ID)
		m.settleAll() // the node's address is in its peers' orders; it may get assignments
	case OpCreate:
		m.event(Event{Kind: EventVolumeCreated, Volume: r.Volume, Text: c.Create.Name})
	case OpDelete:
		m.event(Event{Kind: EventVolumeDeleted, Volume: r.Volume})
	case OpReplica:
		m.event(Event{Kind: EventReplica, Volume: r.Volume, Node: c.Node.ID, Replica: c.Replica})
	case OpView:
		m.event(Event{Kind: EventView, Volume: r.Volume, View: r.View, Change: c.Proposal.Kind, Text: c.Proposal.Reason})
		m.noteTenure(r.View, c.Proposal.Kind)
	case OpForget:
		m.forgotten(c.Node.ID)
	case OpClaim:
		m.event(Event{Kind: EventClaim, Volume: r.Volume, Text: fmt.Sprintf("%s: %v", c.Claim.Act, r.Claim)})
	case OpResize:
		text := fmt.Sprintf("from %d to %d bytes", r.Size, c.Size)
		if c.Size == r.Size {
			text = fmt.Sprintf("no more: it keeps its %d bytes", r.Size)
		}
		m.event(Event{Kind: EventVolumeResize, Volume: r.Volume, Text: text})
	case OpGrown:
		m.event(Event{Kind: EventVolumeGrown, Volume: r.Volume, Text: fmt.Sprintf("from %d to %d bytes", r.Size, c.Size)})
	case OpDrop:
		m.event(Event{Kind: EventCopyDropped, Volume: r.Volume, Node: c.Node.ID})
	case OpInit, OpAssign, OpUnassign, OpFloors:
	}
	if r.Gone {
		m.event(Event{Kind: EventVolumeGone, Volume: r.Volume})
	}
	if r.Volume != "" {
		m.settle(r.Volume)
	}
}

// Done tells the outcome of a command that Take gave out.
func (m *Monitor) Done(key string, err error) {
	c := m.commands[key]
	if c == nil {
		return
	}
	c.underWay = false
	if _, overtaken := errors.AsType[*ConflictError](err); err == nil || overtaken {
		// Overtaken by a primary's own proposal: the plan was good for a view that is over. Plan anew.
		delete(m.commands, key)
		m.settleAll()
		return
	}
	c.failures++
	c.notBefore = m.now + m.backoff(c.failures)
	m.event(Event{Kind: EventRejected, Text: key, Err: err})
}

// backoff is the wait after so many failures in a row.
func (m *Monitor) backoff(failures int) uint64 {
	return min(m.opt.BackoffMin<<min(failures-1, 16), m.opt.BackoffMax)
}

// command asks for a change of the replicated state, unless one for the same purpose is under way or failed
// just now.
func (m *Monitor) command(key string, c Command) {
	w := m.commands[key]
	if w == nil {
		w = &commandWatch{}
		m.commands[key] = w
	}
	if w.underWay || m.now < w.notBefore {
		return
	}
	w.underWay = true
	m.out.Commands = append(m.out.Commands, KeyedCommand{Key: key, Command: c})
}

func (m *Monitor) event(e Event) { m.out.Events = append(m.out.Events, e) }

// number gives the next Seq or News.
func (m *Monitor) number() uint64 {
	m.last++
	return m.last
}

// volume is the watch of a volume of the state.
func (m *Monitor) volume(id VolumeID) *volumeWatch {
	w := m.volumes[id]
	if w == nil {
		w = &volumeWatch{latest: map[ReplicaID]ReplicaReport{}, lacking: map[NodeID]*timer{}, sick: map[ReplicaID]*sickness{},
			below: map[ReplicaID]bool{}}
		m.volumes[id] = w
	}
	return w
}

func (m *Monitor) settleAll() {
	for _, id := range m.state.volumeIDs() {
		m.settle(id)
	}
}

// settle decides what is due for a volume, and tells the nodes and gateways that are concerned.
func (m *Monitor) settle(id VolumeID) {
	v := m.state.volumes[id]
	if v == nil {
		m.forget(id)
		return
	}
	w := m.volume(id)
	switch {
	case v.Deleting:
		m.planBurial(v)
	case m.rolledBack(v, w):
	default:
		m.planView(v, w)
		m.planSize(v)
		m.planCopies(v, w)
		m.planBurial(v)
	}
	m.recruit(v, w)
	m.announce(v, w)
}

// forget drops a volume that is gone.
func (m *Monitor) forget(id VolumeID) {
	if _, ok := m.volumes[id]; !ok {
		return
	}
	delete(m.volumes, id)
	news := m.number()
	for _, n := range m.nodes {
		if _, ok := n.orders[id]; ok {
			delete(n.orders, id)
			n.news = news
		}
	}
	m.out.News = true
}

// rolledBack tells whether some replica has seen a view that this service never made (V9, hazard 7). Then
// nothing that this service believes of the volume can be trusted.
func (m *Monitor) rolledBack(v *volumeState, w *volumeWatch) bool {
	bad := w.highest > v.View.Num
	if bad && !w.refused {
		m.event(Event{Kind: EventVolumeRefused, Volume: v.Volume.ID, Text: m.problem(v, w)})
	}
	w.refused = bad
	return bad
}

// problem is what status says of a volume that no view is made for, or that is not deleted yet.
func (m *Monitor) problem(v *volumeState, w *volumeWatch) string {
	switch {
	case v.Deleting:
		for _, a := range v.Assigned {
			if m.life(a.Node) == lifeDead {
				return fmt.Sprintf("node %s is down and has a copy: start it again; if it is gone for good: lockstep forget %s", a.Node, a.Node)
			}
		}
	case w.highest > v.View.Num:
		return fmt.Sprintf("the view service lost state: replica %s has seen view %d of volume %s, the service only view %d; "+
			"no view is made for it: stop the view servers and restore their data directories",
			w.highestBy, w.highest, v.Volume.Name, v.View.Num)
	case w.awaited != "":
		return fmt.Sprintf("the members that live may have lost writes that were not flushed, the one on node %s may have them: "+
			"start it again; if it is gone for good: lockstep volume force %s --to NODE",
			v.Replicas[w.awaited], v.Volume.Name)
	case w.forgot != "":
		return fmt.Sprintf("%s; start a member that has the rest, or put its directory back; to accept the loss: lockstep volume force %s --to %s",
			m.belowText(v, w.forgot), v.Volume.Name, v.Replicas[w.forgot])
	}
	return ""
}

// nodeVolumes are the volumes that a node has to do with.
func (m *Monitor) nodeVolumes(n *nodeWatch) []VolumeID {
	set := map[VolumeID]struct{}{}
	for id := range n.orders {
		set[id] = struct{}{}
	}
	for _, r := range n.reports {
		set[r.Volume] = struct{}{}
	}
	return slices.Sorted(maps.Keys(set))
}
