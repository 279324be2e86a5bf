package replication

import (
	"fmt"
	"slices"

	"lockstep/viewsvc"
	"lockstep/wal"
)

// TicksPerSecond is how often the driver calls Core.Tick.
const TicksPerSecond = 20

// Limits of the core, in ticks.
const (
	heartbeatTicks = 2                  // between two signs of life to an idle peer
	peerDeadTicks  = 2 * TicksPerSecond // a member silent for so long is proposed for removal
	retryTicks     = 4                  // between two tries of a proposal that got no answer
	joinTicks      = 6                  // how long commit waits for a learner that is to join and does not answer
	joinLag        = 1024               // records that it may lack when that begins
)

// State is what a replica is doing. doc.go has the table of moves.
type State uint8

// The states of a replica.
const (
	StateLearner    State = iota + 1 // outside the view
	StateBackup                      // member; refuses clients
	StateOpening                     // primary of a tenure whose VIEW record is not committed yet
	StateHeld                        // as Opening, waiting for an operator
	StateOpen                        // primary that serves clients
	StateRecovering                  // restarted as primary of its last view; never goes on in it
	StatePoisoned                    // storage failed
)

// nextStates is the table of doc.go. A move that is not in it is a programmer's error.
var nextStates = [...][]State{
	StateLearner:    {StateLearner, StateBackup, StateOpening, StateRecovering, StatePoisoned},
	StateBackup:     {StateBackup, StateLearner, StateOpening, StateRecovering, StatePoisoned},
	StateOpening:    {StateOpening, StateOpen, StateHeld, StateBackup, StateLearner, StatePoisoned},
	StateHeld:       {StateOpening, StateOpen, StateBackup, StateLearner, StatePoisoned},
	StateOpen:       {StateOpening, StateBackup, StateLearner, StatePoisoned},
	StateRecovering: {StateRecovering, StateOpening, StateBackup, StateLearner, StatePoisoned},
	StatePoisoned:   {StatePoisoned},
}

func (s State) String() string {
	switch s {
	case StateLearner:
		return "learner"
	case StateBackup:
		return "backup"
	case StateOpening:
		return "opening"
	case StateHeld:
		return "held"
	case StateOpen:
		return "primary"
	case StateRecovering:
		return "recovering"
	case StatePoisoned:
		return "poisoned"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Primary tells whether the replica is in office: it has a tenure of its own.
func (s State) Primary() bool { return s == StateOpening || s == StateHeld || s == StateOpen }

// EffectKind says what the driver is to do.
type EffectKind uint8

// The effects. The driver carries them out in order; SaveView before anything behind it.
const (
	EffectSaveView    EffectKind = iota + 1 // put View on stable storage
	EffectStepDown                          // end all sessions, forget queued and pending requests
	EffectBeginTenure                       // append the VIEW record of tenure View.Num
	EffectTargets                           // Core.Targets changed: open and close streams
	EffectAnnounce                          // send View on every stream before any later frame
	EffectCommit                            // everything up to LSN is committed
	EffectStable                            // everything up to LSN is stable on all of R
	EffectServe                             // clients may attach
	EffectConfirm                           // ask every other replica of R to confirm Nonce
	EffectReads                             // reads with a ticket up to Nonce may be answered
	EffectSync                              // what is written must be synced for commit to go on
	EffectPropose                           // ask the view service; answer with Observe, ProposalLost or ProposalRefused
)

// Effect is one thing for the driver to do.
type Effect struct {
	Kind     EffectKind
	LSN      wal.LSN
	Nonce    uint64
	View     viewsvc.View
	Proposal *viewsvc.Proposal
}

// Config is what does not change in a Core's life.
type Config struct {
	Self   viewsvc.ReplicaID
	Volume viewsvc.VolumeID
}

// Start is what a replica finds on its disk.
type Start struct {
	View    viewsvc.View // the newest stored
	End     wal.LSN      // end of the log; all of it is durable after opening
	Commit  wal.LSN
	Suspect bool // may lack acknowledged writes: an open in sync mode flush after a machine crash
}

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
	confirmed        uint64 // largest nonce that it echoed in our present view
	copied           bool   // a learner that needs no more regions
}

// Core decides for one replica. Its methods are events; each may add effects, which the driver takes with Effects
// and carries out before it gives the next event. Not safe for concurrent use.
type Core struct {
	cfg     Config
	state   State
	view    viewsvc.View
	sync    viewsvc.SyncMode
	suspect bool

	// Own log. Invariant: commit ≤ written, durable ≤ written.
	written, durable, commit, stable wal.LSN

	// As primary.
	peers     []*peer // by id; members and recruits
	recruits  []viewsvc.ReplicaID
	openAt    wal.LSN // LSN of this tenure's VIEW record; 0 until it is appended
	nonce     uint64
	readsDone uint64            // largest nonce for which EffectReads was given
	joining   viewsvc.ReplicaID // a learner in R that is to be proposed when it has what is committed
	proposal  *viewsvc.Proposal // asked for and not settled
	asked     bool              // a try of it is under way
	tries     int
	retryIn   int
	ticks     int
	successor viewsvc.ReplicaID // of a handover under way

	out []Effect
}

// NewCore makes the core of a replica that was just opened.
func NewCore(cfg Config, s Start) *Core {
	c := &Core{cfg: cfg, view: s.View, suspect: s.Suspect, sync: viewsvc.SyncAlways,
		written: s.End, durable: s.End, commit: s.Commit, stable: s.Commit}
	switch {
	case s.View.Primary == cfg.Self:
		c.state = StateRecovering
	case s.View.Has(cfg.Self):
		c.state = StateBackup
	default:
		c.state = StateLearner
	}
	return c
}

// State, View, Commit and the rest are for the driver and for reports.
func (c *Core) State() State       { return c.state }
func (c *Core) View() viewsvc.View { return c.view }
func (c *Core) Commit() wal.LSN    { return c.commit }
func (c *Core) Stable() wal.LSN    { return c.stable }
func (c *Core) Written() wal.LSN   { return c.written }
func (c *Core) Suspect() bool      { return c.suspect }
func (c *Core) Draining() bool     { return c.successor != "" }

// Effects takes what has to be done since the last call. The slice is valid until the next event.
func (c *Core) Effects() []Effect {
	out := c.out
	c.out = c.out[:0]
	return out
}

func (c *Core) emit(e Effect) { c.out = append(c.out, e) }

func (c *Core) setState(s State) {
	if !slices.Contains(nextStates[c.state], s) {
		panic(fmt.Sprintf("replication: no move from %v to %v", c.state, s))
	}
	c.state = s
}

// SetSync tells the volume's sync mode.
func (c *Core) SetSync(m viewsvc.SyncMode) { c.sync = m }

// CommitsWritten tells whether a record counts when it is written, not synced: sync mode flush, with somebody
// else holding a copy. A lone primary syncs each frame, since a crash of its machine would lose the only copy.
func (c *Core) CommitsWritten() bool {
	return c.sync == viewsvc.SyncFlush && len(c.view.Backups) > 0
}

// Observe hears of a view, from whomever. Old ones are ignored.
func (c *Core) Observe(v viewsvc.View) {
	if v.Volume != c.cfg.Volume || v.Num <= c.view.Num || c.state == StatePoisoned {
		return
	}
	c.adopt(v)
}

// adopt moves into a newer view (I1).
func (c *Core) adopt(v viewsvc.View) {
	old := c.view
	if v.Num <= old.Num {
		panic(fmt.Sprintf("replication: I1: view %d after view %d", v.Num, old.Num))
	}
	inOffice := c.state.Primary()
	goesOn := inOffice && v.Primary == c.cfg.Self && v.Tenure == old.Tenure
	c.view = v
	c.emit(Effect{Kind: EffectSaveView, View: v})
	c.proposal, c.asked, c.successor, c.joining = nil, false, "", ""

	if goesOn {
		for _, p := range c.peers {
			p.confirmed = 0 // a confirmation counts for one view only
		}
		c.require()
		c.emit(Effect{Kind: EffectAnnounce, View: v})
		c.emit(Effect{Kind: EffectTargets})
		if len(v.Backups) == 0 && c.durable < c.written {
			c.emit(Effect{Kind: EffectSync})
		}
		c.advance()
		c.askReads()
		return
	}
	if inOffice {
		c.emit(Effect{Kind: EffectStepDown})
	}
	c.peers, c.recruits, c.openAt = nil, nil, 0
	switch {
	case v.Primary == c.cfg.Self:
		if v.Tenure != v.Num {
			// I3: this process did not begin the tenure, an earlier one of this replica did. It waits to be
			// given a tenure of its own, or to be replaced.
			c.setState(StateRecovering)
			break
		}
		c.setState(StateOpening)
		c.require()
		c.emit(Effect{Kind: EffectBeginTenure, View: v})
	case v.Has(c.cfg.Self):
		c.setState(StateBackup)
	default:
		c.setState(StateLearner)
	}
	c.emit(Effect{Kind: EffectTargets})
}

// require makes R from the view. Invariant (I8): R has every member of any view that the service may hold for this
// tenure. The service can hold this view, or the one that we asked for since; propose adds that one's learner.
func (c *Core) require() {
	for _, r := range c.view.Members() {
		if r != c.cfg.Self {
			c.peerOf(r).required = true
		}
	}
	c.peers = slices.DeleteFunc(c.peers, func(p *peer) bool {
		p.required = c.view.Has(p.id)
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
	c.peers = slices.DeleteFunc(c.peers, func(p *peer) bool {
		return !p.required && !slices.Contains(c.recruits, p.id)
	})
	c.emit(Effect{Kind: EffectTargets})
}

// TenureBegun tells the LSN of the VIEW record, once it has one.
func (c *Core) TenureBegun(tenure viewsvc.ViewNum, at wal.LSN) {
	if c.state == StateOpening && c.view.Tenure == tenure {
		c.openAt = at
		c.advance()
	}
}

// Appended tells that the own log was written up to l.
func (c *Core) Appended(l wal.LSN) {
	c.written = max(c.written, l)
	c.advance()
}

// Durable tells that the own log is on stable storage up to l.
func (c *Core) Durable(l wal.LSN) {
	c.written = max(c.written, l)
	c.durable = max(c.durable, l)
	c.advance()
}

// CutTo tells that the own log now ends at l.
func (c *Core) CutTo(l wal.LSN) {
	if l < c.commit {
		panic(fmt.Sprintf("replication: I6: cut to %d below commit %d", l, c.commit))
	}
	c.written, c.durable = l, min(c.durable, l)
}

// Restarted tells that the own log begins anew after l, all before it being in the copied image.
func (c *Core) Restarted(l wal.LSN) {
	c.written, c.durable, c.commit, c.stable = l, l, l, l
}

// Follow tells the commit point of the primary, as a peer of it. The log was checked against the primary's.
func (c *Core) Follow(commit wal.LSN) {
	if commit = min(commit, c.written); commit > c.commit {
		c.commit = commit
		c.emit(Effect{Kind: EffectCommit, LSN: commit})
	}
}

// Caught tells that this replica has everything that the primary had acknowledged when its stream began.
func (c *Core) Caught() { c.suspect = false }

// Hello decides about a stream from the primary of view v. False: answer with View as Stale.
func (c *Core) Hello(from viewsvc.ReplicaID, v viewsvc.View) bool {
	c.Observe(v)
	return c.Accepts(from, v.Num)
}

// Accepts tells whether a message of view num from the replica `from` may be acted upon: one of the present tenure, from
// its primary. Within the tenure the sender may not have heard of the newest view yet; it is the same process all
// the same, and goes by what it is told in the Ack.
func (c *Core) Accepts(from viewsvc.ReplicaID, num viewsvc.ViewNum) bool {
	return from == c.view.Primary && c.view.Tenure <= num && num <= c.view.Num &&
		(c.state == StateBackup || c.state == StateLearner)
}

// PeerUp tells that a stream to a peer is open. Nothing is known of its log before its first Ack.
func (c *Core) PeerUp(r viewsvc.ReplicaID, stream uint64, needsCopy bool) {
	if p := c.find(r); p != nil {
		// It counts as heard of only when it answers: one that greets and then fails each time is not alive.
		*p = peer{id: r, required: p.required, stream: stream, up: true, copied: !needsCopy, silent: p.silent}
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

// Copied tells that a learner has all regions on stable storage.
func (c *Core) Copied(r viewsvc.ReplicaID, stream uint64) {
	if p := c.find(r); p != nil && p.stream == stream {
		p.copied = true
	}
}

// Ack is a peer's answer.
type Ack struct {
	From             viewsvc.ReplicaID
	Stream           uint64
	View, Tenure     viewsvc.ViewNum // the peer's when it answered
	Written, Durable wal.LSN
	Nonce            uint64
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
	if a.Written < p.written || a.Durable < p.durable || a.Durable > a.Written || a.Nonce > c.nonce {
		return fmt.Errorf("replication: impossible ack of %s: written %d, durable %d, nonce %d after %d, %d, %d",
			p.id, a.Written, a.Durable, a.Nonce, p.written, p.durable, c.nonce)
	}
	p.silent, p.refused = 0, false
	p.written, p.durable = a.Written, a.Durable
	if a.View == c.view.Num && a.Nonce > p.confirmed {
		p.confirmed = a.Nonce
	}
	c.advance()
	c.answerReads()
	c.proposeJoining()
	return nil
}

// advance moves the commit point: the minimum over R of what counts.
func (c *Core) advance() {
	if !c.state.Primary() {
		return
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
	if c.state == StateOpening && c.openAt != 0 && c.commit >= c.openAt {
		if c.suspect {
			c.setState(StateHeld)
			return
		}
		c.setState(StateOpen)
		c.emit(Effect{Kind: EffectServe})
	}
	c.handOver()
}

// Resume is an operator's word that what a held primary has lost is accepted.
func (c *Core) Resume() {
	if c.state != StateHeld {
		return
	}
	c.suspect = false
	c.setState(StateOpen)
	c.emit(Effect{Kind: EffectSaveView, View: c.view}) // with it, that the replica is no suspect
	c.emit(Effect{Kind: EffectServe})
}

// Poison tells that the storage failed: the replica does nothing any more.
func (c *Core) Poison() {
	if c.state == StatePoisoned {
		return
	}
	c.setState(StatePoisoned)
	c.peers = nil
	c.emit(Effect{Kind: EffectStepDown})
	c.emit(Effect{Kind: EffectTargets})
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
// given in EffectReads, or at once if now is true.
func (c *Core) ReadTicket() (ticket uint64, now bool) {
	if c.alone() {
		return c.nonce, true
	}
	c.nonce++
	c.emit(Effect{Kind: EffectConfirm, Nonce: c.nonce})
	return c.nonce, false
}

// askReads asks again for confirmations that a view change or a new stream has made void.
func (c *Core) askReads() {
	if c.readsDone < c.nonce {
		c.emit(Effect{Kind: EffectConfirm, Nonce: c.nonce})
		c.answerReads()
	}
}

// answerReads finds the reads that all of R∖self have confirmed.
func (c *Core) answerReads() {
	if c.state != StateOpen || c.readsDone == c.nonce {
		return
	}
	n := c.nonce
	for _, p := range c.peers {
		if p.required {
			n = min(n, p.confirmed)
		}
	}
	if n > c.readsDone {
		c.readsDone = n
		c.emit(Effect{Kind: EffectReads, Nonce: n})
	}
}

// Tick is the passing of 1/TicksPerSecond s. A primary that was paused sees one tick, not many: it has to be
// awake for as long as it gives a peer to answer.
func (c *Core) Tick() {
	if !c.state.Primary() {
		return
	}
	c.ticks++
	for _, p := range c.peers {
		p.silent++
	}
	if c.ticks%heartbeatTicks == 0 {
		c.emit(Effect{Kind: EffectConfirm, Nonce: c.nonce})
	}
	if c.proposal != nil {
		if c.retryIn--; !c.asked && c.retryIn <= 0 {
			c.ask()
		}
		return
	}
	c.removeSilent()
	c.addCaughtUp()
}

// removeSilent proposes the view without the members that do not answer. Nothing is waited for less until that view
// is received.
func (c *Core) removeSilent() {
	var stay []viewsvc.ReplicaID
	for _, p := range c.peers {
		gone := p.silent > peerDeadTicks || p.refused
		if p.required && !gone {
			stay = append(stay, p.id)
		}
	}
	if len(stay) < len(c.view.Backups) {
		c.propose(viewsvc.KindRemove, c.cfg.Self, stay, "member does not answer")
	}
}

// addCaughtUp puts a learner that lacks next to nothing into R. Under a steady load it would never be quite at the commit
// point; from here on the commit point waits for it, for as long as it takes to write those few records.
func (c *Core) addCaughtUp() {
	if c.state != StateOpen || c.successor != "" || c.proposal != nil {
		return
	}
	if p := c.find(c.joining); p != nil {
		if p.silent > joinTicks {
			c.leaveR()
		}
		return
	}
	for _, p := range c.peers {
		if p.required || !p.up || !p.copied || p.durable+joinLag < c.commit || p.silent > heartbeatTicks+1 {
			continue
		}
		p.required, c.joining = true, p.id // first R, then the proposal (I8)
		c.proposeJoining()
		return
	}
}

// Joining tells whether commit waits for a learner, which had better sync soon.
func (c *Core) Joining() bool { return c.joining != "" && c.proposal == nil }

// proposeJoining proposes the learner in R once it has all that is committed, as stable as it is with the members.
func (c *Core) proposeJoining() {
	p := c.find(c.joining)
	if p == nil || c.proposal != nil || c.state != StateOpen || p.durable < c.commit {
		return
	}
	c.propose(viewsvc.KindAdd, c.cfg.Self, append(slices.Clone(c.view.Backups), p.id), "recruited")
}

// leaveR takes a learner out of R again that was not proposed: no view can have it (I8).
func (c *Core) leaveR() {
	p := c.find(c.joining)
	if p == nil || c.proposal != nil {
		return
	}
	p.required, c.joining = false, ""
	c.advance()
	c.answerReads()
}

// Handover begins to hand the volume over to a member: the driver orders nothing more (Draining), and when the
// successor has everything the view service is asked. CancelHandover ends it; so does any new view.
func (c *Core) Handover(to viewsvc.ReplicaID) error {
	switch {
	case c.state != StateOpen:
		return fmt.Errorf("replication: hand over: this replica is %v, not an open primary", c.state)
	case !c.view.Has(to) || to == c.cfg.Self:
		return fmt.Errorf("replication: hand over: %s is not a backup of view %d", to, c.view.Num)
	}
	if c.successor == "" && c.proposal == nil {
		c.successor = to
		c.handOver()
	}
	return nil
}

// CancelHandover goes on serving, unless the view service may already have been asked.
func (c *Core) CancelHandover() {
	if c.proposal == nil {
		c.successor = ""
	}
}

func (c *Core) handOver() {
	if c.successor == "" || c.proposal != nil || c.commit < c.written {
		return
	}
	p := c.find(c.successor)
	if p == nil || !p.up || p.durable < c.written {
		return
	}
	others := []viewsvc.ReplicaID{c.cfg.Self}
	for _, r := range c.view.Backups {
		if r != c.successor {
			others = append(others, r)
		}
	}
	c.propose(viewsvc.KindHandover, c.successor, others, "handover")
}

func (c *Core) propose(k viewsvc.Kind, primary viewsvc.ReplicaID, backups []viewsvc.ReplicaID, reason string) {
	c.proposal = &viewsvc.Proposal{Volume: c.cfg.Volume, Expect: c.view.Num, Tenure: c.view.Tenure, From: c.cfg.Self,
		Kind: k, Primary: primary, Backups: backups, Reason: reason}
	c.tries = 0
	c.ask()
}

func (c *Core) ask() {
	c.asked, c.retryIn = true, retryTicks
	c.tries++
	c.emit(Effect{Kind: EffectPropose, Proposal: c.proposal})
}

// ProposalLost tells that the answer to a proposal was lost: it may or may not have been accepted. It is asked
// again; only a newer view settles it.
func (c *Core) ProposalLost(p *viewsvc.Proposal) {
	if p == c.proposal {
		c.asked = false
	}
}

// ProposalRefused tells that the view service, in the very view that was expected, will not have the proposal. After
// earlier tries whose answers were lost this settles nothing: one of them may still be on its way.
func (c *Core) ProposalRefused(p *viewsvc.Proposal) {
	switch {
	case p != c.proposal:
	case c.tries > 1:
		c.asked = false
	default:
		c.proposal, c.asked, c.successor, c.joining = nil, false, "", ""
		c.require()
		c.advance()
		c.answerReads()
	}
}
