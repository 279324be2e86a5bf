package replication

import (
	"slices"
	"testing"
	"time"

	"lockstep/viewsvc"
)

// leasedPrimary is an open primary whose backups have granted what its first read asked for, at 1 s on its clock.
func leasedPrimary(t *testing.T, v viewsvc.View) (c *Core, until Instant) {
	t.Helper()
	c = openPrimary(t, v)
	nonce, _ := c.ReadTicket(Instant(time.Second))
	asked := asks(c)
	if asked == 0 {
		t.Fatal("a read asks for no grant")
	}
	for i, b := range v.Backups {
		mustAck(t, c, Ack{From: b, Stream: uint64(i + 1), View: v.Num, Tenure: v.Tenure, Written: 1, Durable: 1, Nonce: nonce,
			Lease: asked, At: Instant(time.Second + time.Millisecond)})
	}
	c.Effects()
	return c, asked
}

// asks is until when the core wants to rely on the grant that it asks for, 0 if it asks for none.
func asks(c *Core) (until Instant) {
	for _, e := range c.Effects() {
		if e.Kind == EffectConfirm {
			until = max(until, e.Until)
		}
	}
	return until
}

func TestReadUnderALeaseAsksNobody(t *testing.T) {
	c, until := leasedPrimary(t, testView(1, 1, "a", "b", "c"))
	if _, ok := c.ReadTicket(until - 1); !ok {
		t.Error("a read is not answered though the lease runs")
	}
	if asks(c) == 0 {
		t.Error("a read near the end of the lease does not renew it")
	}
	if _, ok := c.ReadTicket(until); ok {
		t.Error("a read is answered by itself at the lease's end")
	}
	if !has(c, EffectConfirm) {
		t.Error("a lapsed lease does not make a read ask for confirmation")
	}
}

func TestLeaseNeedsTheGrantOfEachMember(t *testing.T) {
	v := testView(1, 1, "a", "b", "c")
	c := openPrimary(t, v)
	nonce, _ := c.ReadTicket(Instant(time.Second))
	asked := asks(c)
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 1, Durable: 1, Nonce: nonce, Lease: asked, At: asked / 2})
	mustAck(t, c, Ack{From: "c", Stream: 2, View: 1, Tenure: 1, Written: 1, Durable: 1, Nonce: nonce}) // not a word of a grant
	if _, ok := c.ReadTicket(Instant(time.Second + 1)); ok {
		t.Error("one of two backups granted, and the read is answered")
	}
}

func TestGrantThatNobodyAskedForEndsTheStream(t *testing.T) {
	c, until := leasedPrimary(t, testView(1, 1, "a", "b"))
	if c.Acked(Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 1, Durable: 1, Lease: until + 1}) == nil {
		t.Error("it is taken")
	}
}

func TestNoClockNoLease(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.cfg.Leases = false
	c.ReadTicket(Instant(time.Second))
	if asks(c) != 0 {
		t.Error("a replica whose clock cannot be trusted asks for grants")
	}
	b := NewCore(Config{Self: "b", Volume: "v"}, Start{View: testView(1, 1, "a", "b")})
	if b.Grant("a", 1, grantMin, Instant(time.Second)) {
		t.Error("a replica whose clock cannot be trusted grants")
	}
}

// promisedBackup is replica b, which promised primary a at 1 s to keep from opening for grantMin.
func promisedBackup(t *testing.T) *Core {
	t.Helper()
	b := NewCore(Config{Self: "b", Volume: "v", Leases: true}, Start{Now: 1})
	b.Observe(testView(1, 1, "a", "b"))
	if !b.Grant("a", 1, grantMin, Instant(time.Second)) {
		t.Fatal("no grant")
	}
	return b
}

// takeOffice makes a core primary of view 2 and gives its VIEW record all it needs.
func takeOffice(c *Core, backups ...viewsvc.ReplicaID) {
	c.Observe(testView(2, 2, c.cfg.Self, backups...))
	c.TenureBegun(2, 1)
	c.Durable(1)
}

func TestNewPrimaryWaitsOutItsPromise(t *testing.T) {
	b := promisedBackup(t)
	takeOffice(b)
	end := Instant(time.Second + grantMin)
	wake := Instant(0)
	for _, e := range b.Effects() {
		if e.Kind == EffectWake {
			wake = e.Until
		}
	}
	if wake != end {
		t.Errorf("it wants to be woken at %d, its promise ends at %d", wake, end)
	}
	b.Wake(end - 1)
	if b.State() != StateOpening {
		t.Fatalf("state %v before the promise is over", b.State())
	}
	b.Wake(end)
	if b.State() != StateOpen {
		t.Errorf("state %v when the promise is over", b.State())
	}
}

func TestFormerPrimarysAnswerEndsThePromiseToIt(t *testing.T) {
	b := promisedBackup(t)
	takeOffice(b, "a")
	b.PeerUp("a", 1, false)
	mustAck(t, b, Ack{From: "a", Stream: 1, View: 2, Tenure: 2, Written: 1, Durable: 1})
	if b.State() != StateOpen {
		t.Errorf("state %v after the former primary has answered in the new tenure", b.State())
	}
}

func TestRestartedReplicaOpensOnlyAfterTheLongestGrant(t *testing.T) {
	b := NewCore(Config{Self: "b", Volume: "v"}, Start{View: testView(1, 1, "a", "b"), Now: 1})
	takeOffice(b, "a")
	b.PeerUp("a", 1, false)
	// The former process may have promised something to somebody else than the primary that is known.
	mustAck(t, b, Ack{From: "a", Stream: 1, View: 2, Tenure: 2, Written: 1, Durable: 1})
	b.Wake(Instant(grantMax))
	if b.State() != StateOpening {
		t.Fatalf("state %v too early", b.State())
	}
	b.Wake(1 + Instant(grantMax))
	if b.State() != StateOpen {
		t.Errorf("state %v", b.State())
	}
}

func TestBlankReplicaHasPromisedNothing(t *testing.T) {
	c := NewCore(Config{Self: "a", Volume: "v", Leases: true}, Start{Now: Instant(time.Second)})
	takeOffice(c)
	if c.State() != StateOpen {
		t.Errorf("the first primary of a volume is %v", c.State())
	}
}

func TestHandoverReturnsTheGrantsFirst(t *testing.T) {
	c, until := leasedPrimary(t, testView(1, 1, "a", "b"))
	if err := c.Handover("b"); err != nil {
		t.Fatal(err)
	}
	for _, e := range c.Effects() {
		if e.Kind == EffectPropose {
			t.Fatal("the successor is proposed while it is bound by its promise")
		}
	}
	if !c.LeaseReturned() {
		t.Fatal("the grants are not returned")
	}
	if _, ok := c.ReadTicket(Instant(time.Second + 2*time.Millisecond)); ok {
		t.Error("a read is answered under a lease that was returned")
	}
	c.Effects()
	// The answer repeats the newest grant that there was.
	mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 1, Durable: 1, Nonce: c.nonce, Lease: until})
	if !has(c, EffectPropose) {
		t.Error("the successor is not proposed after it has heard")
	}
	if _, ok := c.ReadTicket(Instant(time.Second + 3*time.Millisecond)); ok {
		t.Error("an old grant, repeated, makes a new lease")
	}
}

func TestReturnedGrantLetsTheSuccessorOpenAtOnce(t *testing.T) {
	b := promisedBackup(t)
	b.GrantReturned("a", 1)
	takeOffice(b)
	if b.State() != StateOpen {
		t.Errorf("state %v", b.State())
	}
}

// grants is how long the grants are that a primary asks for when its members' answers take so long, one after the other.
func grants(t *testing.T, answers []time.Duration) (lengths []time.Duration) {
	t.Helper()
	c := openPrimary(t, testView(1, 1, "a", "b"))
	now := Instant(time.Second)
	for _, took := range answers {
		now = now.add(time.Second) // what was granted before is over
		nonce, _ := c.ReadTicket(now)
		var asked Effect
		for _, e := range c.Effects() {
			if e.Kind == EffectConfirm && e.Grant > 0 {
				asked = e
			}
		}
		lengths = append(lengths, asked.Grant)
		now = now.add(took)
		mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 1, Durable: 1, Nonce: nonce, Lease: asked.Until, At: now})
		c.Effects()
	}
	return lengths
}

func TestGrantsFollowLateAnswersAndNotASingleOne(t *testing.T) {
	const usual, late = time.Millisecond, 80 * time.Millisecond
	answers := slices.Repeat([]time.Duration{usual}, 60)
	answers[20] = late // alone
	for i := 40; i < 50; i++ {
		answers[i] = late
	}
	got := grants(t, answers)
	if got[20] != grantMin || got[21] != 2*grantMin || got[30] != grantMin {
		t.Errorf("grants of %v before a late answer, %v after it, %v nine answers later; want %v, %v, %[1]v", got[20], got[21], got[30], grantMin, 2*grantMin)
	}
	if g := got[48]; leaseOf(g) < 2*late {
		t.Errorf("when answers take %v the grants are of %v: the lease lapses before it is renewed", late, g)
	}
	if got := grants(t, slices.Repeat([]time.Duration{time.Second}, 9)); got[8] != grantMax {
		t.Errorf("a grant of %v, more than %v is not given", got[8], grantMax)
	}
}

// Reads ask again while answers are under way, and it is the first request without an answer that has waited.
func TestAnswersAreMeasuredFromTheFirstRequestThatTheyAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		answered int // of five requests, 3 ms apart
		want     time.Duration
	}{
		"all at once":         {5, 12*time.Millisecond + time.Microsecond},
		"while others follow": {1, 12*time.Millisecond + time.Microsecond},
		"two behind":          {3, 12*time.Millisecond + time.Microsecond},
	} {
		l := lease{late: 10 * time.Millisecond}
		now := Instant(time.Second)
		var until [5]Instant
		for i := range until {
			until[i] = now.add(leaseOf(grantMin))
			l.asks[l.turn] = ask{now, until[i]}
			l.turn = (l.turn + 1) % asksKept
			now = now.add(3 * time.Millisecond)
		}
		now = now.add(-3*time.Millisecond + time.Microsecond)
		core := &Core{now: now, lease: l}
		p := &peer{required: true}
		core.granted(p, until[c.answered-1])
		if core.lease.late != c.want {
			t.Errorf("%s: measured %v, want %v", name, core.lease.late, c.want)
		}
		if c.answered < len(until) { // the next answer is to the request behind
			core.lease.late = 0
			core.granted(p, until[c.answered])
			if want := time.Duration(now - until[c.answered].add(-leaseOf(grantMin))); core.lease.late != max(want, lateMin-lateMin/8) {
				t.Errorf("%s: the next answer was measured as %v, want %v", name, core.lease.late, want)
			}
		}
	}
}

// A learner answers when it has taken what lies before the question, seconds later perhaps. Nothing depends on its grant.
func TestLearnersAnswersDoNotStretchGrants(t *testing.T) {
	c := openPrimary(t, testView(1, 1, "a", "b"))
	c.Recruits([]viewsvc.ReplicaID{"l"})
	c.PeerUp("l", 7, true)
	now := Instant(time.Second)
	for range 20 {
		now = now.add(time.Second)
		nonce, _ := c.ReadTicket(now)
		until := asks(c)
		mustAck(t, c, Ack{From: "b", Stream: 1, View: 1, Tenure: 1, Written: 1, Durable: 1, Nonce: nonce, Lease: until, At: now.add(time.Millisecond)})
		mustAck(t, c, Ack{From: "l", Stream: 7, View: 1, Tenure: 1, Nonce: nonce, Lease: until, At: now.add(500 * time.Millisecond)})
	}
	if got := c.lease.length(); got != grantMin {
		t.Errorf("grants of %v, want %v", got, grantMin)
	}
}
