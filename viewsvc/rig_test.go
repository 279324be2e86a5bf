package viewsvc

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
)

// testOptions are short waits, all different, so that a test tells which one passed.
var testOptions = MonitorOptions{
	TDead: 20, FirstWait: 3, ResumeWait: 4, RecruitAfter: 50, HandoverWait: 30, WellAfter: 40, FloorEvery: 60,
	SettleEvery: 1, BackoffMin: 2, BackoffMax: 16, Epoch: 7,
}

// rig drives a Monitor by plain calls. Its nodes ping once a tick, unless they are down.
type rig struct {
	t      *testing.T
	s      *State
	m      *Monitor
	nodes  map[NodeID]*PingRequest
	down   map[NodeID]bool
	events []Event
	probes []Probe
	reject func(Command) error // makes commands fail
	made   int                 // replicas formatted
}

func (r *rig) newReplica(n NodeID) ReplicaID {
	r.made++
	return ReplicaID(fmt.Sprintf("r%d-%s", r.made, n))
}

func newRig(t *testing.T, nodes ...NodeID) *rig {
	t.Helper()
	r := &rig{t: t, s: NewState(), nodes: map[NodeID]*PingRequest{}, down: map[NodeID]bool{}}
	mustApply(t, r.s, Command{Op: OpInit, Cluster: "c"})
	r.lead()
	for _, n := range nodes {
		r.join(n)
	}
	r.ticks(3)
	return r
}

// lead makes a new leader: all soft state is gone.
func (r *rig) lead() {
	opt := testOptions
	if r.m != nil {
		opt.Epoch = r.m.opt.Epoch + 1
	}
	r.m = NewMonitor(r.s, opt)
	r.settle()
}

// join starts a process of a node.
func (r *rig) join(id NodeID) *PingRequest {
	old := r.nodes[id]
	n := &PingRequest{Node: id, Incarnation: string(id) + "-1", Addr: string(id) + ":1", NBD: string(id) + ":2"}
	if old != nil {
		n.Incarnation, n.Cluster = old.Incarnation+"1", old.Cluster
		for _, rep := range old.Replicas {
			if rep.Role == RolePrimary {
				rep.Role = RoleRecovering
			}
			n.Replicas = append(n.Replicas, rep)
		}
	}
	r.nodes[id] = n
	delete(r.down, id)
	return n
}

// settle carries out the Monitor's effects until there are none.
func (r *rig) settle() {
	r.t.Helper()
	for range 100 {
		out := r.m.Take()
		r.events = append(r.events, out.Events...)
		r.probes = append(r.probes, out.Probes...)
		if len(out.Commands) == 0 {
			return
		}
		for _, c := range out.Commands {
			var err error
			if r.reject != nil {
				err = r.reject(c.Command)
			}
			if err == nil {
				err = r.apply(c.Command)
			}
			r.m.Done(c.Key, err)
		}
	}
	r.t.Fatal("the Monitor never comes to rest")
}

func (r *rig) apply(c Command) error {
	res, err := r.s.Apply(c)
	if err == nil {
		r.m.Changed(c, res)
	}
	return err
}

// ping sends one ping of a node and lets it take in the reply.
func (r *rig) ping(id NodeID) error {
	r.t.Helper()
	n := r.nodes[id]
	if err := r.m.Ping(*n); err != nil {
		return err
	}
	r.settle()
	reply, err := r.m.Reply(*n)
	if err != nil {
		return err
	}
	n.Cluster, n.Echo, n.News = reply.Cluster, reply.Seq, reply.News
	for _, o := range reply.Volumes {
		r.obey(n, o)
	}
	return nil
}

// obey is what replication does with orders, as far as the service can see it.
func (r *rig) obey(n *PingRequest, o VolumeOrders) {
	n.Replicas = slices.Clone(n.Replicas)
	i := slices.IndexFunc(n.Replicas, func(rep ReplicaReport) bool { return rep.Volume == o.Volume.ID })
	if o.Delete {
		if i >= 0 {
			n.Replicas = slices.Delete(n.Replicas, i, i+1)
		}
		return
	}
	if i < 0 && o.Replica != "" {
		return
	}
	if slices.ContainsFunc(n.Absent, func(a Absence) bool { return a.Volume == o.Volume.ID && a.Error != "" }) {
		return // it tries, and fails
	}
	if i < 0 {
		n.Replicas = append(n.Replicas, ReplicaReport{Volume: o.Volume.ID, Replica: r.newReplica(n.Node), Role: RoleBlank})
		return
	}
	rep := &n.Replicas[i]
	if o.View.Num <= rep.View || rep.Role == RolePoisoned {
		return
	}
	rep.View, rep.Tenure = o.View.Num, o.View.Tenure
	switch {
	case o.View.Primary == rep.Replica:
		rep.Role, rep.LogEnd = RolePrimary, max(rep.LogEnd, 10)
	case o.View.Has(rep.Replica):
		rep.Role, rep.LogEnd = RoleBackup, max(rep.LogEnd, 10)
	default:
		rep.Role = RoleLearner
	}
}

// ticks lets time pass, in which the nodes that are up ping.
func (r *rig) ticks(n uint64) {
	r.t.Helper()
	for range n {
		r.m.Tick(false)
		r.settle()
		for _, id := range slices.Sorted(maps.Keys(r.nodes)) {
			if !r.down[id] {
				if err := r.ping(id); err != nil {
					r.t.Fatalf("ping of %s: %v", id, err)
				}
			}
		}
	}
}

func (r *rig) create(copies int) {
	r.t.Helper()
	cmd, err := r.m.PlanCreate(Volume{ID: vol, Name: "vol0", Size: 1 << 20, Copies: copies})
	if err == nil {
		err = r.apply(cmd)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.settle()
}

func (r *rig) view() View { return r.s.volumes[vol].View }

func (r *rig) nodeOf(id ReplicaID) NodeID { return r.s.volumes[vol].Replicas[id] }

// want holds the members of the current view, as nodes, against what is expected.
func (r *rig) want(num ViewNum, nodes ...NodeID) {
	r.t.Helper()
	var got []NodeID
	for _, m := range r.view().Members() {
		got = append(got, r.nodeOf(m))
	}
	if r.view().Num != num || !slices.Equal(got, nodes) {
		r.t.Fatalf("tick %d: view %d of %v, want view %d of %v", r.m.now, r.view().Num, got, num, nodes)
	}
}

// recruit lets the primary do what it is ordered to.
func (r *rig) recruit() {
	r.t.Helper()
	v := r.view()
	o := r.m.nodes[r.nodeOf(v.Primary)].orders[vol]
	if len(o.Recruit) == 0 {
		r.t.Fatalf("nobody to recruit in view %d", v.Num)
	}
	r.propose(Proposal{Kind: KindAdd, Primary: v.Primary, Backups: append(slices.Clone(v.Backups), o.Recruit...)})
}

// propose is a proposal of the primary.
func (r *rig) propose(p Proposal) {
	r.t.Helper()
	v := r.view()
	p.Volume, p.Expect, p.Tenure, p.From = vol, v.Num, v.Tenure, v.Primary
	cmd, err := r.m.Vet(p)
	if err := errors.Join(err, r.apply(cmd)); err != nil {
		r.t.Fatal(err)
	}
	r.settle()
	r.ticks(2)
}

// pair is a volume with primary n1 and backup n2, in view 2.
func pair(t *testing.T, others ...NodeID) *rig {
	t.Helper()
	r := newRig(t, append([]NodeID{"n1", "n2"}, others...)...)
	r.create(2)
	r.ticks(3)
	r.want(1, "n1")
	r.recruit()
	r.want(2, "n1", "n2")
	return r
}

// die ends a node's process as SIGKILL does, on a machine that lives on.
func (r *rig) die(id NodeID) {
	r.t.Helper()
	r.down[id] = true
	r.m.Broken(id, r.nodes[id].Incarnation)
	r.settle()
	for _, p := range r.takeProbes() {
		r.m.Probed(p, ProbeRefused)
	}
	r.settle()
}

func (r *rig) takeProbes() []Probe {
	p := r.probes
	r.probes = nil
	return p
}

func (r *rig) saw(kind EventKind) bool {
	return slices.ContainsFunc(r.events, func(e Event) bool { return e.Kind == kind })
}
