package replication

import (
	"fmt"
	"slices"

	"lockstep/viewsvc"
	"lockstep/wal"
)

// peer is what a primary knows of another replica. All of it dies with the tenure.
type peer struct {
	id       viewsvc.ReplicaID
	required bool // in R
	stream   uint64
	up       bool
	refused  bool // its node refuses connections: no process listens there
	silent   int  // ticks since it was last heard of

	// Invariant: the peer's log equals ours up to written, and is on its stable storage up to durable.
	written, durable wal.LSN
	confirmed        uint64  // largest nonce that it echoed in our present view
	copied           bool    // a learner that needs no more regions
	owed             wal.LSN // was stable here at some tick
	behind           int     // ticks for which it has lacked that
	lacks            uint64  // blocks of the log that it has not written, as far as the driver told
	suspect          bool    // it would not open: its machine went down, and it has yet to get what it may have lost
	lease            Instant // it opens no tenure of its own before; own clock
}

// require makes R from the view. Invariant (I8): R has every member of any view that the service may hold for this
// tenure. The service can hold this view, or the one that we asked for since; propose adds that one's learner.
func (c *Core) require() {
	for _, r := range c.view.Members() {
		if r != c.cfg.Self {
			c.peerOf(r).required = true
		}
	}
	for _, p := range c.peers {
		p.required = c.view.Has(p.id)
	}
	c.dropPeers()
}

// dropPeers forgets the peers that are neither in R nor to be recruited. EffectTargets has to follow.
func (c *Core) dropPeers() {
	c.peers = slices.DeleteFunc(c.peers, func(p *peer) bool {
		return !p.required && !slices.Contains(c.recruits, p.id)
	})
}

func (c *Core) find(r viewsvc.ReplicaID) *peer {
	for _, p := range c.peers {
		if p.id == r {
			return p
		}
	}
	return nil
}

func (c *Core) peerOf(r viewsvc.ReplicaID) *peer {
	if p := c.find(r); p != nil {
		return p
	}
	p := &peer{id: r}
	c.peers = append(c.peers, p)
	return p
}

// Targets are the replicas to have a stream to.
func (c *Core) Targets() []viewsvc.ReplicaID {
	if !c.state.Primary() {
		return nil
	}
	ids := make([]viewsvc.ReplicaID, len(c.peers))
	for i, p := range c.peers {
		ids[i] = p.id
	}
	return ids
}

// Streams tells whether what comes over a peer's stream counts. It does not once the peer has been forgotten, also if it
// was taken in again at once: a member that is removed and recruited by the same message.
func (c *Core) Streams(r viewsvc.ReplicaID, stream uint64) bool {
	p := c.find(r)
	return p != nil && p.stream == stream
}

// Recruits tells which learners the view service wants brought up to date.
func (c *Core) Recruits(ids []viewsvc.ReplicaID) {
	if !c.state.Primary() || slices.Equal(ids, c.recruits) {
		return
	}
	c.recruits = slices.Clone(ids)
	for _, r := range ids {
		if r != c.cfg.Self {
			c.peerOf(r)
		}
	}
	c.dropPeers()
	c.emit(Effect{Kind: EffectTargets})
}

// TenureBegun tells the LSN of the VIEW record, once it has one.
func (c *Core) TenureBegun(tenure viewsvc.ViewNum, at wal.LSN) {
	if c.state == StateOpening && c.view.Tenure == tenure {
		c.openAt = at
		c.progress()
	}
}

// Appended tells that the own log was written up to l.
func (c *Core) Appended(l wal.LSN) {
	c.written = max(c.written, l)
	c.progress()
}

// Durable tells that the own log is on stable storage up to l.
func (c *Core) Durable(l wal.LSN) {
	c.written = max(c.written, l)
	c.durable = max(c.durable, l)
	c.progress()
}

// PeerUp tells that a stream to a peer is open. Nothing is known of its log before its first Ack.
func (c *Core) PeerUp(r viewsvc.ReplicaID, stream uint64, needsCopy bool) {
	if p := c.find(r); p != nil {
		// It counts as heard of only when it answers, and as keeping pace when it has what it owes: one that greets and then
		// fails each time is not alive.
		*p = peer{id: r, required: p.required, stream: stream, up: true, copied: !needsCopy, silent: p.silent,
			owed: p.owed, behind: p.behind}
		c.askReads()
	}
}

// PeerDown tells that a stream ended, or that a dial failed (stream 0). refused: no process listens there.
func (c *Core) PeerDown(r viewsvc.ReplicaID, stream uint64, refused bool) {
	p := c.find(r)
	if p == nil || (stream != 0 && p.stream != stream) {
		return
	}
	p.up = false
	p.refused = refused
	if r == c.joining {
		c.leaveR()
	}
}

// Lacks tells how many blocks of the log a learner has yet to write.
func (c *Core) Lacks(r viewsvc.ReplicaID, blocks uint64) {
	if p := c.find(r); p != nil {
		p.lacks = blocks
	}
}

// Copied tells that a learner has all regions on stable storage.
func (c *Core) Copied(r viewsvc.ReplicaID, stream uint64) {
	if p := c.find(r); p != nil && p.stream == stream {
		p.copied = true
	}
}

// Whole tells whether a peer needs no regions, or has all of them on stable storage.
func (c *Core) Whole(r viewsvc.ReplicaID) bool {
	p := c.find(r)
	return p != nil && p.copied
}

// Ack is a peer's answer.
type Ack struct {
	From             viewsvc.ReplicaID
	Stream           uint64
	View, Tenure     viewsvc.ViewNum // the peer's when it answered
	Written, Durable wal.LSN
	Nonce            uint64
	Suspect          bool    // it may lack what was acknowledged
	Lease            Instant // what came with the newest request for a grant that it granted; 0: none
	At               Instant // when the Ack arrived
}

// Acked takes an Ack. It counts if it came over the peer's present stream, which never outlives the tenure that opened
// it, and while the peer was in this tenure: once it is in another, its log is another primary's to cut. An error means
// that the peer does not keep to the protocol; the stream is to be closed.
func (c *Core) Acked(a Ack) error {
	p := c.find(a.From)
	if p == nil || p.stream != a.Stream || !c.state.Primary() {
		return nil
	}
	if a.Tenure != c.view.Tenure {
		return nil // it knows more than we do; its Stale, or the view service, will tell us
	}
	if a.Written < p.written || a.Durable < p.durable || a.Durable > a.Written || a.Nonce > c.nonce || a.Lease > c.lease.latest {
		return fmt.Errorf("replication: impossible ack of %s: written %d, durable %d, nonce %d, lease %d after %d, %d, %d, %d",
			p.id, a.Written, a.Durable, a.Nonce, a.Lease, p.written, p.durable, c.nonce, c.lease.latest)
	}
	c.pass(a.At)
	p.silent, p.refused, p.suspect = 0, false, a.Suspect
	if a.From == c.given.to {
		c.given = given{} // it answers in this tenure: it has left the one in which it relied on the grant
	}
	c.granted(p, a.Lease)
	p.written, p.durable = max(p.written, a.Durable), a.Durable
	if a.View == c.view.Num {
		p.written = a.Written
	}
	if a.View == c.view.Num && a.Nonce > p.confirmed {
		p.confirmed = a.Nonce
	}
	c.progress()
	return nil
}

// progress does what has become possible. Every event that moves a log, R or the time ends with it.
func (c *Core) progress() {
	if !c.state.Primary() {
		return
	}
	c.advance()
	c.open()
	c.answerReads()
	c.proposeJoining()
	c.handOver()
}

// advance moves the commit point: the minimum over R of what counts.
func (c *Core) advance() {
	if !c.state.Primary() || c.state == StateOpening && c.openAt == 0 {
		return // before the VIEW record has its place, what followed the primary before may still cut the log
	}
	commit, stable := c.durable, c.durable
	if c.CommitsWritten() {
		commit = c.written
	}
	for _, p := range c.peers {
		if !p.required {
			continue
		}
		if c.CommitsWritten() {
			commit = min(commit, p.written)
		} else {
			commit = min(commit, p.durable)
		}
		stable = min(stable, p.durable)
	}
	if commit > c.commit {
		c.commit = commit
		c.emit(Effect{Kind: EffectCommit, LSN: commit})
	}
	if stable > c.stable {
		c.stable = stable
		c.emit(Effect{Kind: EffectStable, LSN: stable})
	}
}

// open begins to serve when all of R has the VIEW record and no other primary can be serving under this replica's
// promise (I9).
func (c *Core) open() {
	if c.state != StateOpening || c.openAt == 0 || c.commit < c.openAt || c.promised() {
		return
	}
	c.setState(StateOpen)
	c.emit(Effect{Kind: EffectServe})
}

// Required tells whether a replica is in R.
func (c *Core) Required(r viewsvc.ReplicaID) bool {
	p := c.find(r)
	return p != nil && p.required
}

// alone tells whether R = {self}.
func (c *Core) alone() bool {
	for _, p := range c.peers {
		if p.required {
			return false
		}
	}
	return true
}

// ReadTicket is called for reads that were just taken from a client. They may be answered when a ticket up to it was
// given in EffectReads, or at once if ok is true. at is read after the last of them came: a lease that ran at that
// moment is good for an answer at any later one, however long the process sleeps in between, for the answer is what was
// committed at a moment between question and answer.
func (c *Core) ReadTicket(at Instant) (ticket uint64, ok bool) {
	c.pass(at)
	if c.alone() {
		return c.nonce, true
	}
	if at != 0 && c.state == StateOpen && at < c.leased() {
		c.renew()
		return c.nonce, true
	}
	if c.readsDone < c.nonce {
		// A question is under way that was asked before these reads came. They go with the next, together with all
		// that come until then: a question for each would keep everybody busy with questions.
		c.readsWait = true
		return c.nonce + 1, false
	}
	c.askNext()
	return c.nonce, false
}

func (c *Core) askNext() {
	c.nonce++
	c.readsWait = false
	c.question(true)
}

// askReads asks again for confirmations that a view change or a new stream has made void.
func (c *Core) askReads() {
	if c.readsDone < c.nonce {
		c.question(true)
		c.answerReads()
	}
}

// answerReads finds the reads that all of R∖self have confirmed.
func (c *Core) answerReads() {
	for c.state == StateOpen && c.readsDone < c.nonce {
		n := c.nonce
		for _, p := range c.peers {
			if p.required {
				n = min(n, p.confirmed)
			}
		}
		if n <= c.readsDone {
			return
		}
		c.readsDone = n
		c.emit(Effect{Kind: EffectReads, Nonce: n})
		if n == c.nonce && c.readsWait {
			c.askNext()
		}
	}
}

// Tick is the passing of 1/TicksPerSecond s. A primary that was paused sees one tick, not many: it has to be
// awake for as long as it gives a peer to answer.
func (c *Core) Tick(now Instant) {
	c.pass(now)
	if !c.state.Primary() {
		return
	}
	c.ticks++
	for _, p := range c.peers {
		p.silent++
		p.pace(c)
	}
	c.try()
	if c.ticks%heartbeatTicks == 0 {
		c.question(false)
	}
	if c.proposal != nil {
		if c.retryIn--; !c.asked && c.retryIn <= 0 {
			c.ask()
		}
		return
	}
	c.removeSick()
	if c.proposal != nil {
		return
	}
	c.addCaughtUp()
}
