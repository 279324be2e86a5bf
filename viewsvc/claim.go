package viewsvc

import (
	"encoding/json"
	"fmt"
	"time"
)

// Claim says who has a volume to itself, in the meaning of an exclusive attachment: a file system that is mounted
// twice by mistake is lost. It is part of the volume and goes to nodes and gateways with everything else about it; the
// primary is who enforces it, on sessions, so that it holds at one place whatever others have heard.
//
//	owner  held   meaning                                                      next
//	""     false  anybody may attach                                           asked
//	set    false  asked: nobody new may attach but the owner, who goes on      held, none (given up), asked by another (taken over)
//	              only if nobody else is attached now; earlier sessions
//	              may come back while the owner is not attached
//	set    true   held: nobody but the owner is attached                       none, asked by another (taken over)
//
// Era grows whenever clients are ended for good: all but the owner's when the claim becomes held or is taken over, the
// owner's when it gives a held claim up, and all when an operator detaches them. A session that began in an earlier era never
// comes back, also when the claim is gone: what its client knows of the disk may be wrong by then.
//
// Start tells the processes of one owner apart: it grows each time that the owner is asked for. The primary fences those
// of a lower one, and they can neither hold nor give up the claim.
type Claim struct {
	Num   uint64 `json:"num"` // grows with every change
	Era   uint64 `json:"era"`
	Owner string `json:"owner,omitempty"` // name of a session
	Start uint64 `json:"start,omitempty"` // Num when the owner's present process asked: its generation, which no clock gives
	Host  string `json:"host,omitempty"`  // where its process is, for people
	PID   int    `json:"pid,omitempty"`
	Since int64  `json:"since,omitempty"` // seconds since 1970, by the leader's clock
	Held  bool   `json:"held,omitempty"`
}

// String is the holder, for people.
func (c Claim) String() string {
	if c.Owner == "" {
		return "nobody"
	}
	return fmt.Sprintf("host %s, pid %d, since %s", c.Host, c.PID, time.Unix(c.Since, 0).UTC().Format(time.RFC3339))
}

// SessionEra is the era of a session that begins now, as it travels with the session, where 0 is that of a client that does not say.
func (c Claim) SessionEra() uint64 { return c.Era + 1 }

// Admits tells whether a session, of a SessionEra or 0, may attach as far as that goes, and whether a claim is in its way.
func (c Claim) Admits(session string, era uint64) (alive, free bool) {
	owner := c.Owner != "" && c.Owner == session
	return owner || era == 0 || era > c.Era, owner || c.Owner == ""
}

// ClaimAct says what a ClaimChange does. Its text is part of the log's format; never rename.
type ClaimAct string

// The acts.
const (
	ClaimAsk      ClaimAct = "ask"       // become the owner; refused while another is. The owner itself may ask again
	ClaimTakeOver ClaimAct = "take_over" // become the owner, whoever was; all other sessions end
	ClaimHold     ClaimAct = "hold"      // the owner is attached
	ClaimRelease  ClaimAct = "release"   // the owner gives it up
	ClaimEvict    ClaimAct = "evict"     // an operator ends all sessions, the owner's too
)

// ClaimChange is a request for another Claim.
type ClaimChange struct {
	Act   ClaimAct `json:"act"`
	Owner string   `json:"owner,omitempty"`
	Start uint64   `json:"start,omitempty"` // of hold and release: the Claim's, so that a former process does not speak for the next; 0 is any
	Host  string   `json:"host,omitempty"`
	PID   int      `json:"pid,omitempty"`
}

func (c ClaimChange) validate() error {
	if c.Owner == "" != (c.Act == ClaimEvict) || len(c.Owner) > maxNameBytes || len(c.Host) > maxNameBytes {
		return fmt.Errorf("%w: a claim needs an owner, and a host, of at most %d bytes", ErrInvalid, maxNameBytes)
	}
	return nil
}

// applyClaim changes who has a volume to itself.
func (s *State) applyClaim(c Command) (Result, error) {
	v, err := s.live(c.Volume)
	if err != nil {
		return Result{}, err
	}
	if c.Claim == nil {
		return Result{}, fmt.Errorf("%w: a claim is missing", ErrInvalid)
	}
	if err := c.Claim.validate(); err != nil {
		return Result{}, err
	}
	next, err := nextClaim(v.Volume, *c.Claim, c.Time)
	if err != nil {
		return Result{}, err
	}
	if next != v.Volume.Claim {
		next.Num++
		v.Volume.Claim = next
	}
	return Result{Volume: c.Volume, Claim: next}, nil
}

// nextClaim is the claim that a change asks for.
func nextClaim(v Volume, c ClaimChange, now time.Time) (Claim, error) {
	cur := v.Claim
	mine := Claim{Num: cur.Num, Era: cur.Era, Owner: c.Owner, Start: cur.Num + 1, Host: c.Host, PID: c.PID, Since: now.Unix()}
	switch c.Act {
	case ClaimAsk, ClaimTakeOver:
		switch {
		case cur.Owner == c.Owner: // its process was restarted, or it asks again after a lost answer
			mine.Held, mine.Since = cur.Held, cur.Since
		case c.Act == ClaimTakeOver:
			mine.Era++
		case cur.Owner != "":
			return cur, claimedError(v.Name, cur)
		}
		return mine, nil
	case ClaimHold:
		if !cur.by(c) {
			return cur, claimedError(v.Name, cur)
		}
		if !cur.Held {
			cur.Era, cur.Held = cur.Era+1, true
		}
		return cur, nil
	case ClaimRelease:
		if !cur.by(c) {
			return cur, nil // it was taken over; there is nothing to give up
		}
		if cur.Held {
			cur.Era++
		}
		return Claim{Num: cur.Num, Era: cur.Era}, nil
	case ClaimEvict:
		return Claim{Num: cur.Num, Era: cur.Era + 1}, nil
	}
	return cur, fmt.Errorf("%w: claim act %q is unknown", ErrInvalid, c.Act)
}

// by tells whether a change is asked for by the owner's present process.
func (c Claim) by(o ClaimChange) bool {
	return c.Owner == o.Owner && (o.Start == 0 || o.Start == c.Start)
}

func claimedError(volume string, c Claim) error {
	return fmt.Errorf("%w: volume %s is attached exclusively by %v; detach it there, or take it over with --take-over", ErrClaimed, volume, c)
}

// PlanClaim changes who has a volume to itself. Every replica keeps the claim, as JSON, in a place of limited size, where a
// byte can take six: names that do not fit are refused here, where none is in the log yet.
func (m *Monitor) PlanClaim(name string, c ClaimChange) (Command, error) {
	for _, s := range []string{c.Owner, c.Host} {
		if b, err := json.Marshal(s); err != nil || len(b) > maxNameBytes {
			return Command{}, fmt.Errorf("%w: a claim's owner and host have at most %d bytes as JSON; this one has %d", ErrInvalid, maxNameBytes, len(b))
		}
	}
	v, _, err := m.named(name)
	if err != nil {
		return Command{}, err
	}
	return Command{Op: OpClaim, Volume: v.Volume.ID, Claim: &c}, nil
}
