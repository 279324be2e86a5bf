package viewsvc

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// mustApply applies commands that have to succeed.
func mustApply(t *testing.T, s *State, cmds ...Command) Result {
	t.Helper()
	var r Result
	for _, c := range cmds {
		var err error
		if r, err = s.Apply(c); err != nil {
			t.Fatalf("%s: %v", c.Op, err)
		}
	}
	return r
}

func nodeCommand(id NodeID) Command {
	return Command{Op: OpNode, Node: NodeInfo{ID: id, Addr: string(id) + ":1", NBD: string(id) + ":2"}}
}

func viewCommand(p Proposal) Command { return Command{Op: OpView, Proposal: &p} }

const vol VolumeID = "vol"

// newVolume is a state with nodes n1 to n4 and a volume on n1 to n3, whose copies are r1 to r3; r0 was n1's
// before r1.
func newVolume(t *testing.T) *State {
	t.Helper()
	s := NewState()
	mustApply(t, s, Command{Op: OpInit, Cluster: "c"})
	for _, n := range []NodeID{"n1", "n2", "n3", "n4"} {
		mustApply(t, s, nodeCommand(n))
	}
	v := Volume{ID: vol, Name: "vol0", Size: 1 << 20, Sync: SyncAlways, Copies: 3, MinCopies: 1}
	mustApply(t, s, Command{Op: OpCreate, Create: &v, Nodes: []NodeID{"n1", "n2", "n3"}})
	replica := func(n NodeID, r ReplicaID) Command {
		return Command{Op: OpReplica, Volume: vol, Node: NodeInfo{ID: n}, Replica: r}
	}
	mustApply(t, s, replica("n1", "r0"), replica("n1", "r1"), replica("n2", "r2"), replica("n3", "r3"))
	return s
}

// inView is newVolume in view 2: primary r1 in tenure 1, backup r2.
func inView(t *testing.T) *State {
	t.Helper()
	s := newVolume(t)
	mustApply(t, s,
		viewCommand(Proposal{Volume: vol, Kind: KindFirst, Primary: "r1"}),
		viewCommand(Proposal{Volume: vol, Expect: 1, Tenure: 1, From: "r1", Kind: KindAdd, Primary: "r1", Backups: ids("r2")}))
	return s
}

func ids(rs ...ReplicaID) []ReplicaID { return rs }

func TestApplyRules(t *testing.T) {
	p := func(kind Kind, primary ReplicaID, backups ...ReplicaID) Proposal {
		return Proposal{Volume: vol, Expect: 2, Kind: kind, Primary: primary, Backups: backups}
	}
	byPrimary := func(p Proposal) Proposal { p.From, p.Tenure = "r1", 1; return p }
	with := func(p Proposal, f func(*Proposal)) Proposal { f(&p); return p }

	for _, tc := range []struct {
		name   string
		p      Proposal
		rule   string // "" for accepted
		tenure ViewNum
	}{
		{"add a present replica", byPrimary(p(KindAdd, "r1", "r2", "r3")), "", 1},
		{"remove a backup", byPrimary(p(KindRemove, "r1")), "", 1},
		{"promote the backup alone", p(KindPromote, "r2"), "", 3},
		{"promote the backup, keep the other", p(KindPromote, "r2", "r1"), "", 3},
		{"resume alone", p(KindResume, "r1"), "", 3},
		{"resume with all", p(KindResume, "r1", "r2"), "", 3},
		{"hand over", byPrimary(p(KindHandover, "r2", "r1")), "", 3},
		{"hand over and leave", byPrimary(p(KindHandover, "r2")), "", 3},
		{"force an outsider", p(KindForce, "r3"), "", 3},

		{"unknown kind", p("coup", "r2"), "V1", 0},
		{"no primary", p(KindPromote, ""), "V1", 0},
		{"unknown replica", byPrimary(p(KindAdd, "r1", "r2", "r9")), "V1", 0},
		{"a member twice", byPrimary(p(KindAdd, "r1", "r2", "r2")), "V1", 0},
		{"the primary as backup", byPrimary(p(KindAdd, "r1", "r2", "r1")), "V1", 0},
		{"a crowd", byPrimary(p(KindAdd, "r1", slices.Repeat(ids("r2"), maxMembers)...)), "V1", 0},
		{"first again", p(KindFirst, "r1"), "V2", 0},
		{"add by a backup", with(byPrimary(p(KindAdd, "r1", "r2", "r3")), func(p *Proposal) { p.From = "r2" }), "V3", 0},
		{"add by the service", p(KindAdd, "r1", "r2", "r3"), "V3", 0},
		{"add by a former process of the primary", with(byPrimary(p(KindAdd, "r1", "r2", "r3")), func(p *Proposal) { p.Tenure = 0 }), "V3", 0},
		{"add with another primary", byPrimary(p(KindAdd, "r2", "r1", "r3")), "V3", 0},
		{"add and drop one", byPrimary(p(KindAdd, "r1", "r3")), "V3", 0},
		{"add nobody", byPrimary(p(KindAdd, "r1", "r2")), "V3", 0},
		{"add a superseded replica", byPrimary(p(KindAdd, "r1", "r2", "r0")), "V3", 0},
		{"remove by a backup", with(byPrimary(p(KindRemove, "r1")), func(p *Proposal) { p.From = "r2" }), "V4", 0},
		{"remove by a former process", with(byPrimary(p(KindRemove, "r1")), func(p *Proposal) { p.Tenure = 2 }), "V4", 0},
		{"remove the primary", byPrimary(p(KindRemove, "r2")), "V4", 0},
		{"remove nobody", byPrimary(p(KindRemove, "r1", "r2")), "V4", 0},
		{"remove one and add another", byPrimary(p(KindRemove, "r1", "r3")), "V4", 0},
		{"promote an outsider", p(KindPromote, "r3"), "V5", 0},
		{"promote with an outsider", p(KindPromote, "r2", "r3"), "V5", 0},
		{"promote the primary", p(KindPromote, "r1"), "V5", 0},
		{"promote oneself", with(p(KindPromote, "r2"), func(p *Proposal) { p.From = "r2" }), "V5", 0},
		{"resume another", p(KindResume, "r2"), "V6", 0},
		{"resume with an outsider", p(KindResume, "r1", "r3"), "V6", 0},
		{"resume oneself", byPrimary(p(KindResume, "r1")), "V6", 0},
		{"hand over to an outsider", byPrimary(p(KindHandover, "r3")), "V7", 0},
		{"hand over to oneself", byPrimary(p(KindHandover, "r1", "r2")), "V7", 0},
		{"hand over with an outsider", byPrimary(p(KindHandover, "r2", "r3")), "V7", 0},
		{"hand over by a backup", with(byPrimary(p(KindHandover, "r2")), func(p *Proposal) { p.From = "r2" }), "V7", 0},
		{"hand over by a former process", with(byPrimary(p(KindHandover, "r2")), func(p *Proposal) { p.Tenure = 2 }), "V7", 0},
		{"force a superseded replica", p(KindForce, "r0"), "V8", 0},
		{"force what is", p(KindForce, "r1", "r2"), "V8", 0},
		{"force with an outsider", p(KindForce, "r1", "r3"), "V8", 0},
		{"force by a replica", byPrimary(p(KindForce, "r1")), "V8", 0},
		{"a view that never was", with(p(KindPromote, "r2"), func(p *Proposal) { p.Expect = 3 }), "V9", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := inView(t)
			before, _ := s.Encode()
			r, err := s.Apply(viewCommand(tc.p))
			if tc.rule == "" {
				want := View{Volume: vol, Num: 3, Tenure: tc.tenure, Primary: tc.p.Primary, Backups: tc.p.Backups}
				if tc.p.Kind == KindForce {
					want.DataLossGen = 1
				}
				if err != nil || !r.View.Equal(want) {
					t.Fatalf("view %+v, error %v; want %+v", r.View, err, want)
				}
				return
			}
			rule, ok := errors.AsType[*RuleError](err)
			if !ok || rule.Rule != tc.rule {
				t.Fatalf("error %v, want rule %s", err, tc.rule)
			}
			if after, _ := s.Encode(); !bytes.Equal(before, after) {
				t.Error("a rejected proposal changed the state")
			}
		})
	}
}

func TestRemovalCannotSmuggleInAMember(t *testing.T) {
	s := inView(t)
	mustApply(t, s,
		viewCommand(Proposal{Volume: vol, Expect: 2, Tenure: 1, From: "r1", Kind: KindAdd, Primary: "r1", Backups: ids("r2", "r3")}),
		Command{Op: OpAssign, Volume: vol, Node: NodeInfo{ID: "n4"}},
		Command{Op: OpReplica, Volume: vol, Node: NodeInfo{ID: "n4"}, Replica: "r4"})
	_, err := s.Apply(viewCommand(Proposal{Volume: vol, Expect: 3, Tenure: 1, From: "r1", Kind: KindRemove, Primary: "r1", Backups: ids("r4")}))
	if rule, ok := errors.AsType[*RuleError](err); !ok || rule.Rule != "V4" {
		t.Errorf("error %v", err)
	}
}

func TestReasonIsCut(t *testing.T) {
	s := inView(t)
	mustApply(t, s, viewCommand(Proposal{Volume: vol, Expect: 2, Kind: KindPromote, Primary: "r2", Reason: strings.Repeat("ä", 1<<20)}))
	h := s.volumes[vol].History
	if r := h[len(h)-1].Reason; len(r) != maxReasonBytes || !utf8.ValidString(r) {
		t.Errorf("a reason of %d bytes, %q", len(r), r[len(r)-3:])
	}
}

func TestOldExpectIsToldTheCurrentView(t *testing.T) {
	s := inView(t)
	add := Proposal{Volume: vol, Expect: 1, Tenure: 1, From: "r1", Kind: KindAdd, Primary: "r1", Backups: ids("r2")}
	_, err := s.Apply(viewCommand(add)) // it was accepted before
	conflict, ok := errors.AsType[*ConflictError](err)
	if !ok || !conflict.Current.Equal(s.volumes[vol].View) || conflict.Current.Num != 2 {
		t.Errorf("error %v", err)
	}
}

func TestNothingButFirstMakesAFirstView(t *testing.T) {
	for _, kind := range []Kind{KindAdd, KindRemove, KindPromote, KindResume, KindHandover, KindForce} {
		_, err := newVolume(t).Apply(viewCommand(Proposal{Volume: vol, Kind: kind, Primary: "r1"}))
		if rule, ok := errors.AsType[*RuleError](err); !ok || rule.Rule != "V2" {
			t.Errorf("%s: %v", kind, err)
		}
	}
	for name, p := range map[string]Proposal{
		"with backups": {Volume: vol, Kind: KindFirst, Primary: "r1", Backups: ids("r2")},
		"superseded":   {Volume: vol, Kind: KindFirst, Primary: "r0"},
	} {
		_, err := newVolume(t).Apply(viewCommand(p))
		if rule, ok := errors.AsType[*RuleError](err); !ok || rule.Rule != "V2" {
			t.Errorf("first %s: %v", name, err)
		}
	}
}

func TestDeletedVolumeFreesItsNameAndMakesNoViews(t *testing.T) {
	s := inView(t)
	mustApply(t, s, Command{Op: OpDelete, Volume: vol})
	_, err := s.Apply(viewCommand(Proposal{Volume: vol, Expect: 2, Kind: KindPromote, Primary: "r2"}))
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("a view of a deleted volume: %v", err)
	}
	again := Volume{ID: "vol2", Name: "vol0", Size: 1 << 20, Sync: SyncFlush, Copies: 1, MinCopies: 1}
	mustApply(t, s, Command{Op: OpCreate, Create: &again, Nodes: []NodeID{"n4"}})
	for i, n := range []NodeID{"n1", "n2", "n3"} {
		if r := mustApply(t, s, Command{Op: OpUnassign, Volume: vol, Node: NodeInfo{ID: n}}); r.Gone != (i == 2) {
			t.Errorf("after %s dropped its copy: gone is %v", n, r.Gone)
		}
	}
	if s.volumes[vol] != nil {
		t.Error("the tombstone stays for ever")
	}
}

func TestReplicaBelongsToOneNode(t *testing.T) {
	s := inView(t)
	for name, c := range map[string]Command{
		"another node's": {Op: OpReplica, Volume: vol, Node: NodeInfo{ID: "n2"}, Replica: "r1"},
		"not assigned":   {Op: OpReplica, Volume: vol, Node: NodeInfo{ID: "n4"}, Replica: "r4"},
		"no name":        {Op: OpReplica, Volume: vol, Node: NodeInfo{ID: "n1"}},
	} {
		if _, err := s.Apply(c); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A copy that was unplugged and comes back is the present one again.
	mustApply(t, s, Command{Op: OpReplica, Volume: vol, Node: NodeInfo{ID: "n1"}, Replica: "r0"})
	if !s.volumes[vol].present("r0") || s.volumes[vol].present("r1") {
		t.Errorf("assignments %+v", s.volumes[vol].Assigned)
	}
}

func TestVolumesAreValidated(t *testing.T) {
	good := Volume{ID: "v", Name: "a.b-c_1", Size: 1 << 20, Sync: SyncAlways, Copies: 2, MinCopies: 2}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	for name, breakIt := range map[string]func(*Volume){
		"no name":             func(v *Volume) { v.Name = "" },
		"capital":             func(v *Volume) { v.Name = "Vol" },
		"path":                func(v *Volume) { v.Name = "../etc" },
		"leading dot":         func(v *Volume) { v.Name = ".a" },
		"long name":           func(v *Volume) { v.Name = fmt.Sprintf("%064d", 1) },
		"trailing newline":    func(v *Volume) { v.Name = "vol\n" },
		"odd size":            func(v *Volume) { v.Size++ },
		"small":               func(v *Volume) { v.Size = MinVolumeSize - BlockSize },
		"large":               func(v *Volume) { v.Size = MaxVolumeSize + BlockSize },
		"sync":                func(v *Volume) { v.Sync = "never" },
		"no copies":           func(v *Volume) { v.Copies = 0 },
		"many copies":         func(v *Volume) { v.Copies = MaxCopies + 1 },
		"no minimum":          func(v *Volume) { v.MinCopies = 0 },
		"minimum over copies": func(v *Volume) { v.MinCopies = 3 },
	} {
		v := good
		breakIt(&v)
		if err := v.validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// checkStep holds two consecutive views against the invariant that everything else relies on.
func checkStep(cur, next View, p Proposal) error {
	switch {
	case next.Num != cur.Num+1:
		return fmt.Errorf("view %d follows %d", next.Num, cur.Num)
	case next.Tenure != cur.Tenure && next.Tenure != next.Num:
		return fmt.Errorf("tenure %d begins in view %d", next.Tenure, next.Num)
	case next.Tenure == cur.Tenure && next.Primary != cur.Primary:
		return fmt.Errorf("another primary in tenure %d", cur.Tenure)
	}
	same := next.Primary == cur.Primary && len(next.Backups) == len(cur.Backups)
	byOffice := p.From == cur.Primary && p.Tenure == cur.Tenure
	for _, r := range next.Members() {
		if !cur.Has(r) {
			same = false
			if cur.Num > 0 && p.Kind != KindForce && !(p.Kind == KindAdd && byOffice) {
				return fmt.Errorf("I2: replica %s was added by %q, %s", r, p.From, p.Kind)
			}
		}
	}
	switch {
	case same && p.Kind != KindResume:
		return fmt.Errorf("view %d repeats view %d", next.Num, cur.Num)
	case p.Kind == KindForce && next.DataLossGen != cur.DataLossGen+1, p.Kind != KindForce && next.DataLossGen != cur.DataLossGen:
		return fmt.Errorf("data loss %d after %d by %s", next.DataLossGen, cur.DataLossGen, p.Kind)
	case cur.Num > 0 && p.Kind != KindForce && !cur.Has(next.Primary):
		return fmt.Errorf("I2: primary %s was no member", next.Primary)
	}
	return nil
}

// randomProposal is one that would be accepted, most often, and then is bent a little, half the time.
func randomProposal(r *rand.Rand, v *volumeState) Proposal {
	kinds := []Kind{KindFirst, KindAdd, KindAdd, KindRemove, KindPromote, KindResume, KindHandover, KindForce}
	all := ids("r0", "r1", "r2", "r3")
	pick := func(from []ReplicaID) ReplicaID { return append(slices.Clone(from), "")[r.IntN(len(from)+1)] }
	cur := v.View
	p := Proposal{Volume: vol, Kind: kinds[r.IntN(len(kinds))], Expect: cur.Num, Primary: cur.Primary}
	some := func(from []ReplicaID, but ReplicaID) (out []ReplicaID) {
		for _, b := range from {
			if b != but && r.IntN(2) == 0 {
				out = append(out, b)
			}
		}
		return out
	}
	switch p.Kind {
	case KindAdd, KindRemove, KindHandover:
		p.From, p.Tenure = cur.Primary, cur.Tenure
	}
	switch p.Kind {
	case KindFirst:
		p.Primary = pick(all)
	case KindAdd:
		p.Backups = append(slices.Clone(cur.Backups), pick(all))
	case KindRemove, KindResume:
		p.Backups = some(cur.Backups, "")
	case KindPromote, KindHandover:
		p.Primary = pick(cur.Backups)
		p.Backups = some(cur.Members(), p.Primary)
	case KindForce:
		p.Primary = pick(all)
		p.Backups = some(cur.Members(), p.Primary)
	}
	switch r.IntN(12) {
	case 0:
		p.Expect += ViewNum(r.IntN(3)) - 1
	case 1:
		p.Tenure = ViewNum(r.IntN(int(cur.Num) + 1))
	case 2:
		p.From = pick(all)
	case 3:
		p.Primary = pick(all)
	case 4:
		p.Backups = append(p.Backups, pick(all))
	case 5:
		p.Backups = some(all, "")
	}
	return p
}

// TestNoProposalBreaksTheInvariants throws random proposals, most of them near misses, at the state, and replays
// each walk on a second state that goes through a snapshot in the middle.
func TestNoProposalBreaksTheInvariants(t *testing.T) {
	accepted := map[Kind]int{}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		s, twin := newVolume(t), newVolume(t)
		for step := range 200 {
			if r.IntN(20) == 0 { // a disk is swapped
				c := Command{Op: OpReplica, Volume: vol, Node: NodeInfo{ID: "n1"}, Replica: ids("r0", "r1")[r.IntN(2)]}
				mustApply(t, s, c)
				mustApply(t, twin, c)
			}
			cur := s.volumes[vol].View
			p := randomProposal(r, s.volumes[vol])
			res, err := s.Apply(viewCommand(p))
			res2, err2 := twin.Apply(viewCommand(p))
			if !cmp.Equal(res, res2) || fmt.Sprint(err) != fmt.Sprint(err2) {
				t.Fatalf("seed %d step %d: two servers disagree: %+v %v, %+v %v", seed, step, res, err, res2, err2)
			}
			if err != nil {
				continue
			}
			accepted[p.Kind]++
			if err := checkStep(cur, res.View, p); err != nil {
				t.Fatalf("seed %d step %d: %v\nfrom %+v\nby   %+v\nto   %+v", seed, step, err, cur, p, res.View)
			}
			if step%50 == 0 {
				b, err := twin.Encode()
				if err != nil {
					t.Fatal(err)
				}
				if twin, err = DecodeState(bytes.NewReader(b)); err != nil {
					t.Fatalf("seed %d step %d: %v", seed, step, err)
				}
			}
		}
		a, _ := s.Encode()
		b, _ := twin.Encode()
		if !bytes.Equal(a, b) {
			t.Fatalf("seed %d: the twin's state differs:\n%s\n%s", seed, a, b)
		}
	}
	t.Log(accepted)
	for _, k := range []Kind{KindFirst, KindAdd, KindRemove, KindPromote, KindResume, KindHandover, KindForce} {
		if accepted[k] < 50 {
			t.Errorf("%s was accepted %d times: the walk does not test it", k, accepted[k])
		}
	}
}

func TestHistoryIsBounded(t *testing.T) {
	s := inView(t)
	for n := ViewNum(2); n < MaxHistory+10; n++ {
		mustApply(t, s, viewCommand(Proposal{Volume: vol, Expect: n, Kind: KindResume, Primary: "r1"}))
	}
	h, err := s.Views("vol0")
	if err != nil || len(h) != MaxHistory || h[len(h)-1].View.Num != MaxHistory+10 {
		t.Fatalf("%d views, error %v", len(h), err)
	}
	if h[0].Nodes["r1"] != "n1" {
		t.Errorf("nodes %v", h[0].Nodes)
	}
}

// V10: a primary that was refused may rely on it that nothing it asked before is accepted later.
func TestEarlierTriesAreRefusedOnceALaterOneIsDecided(t *testing.T) {
	s := inView(t)
	add := Proposal{Volume: vol, Expect: 2, Tenure: 1, From: "r1", Kind: KindAdd, Primary: "r1", Backups: ids("r2", "r3"), Try: 1}
	nonsense := add
	nonsense.Backups, nonsense.Try = ids("r2"), 2
	apply := func(p Proposal) error {
		_, err := s.Apply(Command{Op: OpView, Proposal: &p})
		return err
	}
	if _, ok := errors.AsType[*RuleError](apply(nonsense)); !ok {
		t.Fatal("an addition of nobody was not refused")
	}
	if e, ok := errors.AsType[*RuleError](apply(add)); !ok || e.Rule != "V10" {
		t.Errorf("a question that came after a later one was refused: %v", e)
	}
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if s, err = DecodeState(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if e, ok := errors.AsType[*RuleError](apply(add)); !ok || e.Rule != "V10" {
		t.Errorf("the same after a snapshot: %v", e)
	}
	add.Try = 3
	if err := apply(add); err != nil {
		t.Errorf("the next question: %v", err)
	}
	if _, ok := errors.AsType[*ConflictError](apply(add)); !ok {
		t.Error("a repetition of what was accepted is no conflict")
	}
}
