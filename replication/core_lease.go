package replication

import (
	"math"
	"time"

	"lockstep/viewsvc"
)

// A lease lets an open primary answer reads without asking anybody. It is made of grants, one from every other member
// of R: a peer that grants promises to open no tenure of its own before the grant is over. So while all grants run there
// is no other open primary, wherever a view may name one, and what this one has committed is all that was acknowledged.
//
// Grants are asked for by reads and by nothing else: a volume that is only written to has none, and its failover waits
// for none. Each counts from when it was asked for at the primary, and from when it was asked for at the peer, which is
// later; the difference between its length and what the primary makes of it (leaseOf) is for clocks that differ in rate.

// Instant is a reading of a replica's clock, in nanoseconds from some moment of its own. The clock goes on while the
// machine sleeps, and the process cannot set it. 0 is no reading.
type Instant int64

func (t Instant) add(d time.Duration) Instant { return t + Instant(d) }

// Limits of grants. A long grant lengthens every failover under reads, a short one lapses when an answer is late; a
// lapsed lease costs a confirmation, never an error. So the length follows how late answers are, between these.
const (
	grantMin   = 15 * time.Millisecond
	grantMax   = 300 * time.Millisecond // more is not granted, and a restarted replica waits so long before it opens
	grantTrips = 3                      // late answers in a grant
	lateMin    = grantMin / grantTrips
	renewShare = 6 // a grant is renewed by the first read after this part of it
	asksKept   = 8 // requests for grants whose answers are measured: more than are made while a lease runs
)

// leaseOf is how long a primary relies on a grant of length g, from when it asked: one clock may be a fifth slower than
// the other. Nothing else needs a margin: each side reads its clock on the safe side of the message between them.
func leaseOf(g time.Duration) time.Duration { return g * 8 / 10 }

// given is a replica's promise as a peer.
type given struct {
	to    viewsvc.ReplicaID // "": not known any more, the process that gave it is gone
	until Instant           // own clock
}

// lease is what a primary knows of the grants that it asked for.
type lease struct {
	asks   [asksKept]ask // its last requests, in turn
	turn   int           // of the next
	latest Instant       // until when it relies on a grant at most: one until later was never asked for
	late   time.Duration // how long the members' answers take, the later ones; 0: nothing was measured
	ended  Instant       // grants until then were given back
	back   uint64        // nonce of the Confirm that gives them back; 0: they are not given back
}

// ask is a request for grants: when it was made, and until when they would be relied on.
type ask struct{ at, until Instant }

// asked is when grants were asked for last; 0 if they never were.
func (l *lease) asked() Instant { return l.asks[(l.turn+asksKept-1)%asksKept].at }

// since is when the first of the requests was made that a grant answers; the one before was until last. 0: it is not known.
func (l *lease) since(last, until Instant) Instant {
	for i := range asksKept {
		if a := l.asks[(l.turn+i)%asksKept]; a.until > last && a.until <= until {
			return a.at
		}
	}
	return 0
}

// length is how long a grant to ask for.
func (l *lease) length() time.Duration { return min(max(grantTrips*l.late, grantMin), grantMax) }

// measure takes in how long an answer took. One that was very late is an accident: it doubles the next grants at most,
// and is soon forgotten. Where answers are often late, a few make the grants as long as that takes.
func (l *lease) measure(took time.Duration) {
	late := max(l.late, lateMin)
	l.late = max(min(took, 2*late), late-late/8)
}

// Grant promises the primary of this tenure, whose request was just received, not to open a tenure of its own for so
// long. It is false if nothing was promised. now is read after the request arrived.
func (c *Core) Grant(from viewsvc.ReplicaID, num viewsvc.ViewNum, length time.Duration, now Instant) bool {
	c.pass(now)
	if !c.cfg.Leases || now == 0 || length <= 0 || length > grantMax || !c.Accepts(from, num) {
		return false
	}
	// The older grants that this one replaces are over: only an open primary asks, and it opened after they were.
	c.given = given{to: from, until: max(c.given.until, now.add(length))}
	return true
}

// GrantReturned hears that the primary of this tenure will not rely on what it was granted so far.
func (c *Core) GrantReturned(from viewsvc.ReplicaID, num viewsvc.ViewNum) {
	if c.Accepts(from, num) {
		c.given = given{}
	}
}

// promised tells whether a promise keeps this replica from opening now. The driver is asked for a Wake at its end.
func (c *Core) promised() bool {
	if c.now >= c.given.until {
		return false
	}
	if c.wakeAt != c.given.until {
		c.wakeAt = c.given.until
		c.emit(Effect{Kind: EffectWake, Until: c.wakeAt})
	}
	return true
}

// Wake tells the time.
func (c *Core) Wake(now Instant) {
	c.pass(now)
	c.progress()
}

// pass notes the time. Events may come late: the newest reading counts.
func (c *Core) pass(now Instant) { c.now = max(c.now, now) }

// leased is until when all of R∖self have promised not to open. The primary is not alone.
func (c *Core) leased() Instant {
	until := Instant(math.MaxInt64)
	for _, p := range c.peers {
		if p.required {
			until = min(until, p.lease)
		}
	}
	return until
}

// mayAsk tells whether a question to the peers may also ask for grants.
func (c *Core) mayAsk() bool {
	return c.cfg.Leases && c.state == StateOpen && c.lease.back == 0 && c.now != 0
}

// question is a Confirm to all peers. One on behalf of reads asks for grants as well.
func (c *Core) question(forReads bool) {
	e := Effect{Kind: EffectConfirm, Nonce: c.nonce}
	if l := &c.lease; forReads && c.mayAsk() {
		e.Grant = l.length()
		e.Until = c.now.add(leaseOf(e.Grant))
		l.latest = max(l.latest, e.Until)
		l.asks[l.turn] = ask{c.now, e.Until}
		l.turn = (l.turn + 1) % asksKept
	}
	c.emit(e)
}

// renew asks for new grants, early enough that the present ones need not lapse.
func (c *Core) renew() {
	if c.mayAsk() && c.now >= c.lease.asked().add(c.lease.length()/renewShare) {
		c.question(true)
	}
}

// granted takes a peer's promise, which the primary relies on until then.
func (c *Core) granted(p *peer, until Instant) {
	l := &c.lease
	if at := l.since(p.lease, until); at != 0 && p.required {
		l.measure(time.Duration(c.now - at))
	}
	if until > l.ended {
		p.lease = max(p.lease, until)
	}
}

// returnLease gives all grants back, before a handover: the successor then need not wait for the end of its own. It is
// true once the successor knows.
func (c *Core) returnLease(successor *peer) bool {
	l := &c.lease
	if l.back == 0 && l.ended == l.latest {
		return true // there are none
	}
	if l.back == 0 {
		for _, p := range c.peers {
			p.lease = 0
		}
		c.nonce++
		l.back, l.ended = c.nonce, l.latest
		c.question(false)
	}
	return successor.confirmed >= l.back
}

// LeaseReturned tells whether each Confirm is to say that the primary does not rely on its grants any more.
func (c *Core) LeaseReturned() bool { return c.lease.back != 0 }
