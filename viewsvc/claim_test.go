package viewsvc

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// claimed applies a change to the claim on the volume of newVolume.
func claimed(t *testing.T, s *State, c ClaimChange) (Claim, error) {
	t.Helper()
	r, err := s.Apply(Command{Op: OpClaim, Volume: vol, Time: time.Unix(1_000_000_000, 0), Claim: &c})
	return r.Claim, err
}

func TestOneOwnerAtATime(t *testing.T) {
	s := newVolume(t)
	ask := func(owner string) ClaimChange {
		return ClaimChange{Act: ClaimAsk, Owner: owner, Host: "h-" + owner, PID: 7}
	}
	first, err := claimed(t, s, ask("a"))
	if err != nil || first.Owner != "a" || first.Held || first.Era != 0 {
		t.Fatalf("%+v, %v", first, err)
	}
	if _, err = claimed(t, s, ask("b")); !errors.Is(err, ErrClaimed) {
		t.Fatalf("a second one: %v", err)
	}
	for _, want := range []string{"host h-a", "pid 7", "2001-09-09T01:46:40Z", "--take-over"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if _, err := claimed(t, s, ClaimChange{Act: ClaimHold, Owner: "b"}); !errors.Is(err, ErrClaimed) {
		t.Errorf("b holds what a owns: %v", err)
	}
	held, err := claimed(t, s, ClaimChange{Act: ClaimHold, Owner: "a"})
	if err != nil || !held.Held || held.Era != 1 {
		t.Fatalf("%+v, %v", held, err)
	}
	if again, err := claimed(t, s, ClaimChange{Act: ClaimHold, Owner: "a"}); err != nil || again != held {
		t.Errorf("asked again: %+v, %v", again, err)
	}
	// The owner's process was restarted.
	if back, err := claimed(t, s, ClaimChange{Act: ClaimAsk, Owner: "a", Host: "h-a", PID: 8}); err != nil || !back.Held || back.Era != 1 || back.PID != 8 {
		t.Errorf("%+v, %v", back, err)
	}
	over, err := claimed(t, s, ClaimChange{Act: ClaimTakeOver, Owner: "b", Host: "h-b"})
	if err != nil || over.Owner != "b" || over.Held || over.Era != 2 {
		t.Errorf("taken over: %+v, %v", over, err)
	}
	if same, err := claimed(t, s, ClaimChange{Act: ClaimRelease, Owner: "a"}); err != nil || same != over {
		t.Errorf("who was replaced gives up the other's claim: %+v, %v", same, err)
	}
	if none, err := claimed(t, s, ClaimChange{Act: ClaimRelease, Owner: "b"}); err != nil || none != (Claim{Num: 5, Era: 2}) {
		t.Errorf("released: %+v, %v", none, err)
	}
	if none, err := claimed(t, s, ClaimChange{Act: ClaimEvict}); err != nil || none != (Claim{Num: 6, Era: 3}) {
		t.Errorf("evicted: %+v, %v", none, err)
	}
}

// The later process wins, also when it looks the same as the one before (process 1 of a container), and when the leader's
// clock has gone back; the former one, which may wake up at any time, does not give up what is the other's.
func TestFormerProcessOfAnOwnerDoesNotSpeakForTheNext(t *testing.T) {
	s := newVolume(t)
	do := func(hour int64, act ClaimAct, start uint64) (Claim, error) {
		now := time.Unix(1_000_000_000+hour*3600, 0)
		r, err := s.Apply(Command{Op: OpClaim, Volume: vol, Time: now, Claim: &ClaimChange{Act: act, Owner: "a", Host: "h", PID: 1, Start: start}})
		return r.Claim, err
	}
	var starts []uint64
	for hour, act := range []ClaimAct{ClaimAsk, ClaimAsk, ClaimTakeOver} {
		c, err := do(-int64(hour), act, 0)
		if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, c.Start)
	}
	if !(0 < starts[0] && starts[0] < starts[1] && starts[1] < starts[2]) {
		t.Errorf("generations %d", starts)
	}
	if _, err := do(0, ClaimHold, starts[1]); !errors.Is(err, ErrClaimed) {
		t.Errorf("a former process holds the claim: %v", err)
	}
	if held, err := do(0, ClaimHold, starts[2]); err != nil || !held.Held || held.Start != starts[2] {
		t.Errorf("%+v, %v", held, err)
	}
	if c, err := do(0, ClaimRelease, starts[0]); err != nil || c.Owner != "a" {
		t.Errorf("a former process has given up the claim: %+v, %v", c, err)
	}
	if c, err := do(0, ClaimRelease, starts[2]); err != nil || c.Owner != "" {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := do(-9, ClaimAsk, 0); err != nil || c.Start <= starts[2] {
		t.Errorf("asked again when it was free: %+v, %v", c, err)
	}
}

// Whoever gave a volume up that he held, or had it given up for him, is not to come back beside its next user.
func TestOwnersSessionEndsWithItsClaim(t *testing.T) {
	s := newVolume(t)
	asked, err := claimed(t, s, ClaimChange{Act: ClaimAsk, Owner: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claimed(t, s, ClaimChange{Act: ClaimHold, Owner: "a", Start: asked.Start}); err != nil {
		t.Fatal(err)
	}
	asked, err = claimed(t, s, ClaimChange{Act: ClaimAsk, Owner: "a"}) // its process was restarted
	if err != nil || !asked.Held {
		t.Fatalf("%+v, %v", asked, err)
	}
	none, err := claimed(t, s, ClaimChange{Act: ClaimRelease, Owner: "a"})
	if err != nil || none.Owner != "" {
		t.Fatalf("%+v, %v", none, err)
	}
	if alive, _ := none.Admits("a", asked.SessionEra()); alive {
		t.Error("the owner's session may come back beside others")
	}
	if alive, free := none.Admits("b", none.SessionEra()); !alive || !free {
		t.Errorf("the next one: alive %v, free %v", alive, free)
	}
}

func TestSessionsOfAnEarlierEraNeverComeBack(t *testing.T) {
	c := Claim{Era: 3, Owner: "a", Held: true}
	for _, tc := range []struct {
		session     string
		era         uint64
		alive, free bool
	}{
		{"a", 3, true, true},
		{"b", 3, false, false},
		{"b", 4, true, false},
		{"", 0, true, false},
	} {
		if alive, free := c.Admits(tc.session, tc.era); alive != tc.alive || free != tc.free {
			t.Errorf("%q of era %d: alive %v, free %v", tc.session, tc.era, alive, free)
		}
	}
	if alive, free := (Claim{Era: 3}).Admits("a", 3); alive || !free {
		t.Errorf("its claim is gone: alive %v, free %v", alive, free)
	}
}

func TestClaimTravelsToNodesAndGateways(t *testing.T) {
	_, c, nodes, before := startCluster(t)
	claim, err := c.Claim(t.Context(), "vol0", ClaimChange{Act: ClaimAsk, Owner: "a", Host: "h", PID: 7})
	if err != nil || claim.Owner != "a" || claim.Since == 0 {
		t.Fatalf("%+v, %v", claim, err)
	}
	if _, err := c.Claim(t.Context(), "vol0", ClaimChange{Act: ClaimAsk, Owner: "b"}); !errors.Is(err, ErrClaimed) || !strings.Contains(err.Error(), "host h, pid 7") {
		t.Errorf("a second one: %v", err)
	}
	if _, err := c.Claim(t.Context(), "vol0", ClaimChange{Act: ClaimTakeOver, Owner: strings.Repeat("<", 60)}); !errors.Is(err, ErrInvalid) {
		t.Errorf("one that replicas have no room for: %v", err)
	}
	if s, err := c.Watch(t.Context(), "vol0", before.News); err != nil || s.Volume.Claim != claim {
		t.Errorf("a gateway hears %+v, %v", s.Volume.Claim, err)
	}
	for id, n := range nodes {
		eventually(t, string(id)+" hears of the claim", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.orders[before.Volume.ID].Volume.Claim == claim
		})
	}
}

// Whoever has a file system on it would lose that under his hands.
func TestVolumeThatIsAttachedExclusivelyIsNotDeleted(t *testing.T) {
	r := pair(t)
	if _, err := claimed(t, r.s, ClaimChange{Act: ClaimAsk, Owner: "a", Host: "h-a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.PlanDelete("vol0"); !errors.Is(err, ErrClaimed) || !strings.Contains(err.Error(), "host h-a") {
		t.Errorf("deleted: %v", err)
	}
	if _, err := claimed(t, r.s, ClaimChange{Act: ClaimEvict}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.PlanDelete("vol0"); err != nil {
		t.Errorf("when it is free: %v", err)
	}
}
