package replication

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"lockstep/viewsvc"
	"lockstep/wal"
)

// The random walk (walk_test.go) shows that the rules hold together; these tests pin down single ones that it meets too
// rarely to be sure of.

func testView(num, tenure viewsvc.ViewNum, primary viewsvc.ReplicaID, backups ...viewsvc.ReplicaID) viewsvc.View {
	return viewsvc.View{Volume: "v", Num: num, Tenure: tenure, Primary: primary, Backups: backups}
}

// openPrimary is a core of replica a that took office in v and opened, all of its backups being at its log's end.
func openPrimary(t *testing.T, v viewsvc.View) *Core {
	t.Helper()
	c := NewCore(Config{Self: "a", Volume: "v", Leases: true}, Start{})
	c.Observe(v)
	c.TenureBegun(v.Tenure, 1)
	c.Durable(1)
	for i, b := range v.Backups {
		c.PeerUp(b, uint64(i+1), false)
		mustAck(t, c, Ack{From: b, Stream: uint64(i + 1), View: v.Num, Tenure: v.Tenure, Written: 1, Durable: 1})
	}
	if c.State() != StateOpen {
		t.Fatalf("state %v after everybody has the VIEW record", c.State())
	}
	c.Effects()
	return c
}

func mustAck(t *testing.T, c *Core, a Ack) {
	t.Helper()
	if err := c.Acked(a); err != nil {
		t.Fatal(err)
	}
}

// has tells whether the core wants an effect.
func has(c *Core, k EffectKind) bool {
	for _, e := range c.Effects() {
		if e.Kind == k {
			return true
		}
	}
	return false
}

func TestAckOfAnotherTenureDoesNotCount(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.Durable(5)
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 2, Tenure: 2, Written: 5, Durable: 5})
	if c.Commit() != 1 {
		t.Errorf("a backup that has left for tenure 2 moved commit to %d", c.Commit())
	}
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 2, Tenure: 1, Written: 5, Durable: 5})
	if c.Commit() != 5 {
		t.Errorf("a backup that heard of view 2 of the same tenure first does not count: commit %d", c.Commit())
	}
}

// In sync mode flush. A replica that has not stored the view that made it a member does not know, after a crash of its
// machine, that it may lack what it had only written.
func TestWrittenCountsOnceThePeerHasStoredTheView(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a"))
	c.SetSync(viewsvc.SyncFlush)
	c.Recruits([]viewsvc.ReplicaID{"b"})
	c.PeerUp("b", 1, false)
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 1, Durable: 1})
	c.Tick(0)
	c.Durable(5)
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 5, Durable: 1})
	c.Observe(testView(2, 1, "a", "b"))
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 5, Durable: 1})
	if c.Commit() != 1 {
		t.Errorf("commit %d, on the word of a member that does not know that it is one", c.Commit())
	}
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 2, Tenure: 1, Written: 5, Durable: 1})
	if c.Commit() != 5 {
		t.Errorf("commit %d after it has stored the view", c.Commit())
	}
}

func TestNothingIsCarriedIntoANewTenure(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.Durable(5)
	// b was primary of view 2, which this replica never heard of, and may have cut its log since.
	c.Observe(testView(3, 3, "a", "b"))
	if !has(c, EffectStepDown) || c.State() != StateOpening {
		t.Fatalf("state %v: the sessions of tenure 1 went on", c.State())
	}
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 3, Tenure: 3, Written: 5, Durable: 5})
	c.TenureBegun(3, 6)
	c.Durable(6)
	if c.Commit() != 1 {
		t.Errorf("an ack of tenure 1's stream moved commit to %d", c.Commit())
	}
}

func TestNothingIsCommittedBeforeTheViewRecordHasItsPlace(t *testing.T) {
	// The stream of the former primary may be about to cut what this replica holds.
	c := NewCore(Config{Self: "a", Volume: "v"}, Start{View: testView(1, 1, "b", "a"), End: 7, Commit: 3})
	c.Observe(testView(2, 2, "a"))
	c.Durable(7)
	if c.Commit() != 3 {
		t.Fatalf("commit %d before the VIEW record has an LSN", c.Commit())
	}
	c.CutTo(3)
	c.TenureBegun(2, 4)
	c.Durable(4)
	c.Wake(Instant(grantMax)) // it restarted, and may have promised something before
	if c.Commit() != 4 || c.State() != StateOpen {
		t.Errorf("commit %d, state %v", c.Commit(), c.State())
	}
}

func TestRemovalNeverNamesALearner(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.Recruits([]viewsvc.ReplicaID{"c"})
	c.PeerUp("c", 9, false)
	mustAck(t, c, Ack{From: "c", Stream: 9, View: 1, Tenure: 1})
	c.Durable(2) // c is close, but lacks what b has
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 2, Durable: 2})
	c.Tick(0)
	if !c.Joining() {
		t.Fatal("the learner does not join")
	}
	c.PeerDown("b", 1, true)
	c.Effects()
	c.Tick(0)
	for _, e := range c.Effects() {
		if e.Kind == EffectPropose {
			if e.Proposal.Kind != viewsvc.KindRemove || len(e.Proposal.Backups) != 0 {
				t.Errorf("asked to %s with backups %v", e.Proposal.Kind, e.Proposal.Backups)
			}
			return
		}
	}
	t.Error("the dead backup is not proposed for removal while a learner joins")
}

func TestDroppedPeerLosesItsStream(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a"))
	c.Recruits([]viewsvc.ReplicaID{"c"})
	c.PeerUp("c", 9, false)
	mustAck(t, c, Ack{From: "c", Stream: 9, View: 1, Tenure: 1, Written: 1, Durable: 1})
	c.Tick(0)
	if c.proposal == nil {
		t.Fatal("the learner is not proposed")
	}
	c.Recruits(nil)
	c.Effects()
	c.ProposalRefused(c.proposal)
	if len(c.Targets()) != 0 || !has(c, EffectTargets) {
		t.Error("the stream to a learner that nobody wants any more stays")
	}
}

func TestReadIsConfirmedByAllOfRInThePresentView(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b", "c"))
	ticket, now := c.ReadTicket(0)
	if now {
		t.Fatal("a primary with backups answers a read by itself")
	}
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 1, Durable: 1, Nonce: ticket})
	mustAck(t, c, Ack{From: "c", Stream: 2, View: 2, Tenure: 1, Written: 1, Durable: 1, Nonce: ticket})
	if has(c, EffectReads) {
		t.Error("a confirmation of another view counts")
	}
	mustAck(t, c, Ack{From: "c", Stream: 2, View: 1, Tenure: 1, Written: 1, Durable: 1, Nonce: ticket})
	if !has(c, EffectReads) {
		t.Error("the read is not answered after all have confirmed")
	}
}

func TestImpossibleAckEndsTheStream(t *testing.T) {
	for name, a := range map[string]Ack{
		"goes back":               {Written: 0, Durable: 0},
		"durable beyond written":  {Written: 3, Durable: 4},
		"a nonce that nobody had": {Written: 3, Durable: 3, Nonce: 99},
	} {
		c := openPrimary(t, testView(1, 1, "a", "b"))
		a.From, a.Stream, a.View, a.Tenure = "b", 1, 1, 1
		if c.Acked(a) == nil {
			t.Errorf("an ack that %s is taken", name)
		}
	}
}

func TestGreetingAloneIsNoSignOfLife(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	for i := range wal.LSN(peerDeadTicks + 2) {
		c.PeerUp("b", uint64(10+i), false) // it greets, and fails
		c.Tick(0)
	}
	if c.proposal == nil || c.proposal.Kind != viewsvc.KindRemove {
		t.Error("a member that greets and never answers is waited for for ever")
	}
}

func TestAnswerToAnEarlierTryDoesNotShrinkR(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a"))
	c.Recruits([]viewsvc.ReplicaID{"b"})
	c.PeerUp("b", 1, false)
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 1, Durable: 1})
	c.Tick(0)
	first := c.proposal
	c.ProposalLost(first) // it may be on its way still
	for range retryTicks + 1 {
		c.Tick(0)
	}
	second := c.proposal
	if second.Try <= first.Try {
		t.Fatalf("try %d after try %d", second.Try, first.Try)
	}
	c.Recruits(nil)
	c.ProposalRefused(first)
	c.Durable(2)
	if c.Commit() == 2 {
		t.Error("committed without a replica that may be a member by now (I8)")
	}
	c.ProposalRefused(second) // and with it, by V10, the first
	if c.Commit() != 2 {
		t.Error("a learner that cannot be a member any more is waited for")
	}
}

// A few large writes hold commit up for as long as many small ones do.
func TestLearnerThatLacksManyBytesDoesNotJoinYet(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a"))
	c.Recruits([]viewsvc.ReplicaID{"b"})
	c.PeerUp("b", 1, false)
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 1, Durable: 1})
	c.Lacks("b", joinLag+1)
	c.Tick(0)
	if c.Required("b") {
		t.Error("commit waits for a learner that lacks more than 4 MiB of the log")
	}
	c.Lacks("b", joinLag)
	c.Tick(0)
	if !c.Required("b") {
		t.Error("it lacks little and does not join")
	}
}

// The table of roles in doc.go is what setState asserts.
func TestRolesAreAsDocumented(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "//\trole ")
	table, _, _ = strings.Cut(table, "//\n")
	documented := map[string][]string{}
	for _, row := range strings.Split(table, "\n//\t")[1:] {
		cells := regexp.MustCompile(`  +`).Split(strings.TrimSpace(row), 3)
		if len(cells) != 3 {
			t.Fatalf("row %q", row)
		}
		next := regexp.MustCompile(`\s*\([^)]*\)`).ReplaceAllString(cells[2], "")
		documented[cells[0]] = strings.FieldsFunc(next, func(r rune) bool { return r == ',' || r == ' ' })
	}
	name := func(s State) string {
		if s == StateOpen {
			return "open"
		}
		return s.String()
	}
	for s := StateLearner; s <= StatePoisoned; s++ {
		want := documented[name(s)]
		var got []string
		for _, n := range nextStates[s] {
			if n != StatePoisoned {
				got = append(got, name(n))
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: next are %v, documented %v", name(s), got, want)
		}
	}
}

// What a suspect lacks is not lost before an operator says so: a VIEW record of its tenure would have the others cut it.
func TestHeldPrimaryBeginsItsTenureWhenResumed(t *testing.T) {
	v := testView(2, 2, "a", "b")
	c := NewCore(Config{Self: "a", Volume: "v"}, Start{View: testView(1, 1, "b", "a"), End: 5, Commit: 3, Suspect: true})
	c.Observe(v)
	if c.State() != StateHeld || has(c, EffectBeginTenure) || len(c.Targets()) > 0 {
		t.Fatalf("%v, streams to %v; it has to be held and to send nothing", c.State(), c.Targets())
	}
	for range 2 * peerDeadTicks {
		c.Tick(0)
	}
	if c.proposal != nil {
		t.Errorf("proposes %v", c.proposal)
	}
	c.Resume()
	if c.Suspect() || c.State() != StateOpening || !has(c, EffectBeginTenure) || !slices.Equal(c.Targets(), []viewsvc.ReplicaID{"b"}) {
		t.Errorf("resumed, suspect %v, %v, streams to %v", c.Suspect(), c.State(), c.Targets())
	}
}

// Seen to fail: a handover that looks at the successor's log alone.
func TestHandoverWaitsUntilTheSuccessorIsNoSuspect(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.PeerUp("b", 2, false) // its machine went down, and is back
	if err := c.Handover("b"); err != nil {
		t.Fatal(err)
	}
	mustAck(t, c, Ack{From: "b", Stream: 2, View: 1, Tenure: 1, Written: 1, Durable: 1, Suspect: true})
	if c.proposal != nil {
		t.Fatal("it would be held")
	}
	mustAck(t, c, Ack{From: "b", Stream: 2, View: 1, Tenure: 1, Written: 1, Durable: 1})
	if c.proposal == nil || c.proposal.Kind != viewsvc.KindHandover {
		t.Error("it has everything, and knows it")
	}
}

// The view service tells everybody at the same time, and not everybody hears of it at the same time.
func TestBackupThatHeardOfTheNextViewFirstKeepsItsStream(t *testing.T) {
	c := NewCore(Config{Self: "b", Volume: "v"}, Start{})
	before := testView(1, 1, "a", "b", "c")
	c.Observe(before)
	c.Observe(testView(2, 1, "a", "b"))
	if !c.Accepts("a", 1) || !c.Hello("a", before) {
		t.Error("it leaves a primary that has yet to hear of the next view of its tenure")
	}
	c.Observe(testView(3, 3, "c", "b"))
	if c.Accepts("a", 2) || c.Accepts("c", 2) {
		t.Error("it takes a message of another tenure")
	}
}

// A replica whose directory was put back does not know that it held office in this view already. Seen to fail with a Core that
// does not look at the floor.
func TestReplicaBelowTheFloorDoesNotTakeOffice(t *testing.T) {
	for _, tc := range []struct {
		floor viewsvc.Floor
		want  State
	}{
		{viewsvc.Floor{}, StateOpening},
		{viewsvc.Floor{Tenure: 2, LSN: 10}, StateOpening},
		{viewsvc.Floor{Tenure: 2, LSN: 11}, StateRecovering},
		{viewsvc.Floor{Tenure: 3, LSN: 10}, StateRecovering},
	} {
		c := NewCore(Config{Self: "a", Volume: "v"}, Start{View: testView(2, 2, "b", "a"), End: 10, Commit: 5})
		c.SetFloor(tc.floor)
		c.Observe(testView(3, 3, "a", "b"))
		if c.State() != tc.want {
			t.Errorf("floor %+v: %v, want %v", tc.floor, c.State(), tc.want)
		}
	}
}
