package viewsvc

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// testOptions are short waits, all different, so that a test tells which one passed.
var testOptions = MonitorOptions{
	TDead: 20, FirstWait: 3, ResumeWait: 4, RecruitAfter: 50, HandoverWait: 30, WellAfter: 40,
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

func TestFirstPrimaryIsTheFirstAssigned(t *testing.T) {
	r := newRig(t, "n1", "n2")
	r.down["n1"] = true
	r.create(2)
	r.ticks(2)
	if r.view().Num != 0 {
		t.Fatalf("n2 became primary before FirstWait: %+v", r.view())
	}
	delete(r.down, "n1")
	r.ticks(2)
	r.want(1, "n1")
}

func TestFirstPrimaryIsAnyAfterAWait(t *testing.T) {
	r := newRig(t, "n1", "n2")
	r.down["n1"] = true
	r.create(2)
	r.ticks(2 + testOptions.FirstWait)
	r.want(1, "n2")
}

func TestSecondBecomesBackupAndConsecutiveViewsDiffer(t *testing.T) {
	r := pair(t)
	r.ticks(3 * testOptions.TDead)
	r.want(2, "n1", "n2") // nothing happened, so nothing changed
	if o := r.m.nodes["n1"].orders[vol]; len(o.Recruit) != 0 {
		t.Errorf("a full view recruits %v", o.Recruit)
	}
}

func TestSilentPrimaryIsReplacedAfterTheFullTimeout(t *testing.T) {
	r := pair(t)
	r.down["n1"] = true
	r.ticks(testOptions.TDead - 1)
	r.want(2, "n1", "n2")
	r.ticks(1)
	r.want(3, "n2")
}

func TestRefusingPrimaryIsReplacedAtOnce(t *testing.T) {
	r := pair(t)
	r.die("n1")
	r.want(3, "n2")
	if v := r.view(); v.Tenure != 3 {
		t.Errorf("tenure %d", v.Tenure)
	}
}

func TestBrokenConnectionAloneKillsNobody(t *testing.T) {
	r := pair(t)
	r.down["n1"] = true
	r.m.Broken("n1", r.nodes["n1"].Incarnation)
	r.settle()
	probes := 0
	for ps := r.takeProbes(); len(ps) > 0; ps = r.takeProbes() {
		for _, p := range ps {
			probes++
			r.m.Probed(p, ProbeConnected)
		}
		r.settle()
	}
	if probes != len(probeDelays) {
		t.Errorf("%d probes", probes)
	}
	r.want(2, "n1", "n2")
	r.m.Broken("n1", r.nodes["n1"].Incarnation)
	r.settle()
	for _, p := range r.takeProbes() {
		r.m.Probed(p, ProbeFailed)
	}
	r.settle()
	r.want(2, "n1", "n2")
}

func TestRefusalIsVoidAfterASignOfLife(t *testing.T) {
	r := pair(t)
	r.m.Broken("n1", r.nodes["n1"].Incarnation)
	r.settle()
	probes := r.takeProbes()
	r.ticks(1) // it pings over another connection
	for _, p := range probes {
		r.m.Probed(p, ProbeRefused)
	}
	r.settle()
	r.want(2, "n1", "n2")
}

func TestPeersReportOfRefusalIsLookedInto(t *testing.T) {
	r := pair(t)
	r.down["n1"] = true
	r.nodes["n2"].Replicas[0].Dead = ids(r.view().Primary)
	r.ticks(1)
	probes := r.takeProbes()
	if len(probes) != 1 || probes[0].Node != "n1" || probes[0].Delay <= 100_000_000 {
		t.Fatalf("probes %+v: want one of n1, after its next ping is due", probes)
	}
	r.m.Probed(probes[0], ProbeRefused)
	r.settle()
	r.want(3, "n2")
}

func TestGoodbyeIsBelievedAndOutlivesLatePings(t *testing.T) {
	r := pair(t)
	late := *r.nodes["n1"]
	bye := late
	bye.Bye = true
	if err := r.m.Ping(bye); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.want(3, "n2")
	if err := r.m.Ping(late); err != nil {
		t.Fatal(err)
	}
	if r.m.life("n1") != lifeDead {
		t.Error("a ping that was sent before the goodbye revived the node")
	}
}

func TestQuickRestartCountsAsDeath(t *testing.T) {
	r := pair(t)
	r.join("n1")
	r.ticks(1)
	r.want(3, "n2")
	r.ticks(2)
	r.recruit() // it comes back as a learner
	r.want(4, "n2", "n1")
}

func TestPoisonedPrimaryIsReplacedAndNeverRecruited(t *testing.T) {
	r := pair(t)
	r.nodes["n1"].Replicas[0].Role = RolePoisoned
	r.ticks(2)
	r.want(3, "n2")
	r.ticks(5)
	if o := r.m.nodes["n2"].orders[vol]; len(o.Recruit) != 0 {
		t.Errorf("recruits %v", o.Recruit)
	}
	poisoned := r.nodes["n1"].Replicas[0].Replica
	v := r.view()
	cmd, err := r.m.Vet(Proposal{Volume: vol, Expect: v.Num, Tenure: v.Tenure, From: v.Primary, Kind: KindAdd, Primary: v.Primary, Backups: ids(poisoned), Try: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := errors.AsType[*RuleError](r.apply(cmd)); !ok {
		t.Errorf("adding it: %v", err)
	}
	cmd.Veto = "" // an earlier try, which a leader got that knew nothing of this
	if _, ok := errors.AsType[*RuleError](r.apply(cmd)); !ok {
		t.Error("a proposal that was refused is accepted when it comes again")
	}
}

func TestPrimaryWithoutItsCopyIsReplaced(t *testing.T) {
	r := pair(t)
	r.nodes["n1"].Replicas = nil
	lost := r.view().Primary
	r.ticks(testOptions.ResumeWait + 2)
	r.want(3, "n2")
	if !r.s.volumes[vol].present(lost) {
		t.Error("the copy was given up at once; it may only be unplugged")
	}
	r.ticks(testOptions.RecruitAfter)
	if v := r.s.volumes[vol]; v.present(lost) || v.Replicas[lost] != "n1" {
		t.Errorf("another copy is not another replica: %+v", v.Assigned)
	}
	r.recruit()
	r.want(4, "n2", "n1")
	if r.view().Has(lost) {
		t.Error("the lost replica is back in the view")
	}
}

func TestBlankDiskUnderAnOldNameIsANewReplica(t *testing.T) {
	r := pair(t)
	lost := r.view().Primary
	n := r.join("n1")
	n.Cluster, n.Replicas = "", nil // the machine came back with an empty disk
	r.ticks(testOptions.ResumeWait + 4)
	r.want(3, "n2")
	v := r.s.volumes[vol]
	if v.present(lost) || v.assignment("n1").Replica == "" {
		t.Fatalf("assignments %+v", v.Assigned)
	}
	r.recruit()
	r.want(4, "n2", "n1")
	if r.view().Has(lost) {
		t.Error("the lost replica is back in the view")
	}
	made := v.assignment("n1").Replica
	n.Replicas = append(n.Replicas, ReplicaReport{Volume: vol, Replica: lost, Role: RoleBackup})
	r.ticks(3)
	if v.present(lost) {
		t.Error("a node that has two copies supersedes the one in the view")
	}
	n.Replicas = nil // this time the home is not empty: the copy may only be unplugged
	r.ticks(testOptions.RecruitAfter / 2)
	if !v.present(made) {
		t.Error("a copy made since is given up at once")
	}
}

func TestLongestLogIsPromoted(t *testing.T) {
	for _, longest := range []int{0, 1} {
		r := newRig(t, "n1", "n2", "n3")
		r.create(3)
		r.ticks(3)
		r.recruit()
		backups := []NodeID{"n2", "n3"}
		r.nodes[backups[longest]].Replicas[0].LogEnd = 20
		r.ticks(1)
		r.die("n1")
		r.want(3, backups[longest], backups[1-longest])
	}
}

func TestOutsiderIsNeverPromoted(t *testing.T) {
	r := pair(t, "n3")
	r.die("n2")
	v := r.view()
	r.propose(Proposal{Kind: KindRemove, Primary: v.Primary})
	r.want(3, "n1")
	r.ticks(testOptions.RecruitAfter + 2) // n3 is assigned now, alive and empty
	if a := r.s.volumes[vol].assignment("n3"); a == nil || a.Replica == "" {
		t.Fatalf("n3 was not recruited: %+v", r.s.volumes[vol].Assigned)
	}
	r.die("n1")
	r.join("n2") // it holds data, but was removed
	r.ticks(5 * testOptions.TDead)
	r.want(3, "n1") // a lone primary that dies moves nothing
	r.join("n1")
	r.ticks(testOptions.ResumeWait + 3)
	r.want(4, "n1")
	if r.view().Tenure != 4 {
		t.Errorf("the restarted primary goes on in tenure %d", r.view().Tenure)
	}
}

func TestIdleNodeIsRecruitedAfterAWait(t *testing.T) {
	r := pair(t, "n3")
	r.die("n2")
	r.propose(Proposal{Kind: KindRemove, Primary: r.view().Primary})
	r.ticks(testOptions.RecruitAfter - 5)
	if r.s.volumes[vol].assignment("n3") != nil {
		t.Fatal("n3 was assigned before RecruitAfter")
	}
	r.ticks(8)
	r.recruit()
	r.want(4, "n1", "n3")
}

func TestDeadIdleNodeIsNotChosen(t *testing.T) {
	r := pair(t, "n3", "n4")
	r.die("n3")
	r.die("n2")
	r.propose(Proposal{Kind: KindRemove, Primary: r.view().Primary})
	r.ticks(testOptions.RecruitAfter + 3)
	if r.s.volumes[vol].assignment("n3") != nil {
		t.Error("a dead node was assigned")
	}
	r.recruit()
	r.want(4, "n1", "n4")
}

func TestReturningNodeIsPreferredToAnEmptyOne(t *testing.T) {
	r := pair(t, "n3")
	r.die("n2")
	r.propose(Proposal{Kind: KindRemove, Primary: r.view().Primary})
	r.ticks(testOptions.RecruitAfter / 2)
	r.join("n2")
	r.ticks(testOptions.RecruitAfter)
	if r.s.volumes[vol].assignment("n3") != nil {
		t.Error("an empty node was assigned although n2 came back")
	}
	r.recruit()
	r.want(4, "n1", "n2")
}

func TestMissingAssignmentsAreMadeWhenNodesAppear(t *testing.T) {
	r := newRig(t, "n1")
	r.create(2)
	r.ticks(3)
	r.want(1, "n1")
	r.join("n2")
	r.ticks(4)
	r.recruit()
	r.want(2, "n1", "n2")
}

func TestBackupsDeathIsThePrimarysBusiness(t *testing.T) {
	r := pair(t)
	r.die("n2")
	r.want(2, "n1", "n2")
	peers := r.m.nodes["n1"].orders[vol].Peers
	if !peers[0].Alive || peers[1].Alive {
		t.Errorf("peers %+v: the primary is to know that n2 is dead", peers)
	}
	r.ticks(3 * testOptions.TDead)
	r.want(2, "n1", "n2")
}

func TestNewLeaderGivesAFullGracePeriod(t *testing.T) {
	r := pair(t)
	r.down["n1"], r.down["n2"] = true, true
	r.ticks(testOptions.TDead / 2)
	delete(r.down, "n2")
	r.lead()
	for _, p := range r.m.volume(vol).status.Peers {
		if !p.Alive {
			t.Errorf("a new leader calls %s dead: its primary would remove it", p.Node)
		}
	}
	r.ticks(testOptions.TDead - 1)
	r.want(2, "n1", "n2")
	r.ticks(1)
	r.want(3, "n2")
}

func TestPausedLeaderGivesAFullGracePeriod(t *testing.T) {
	r := pair(t)
	r.down["n1"] = true
	r.ticks(testOptions.TDead - 1)
	r.m.Tick(true)
	r.settle()
	r.ticks(testOptions.TDead - 1)
	r.want(2, "n1", "n2")
	r.ticks(1)
	r.want(3, "n2")
}

func TestAfterTotalRestartABackupThatShowsUpIsPromoted(t *testing.T) {
	r := pair(t)
	r.lead()
	r.join("n1")
	r.down["n2"] = true
	r.ticks(testOptions.ResumeWait - 2)
	r.want(2, "n1", "n2")
	r.join("n2")
	r.ticks(2)
	r.want(3, "n2")
}

func TestAfterTotalRestartTheOldPrimaryResumesAlone(t *testing.T) {
	r := pair(t)
	r.lead()
	r.join("n1")
	r.down["n2"] = true
	r.ticks(testOptions.ResumeWait + 3)
	r.want(3, "n1")
	if h := r.s.volumes[vol].History; h[2].Kind != KindResume {
		t.Errorf("kind %s", h[2].Kind)
	}
	r.join("n2")
	r.ticks(3)
	r.recruit()
	r.want(4, "n1", "n2")
}

func TestAfterTotalRestartMembersAreWaitedForShortly(t *testing.T) {
	r := newRig(t, "n1", "n2", "n3")
	r.create(3)
	r.ticks(3)
	r.recruit()
	r.lead()
	r.join("n1")
	r.join("n2")
	r.down["n3"] = true
	r.ticks(testOptions.ResumeWait - 2)
	r.want(2, "n1", "n2", "n3")
	r.join("n3")
	r.ticks(3)
	r.want(3, "n2", "n3")
}

// A view service that stopped while the primary went on must not be confused by an old report of a restart.
func TestResumedPrimaryIsNotResumedAgain(t *testing.T) {
	r := pair(t)
	r.die("n2")
	r.propose(Proposal{Kind: KindRemove, Primary: r.view().Primary})
	n := r.join("n1")
	r.ticks(1)
	stale := *n
	r.ticks(testOptions.ResumeWait + 5)
	r.want(4, "n1")
	stale.Seq++
	for range 3 { // reports that were under way
		if err := r.m.Ping(stale); err != nil {
			t.Fatal(err)
		}
		r.settle()
	}
	r.want(4, "n1")
}

func TestPingWithoutARecentEchoIsNoSignOfLife(t *testing.T) {
	r := pair(t)
	deaf := *r.nodes["n1"] // it hears nothing: its echo never changes
	r.down["n1"] = true
	for range recentReplies {
		if _, err := r.m.Reply(deaf); err != nil {
			t.Fatal(err)
		}
	}
	for range testOptions.TDead {
		if err := r.m.Ping(deaf); err != nil {
			t.Fatal(err)
		}
		r.settle()
		r.ticks(1)
	}
	r.want(3, "n2")
}

func TestEchoOfAnotherLeaderIsNoSignOfLife(t *testing.T) {
	r := pair(t)
	former := r.m.last
	r.lead()
	if err := r.m.Ping(*r.nodes["n1"]); err != nil {
		t.Fatal(err)
	}
	if reply, err := r.m.Reply(*r.nodes["n2"]); err == nil && (reply.Seq <= former || reply.News <= former) {
		t.Errorf("a new leader uses old numbers: %+v after %d", reply, former)
	}
	if r.m.node("n1").news <= former {
		t.Errorf("news %d after %d", r.m.node("n1").news, former)
	}
	if r.m.life("n1") != lifeUnknown || r.m.Held(*r.nodes["n1"]) {
		t.Error("a new leader believes an old echo, or holds the ping that asks for a new one")
	}
}

func TestDuplicateNodeIsRefused(t *testing.T) {
	r := newRig(t, "n1")
	other := PingRequest{Node: "n1", Incarnation: "other", Addr: "elsewhere:1"}
	if err := r.m.Ping(other); !errors.Is(err, ErrDuplicateNode) || !strings.Contains(err.Error(), "n1:1") {
		t.Errorf("a second n1: %v", err)
	}
	if err := r.ping("n1"); err != nil {
		t.Errorf("the first n1: %v", err)
	}
	r.down["n1"] = true
	r.m.Broken("n1", r.nodes["n1"].Incarnation)
	if err := r.m.Ping(other); !errors.Is(err, ErrTryAgain) {
		t.Errorf("while the first is looked into: %v", err)
	}
	r.die("n1")
	if err := r.m.Ping(other); err != nil {
		t.Errorf("n1 that moved: %v", err)
	}
	if err := r.m.Ping(*r.nodes["n1"]); !errors.Is(err, ErrDuplicateNode) {
		t.Errorf("a ping of the former process: %v", err)
	}
}

func TestForeignClusterIsRefused(t *testing.T) {
	r := newRig(t, "n1")
	err := r.m.Ping(PingRequest{Cluster: "d", Node: "n2", Incarnation: "x", Addr: "n2:1"})
	if !errors.Is(err, ErrForeignCluster) || r.m.nodes["n2"] != nil {
		t.Errorf("%v, %+v", err, r.m.nodes["n2"])
	}
	if _, err := r.m.Vet(Proposal{Cluster: "d", Kind: KindAdd}); !errors.Is(err, ErrForeignCluster) {
		t.Errorf("proposal: %v", err)
	}
}

func TestRolledBackServiceMakesNoView(t *testing.T) {
	r := pair(t)
	r.nodes["n2"].Replicas[0].View = 5 // this service never made it
	r.ticks(1)
	if !r.saw(EventVolumeRefused) {
		t.Error("nobody is told")
	}
	s, err := r.m.VolumeStatus("vol0")
	if err != nil || !strings.Contains(s.Problem, "view 5") {
		t.Errorf("status %+v, error %v", s, err)
	}
	r.die("n1")
	r.join("n1")
	r.ticks(5 * testOptions.TDead)
	r.want(2, "n1", "n2")
	if _, err := r.m.PlanForce("vol0", "n2", ""); !errors.Is(err, ErrRolledBack) {
		t.Errorf("force: %v", err)
	}
	v := r.view()
	_, err = r.m.Vet(Proposal{Volume: vol, Expect: v.Num, Tenure: v.Tenure, From: v.Primary, Kind: KindRemove, Primary: v.Primary})
	if !errors.Is(err, ErrRolledBack) {
		t.Errorf("proposal: %v", err)
	}
}

func TestUnknownVolumeIsLeftAlone(t *testing.T) {
	r := newRig(t, "n1")
	r.nodes["n1"].Replicas = []ReplicaReport{{Volume: "lost", Replica: "x", Role: RoleBackup, View: 3}}
	r.ticks(3)
	told := 0
	for _, e := range r.events {
		if e.Kind == EventUnknownVolume {
			told++
		}
	}
	if told != 1 || len(r.m.nodes["n1"].orders) != 0 {
		t.Errorf("told of it %d times, orders %+v", told, r.m.nodes["n1"].orders)
	}
}

func TestFailedCommandIsNotRepeatedAtOnce(t *testing.T) {
	r := pair(t)
	tries := map[uint64]int{}
	r.reject = func(c Command) error {
		if c.Op == OpView {
			tries[r.m.now]++
			return errors.New("no")
		}
		return nil
	}
	r.die("n1")
	start := r.m.now
	r.ticks(40)
	got := slices.Sorted(maps.Keys(tries))
	for i, at := range got {
		got[i] = at - start
	}
	if want := []uint64{0, 2, 6, 14, 30}; !slices.Equal(got, want) {
		t.Errorf("tried at ticks %v, want %v", got, want)
	}
}

// A primary's last proposal can be committed while its replacement is under way.
func TestOvertakenPromotionIsPlannedAnewAtOnce(t *testing.T) {
	r := newRig(t, "n1", "n2", "n3")
	r.create(3)
	r.ticks(3)
	r.recruit()
	v := r.view()
	last := Proposal{Volume: vol, Expect: 2, Tenure: v.Tenure, From: v.Primary, Kind: KindRemove, Primary: v.Primary, Backups: v.Backups[:1]}
	r.reject = func(c Command) error {
		if c.Op != OpView {
			return nil
		}
		r.reject = nil
		return r.apply(Command{Op: OpView, Proposal: &last})
	}
	r.die("n1")
	r.want(4, "n2")
}

func TestCrashLoopingPrimaryIsResumedEverMoreSlowly(t *testing.T) {
	r := newRig(t, "n1")
	r.create(1)
	r.ticks(3)
	views := []uint64{}
	for range 60 {
		n := r.join("n1") // it never gets as far as opening
		n.Replicas[0].Role = RoleRecovering
		before := r.view().Num
		r.ticks(1)
		n.Replicas[0].Role = RoleRecovering
		r.ticks(1)
		if r.view().Num > before {
			views = append(views, r.m.now)
		}
	}
	var gaps []uint64
	for i := 1; i < len(views); i++ {
		gaps = append(gaps, views[i]-views[i-1])
	}
	if want := []uint64{2, 2, 4, 8, 16, 16}; !slices.Equal(gaps[:len(want)], want) {
		t.Errorf("the views are %v ticks apart, want %v and so on", gaps, want)
	}
}

func TestHandoverOrderEndsWithItsTenure(t *testing.T) {
	r := pair(t)
	if _, _, err := r.m.OrderHandover("vol0", "n1"); !errors.Is(err, ErrInvalid) {
		t.Errorf("to the primary: %v", err)
	}
	if _, _, err := r.m.OrderHandover("vol0", "n9"); !errors.Is(err, ErrInvalid) {
		t.Errorf("to a stranger: %v", err)
	}
	_, to, err := r.m.OrderHandover("vol0", "")
	if err != nil || r.m.nodes["n1"].orders[vol].Handover != to || to != r.view().Backups[0] {
		t.Fatalf("to %s, error %v, orders %+v", to, err, r.m.nodes["n1"].orders[vol])
	}
	v := r.view()
	r.propose(Proposal{Kind: KindHandover, Primary: to, Backups: ids(v.Primary)})
	r.want(3, "n2", "n1")
	for id, n := range r.m.nodes {
		if n.orders[vol].Handover != "" {
			t.Errorf("%s is still to hand over", id)
		}
	}
	if _, _, err := r.m.OrderHandover("vol0", "n1"); err != nil {
		t.Fatal(err)
	}
	r.ticks(testOptions.HandoverWait + 1)
	if r.m.nodes["n2"].orders[vol].Handover != "" {
		t.Error("an order that nobody obeys stands for ever")
	}
}

func TestHeldPrimaryIsResumedOnceByAnOperator(t *testing.T) {
	r := pair(t)
	if err := r.m.OrderResume("vol0"); !errors.Is(err, ErrInvalid) {
		t.Errorf("nothing is held: %v", err)
	}
	r.nodes["n1"].Replicas[0].Role = RoleHeld
	r.ticks(1)
	if s, _ := r.m.VolumeStatus("vol0"); !s.Held {
		t.Error("status does not say held")
	}
	if err := r.m.OrderResume("vol0"); err != nil || !r.m.nodes["n1"].orders[vol].Resume {
		t.Fatalf("error %v, orders %+v", err, r.m.nodes["n1"].orders[vol])
	}
	r.nodes["n1"].Replicas[0].Role = RolePrimary
	r.ticks(1)
	if r.m.nodes["n1"].orders[vol].Resume {
		t.Error("the order outlives its purpose: it would release the next hold")
	}
}

func TestDeletedVolumeGoesWhenEveryNodeDroppedIt(t *testing.T) {
	r := pair(t)
	r.down["n2"] = true
	cmd, err := r.m.PlanDelete("vol0")
	if err = errors.Join(err, r.apply(cmd)); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.ticks(2 * testOptions.TDead)
	if v := r.s.volumes[vol]; v == nil || len(v.Assigned) != 1 || v.Assigned[0].Node != "n2" {
		t.Fatalf("with n2 down: %+v", v)
	}
	delete(r.down, "n2")
	r.ticks(5)
	if r.s.volumes[vol] != nil || len(r.m.nodes["n2"].orders) != 0 || !r.saw(EventVolumeGone) {
		t.Errorf("it never goes: %+v", r.s.volumes[vol])
	}
}

func TestPingFromBeforeTheDeletionProvesNothing(t *testing.T) {
	r := newRig(t, "n1")
	r.create(1)
	early := *r.nodes["n1"] // it is formatting its copy and reports none
	cmd, err := r.m.PlanDelete("vol0")
	if err = errors.Join(err, r.apply(cmd), r.m.Ping(early)); err != nil {
		t.Fatal(err)
	}
	r.settle()
	if r.s.volumes[vol] == nil {
		t.Error("the deletion was forgotten before the node heard of it")
	}
	r.ticks(3)
	if r.s.volumes[vol] != nil {
		t.Error("it never goes")
	}
}

func TestDeletedVolumeStaysUntilNoCopyOfItIsBeingMade(t *testing.T) {
	r := pair(t)
	r.nodes["n1"].Absent = []Absence{{Volume: vol}} // it is formatting another, or removing what there was
	cmd, err := r.m.PlanDelete("vol0")
	if err = errors.Join(err, r.apply(cmd)); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.ticks(5)
	if v := r.s.volumes[vol]; v == nil || len(v.Assigned) != 1 || v.Assigned[0].Node != "n1" {
		t.Fatalf("while n1 works on its copy: %+v", v)
	}
	r.nodes["n1"].Absent = nil
	r.ticks(5)
	if r.s.volumes[vol] != nil {
		t.Error("it never goes")
	}
}

func TestStatusTellsWhatKeepsANodeFromItsCopy(t *testing.T) {
	r := pair(t)
	r.nodes["n2"].Absent = []Absence{{Volume: vol, Error: "no room"}}
	troubles := func() []Trouble {
		r.ticks(2)
		s, err := r.m.VolumeStatus("vol0")
		if err != nil {
			t.Fatal(err)
		}
		return s.Troubles
	}
	if got, want := troubles(), []Trouble{{Node: "n2", Error: "no room"}}; !slices.Equal(got, want) {
		t.Errorf("troubles %v, want %v", got, want)
	}
	r.nodes["n2"].Absent = nil
	if got := troubles(); got != nil {
		t.Errorf("troubles %v that are over", got)
	}
}

func TestReportOfAnotherVolumeIsNotBelieved(t *testing.T) {
	r := pair(t)
	r.nodes["n2"].Replicas[0].Volume = "other"
	r.ticks(1)
	r.die("n1")
	r.ticks(5)
	r.want(2, "n1", "n2")
}

func TestCreateNeedsMinCopiesNodes(t *testing.T) {
	r := newRig(t, "n1")
	_, err := r.m.PlanCreate(Volume{ID: "v", Name: "v", Size: 1 << 20, Copies: 3, MinCopies: 2})
	if !errors.Is(err, ErrNotEnoughNodes) {
		t.Errorf("error %v", err)
	}
	if _, err := r.m.PlanCreate(Volume{ID: "v", Name: "V", Size: 1 << 20}); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v", err)
	}
}

func TestCopiesAreSpreadOverNodes(t *testing.T) {
	r := newRig(t, "n1", "n2", "n3")
	used := map[NodeID]int{}
	for i := range 6 {
		cmd, err := r.m.PlanCreate(Volume{ID: VolumeID(fmt.Sprint(i)), Name: fmt.Sprint(i), Size: 1 << 20})
		if err = errors.Join(err, r.apply(cmd)); err != nil {
			t.Fatal(err)
		}
		for _, n := range cmd.Nodes {
			used[n]++
		}
	}
	if used["n1"] != 4 || used["n2"] != 4 || used["n3"] != 4 {
		t.Errorf("copies: %v", used)
	}
}

func TestPingIsHeldOnlyWithoutNews(t *testing.T) {
	r := pair(t)
	r.ticks(2)
	n := *r.nodes["n1"]
	if !r.m.Held(n) {
		t.Fatal("a ping without news is answered at once")
	}
	r.die("n2")
	if r.m.Held(n) {
		t.Error("the primary is not told that its backup died")
	}
}
