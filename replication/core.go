package replication

import (
	"fmt"
	"slices"
	"time"

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
	joinLag        = 1024               // records that it may not have written when that begins, and blocks of the log
)

// State is what a replica is doing. doc.go has the table of moves.
type State uint8

// The states of a replica.
const (
	StateLearner    State = iota + 1 // outside the view
	StateBackup                      // member; refuses clients
	StateOpening                     // primary of a tenure whose VIEW record is not committed yet
	StateHeld                        // primary of a tenure that it begins when an operator says so: it may lack what was acknowledged
	StateOpen                        // primary that serves clients
	StateRecovering                  // restarted as primary of its last view; never goes on in it
	StatePoisoned                    // storage failed
)

// nextStates is the table of doc.go. A move that is not in it is a programmer's error.
var nextStates = [...][]State{
	StateLearner:    {StateLearner, StateBackup, StateOpening, StateHeld, StateRecovering, StatePoisoned},
	StateBackup:     {StateBackup, StateLearner, StateOpening, StateHeld, StateRecovering, StatePoisoned},
	StateOpening:    {StateOpening, StateOpen, StateBackup, StateLearner, StatePoisoned},
	StateHeld:       {StateHeld, StateOpening, StateBackup, StateLearner, StateRecovering, StatePoisoned},
	StateOpen:       {StateOpening, StateBackup, StateLearner, StatePoisoned},
	StateRecovering: {StateRecovering, StateOpening, StateHeld, StateBackup, StateLearner, StatePoisoned},
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

// Primary tells whether the replica is in office: it has begun a tenure of its own.
func (s State) Primary() bool { return s == StateOpening || s == StateOpen }

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
	EffectConfirm                           // ask every peer to confirm Nonce, and for a grant, if its length is not 0
	EffectReads                             // reads with a ticket up to Nonce may be answered
	EffectSync                              // what is written must be synced for commit to go on
	EffectPropose                           // ask the view service; answer with Observe, ProposalLost or ProposalRefused
	EffectWake                              // call Wake at the instant Until
)

// Effect is one thing for the driver to do.
type Effect struct {
	Kind     EffectKind
	LSN      wal.LSN
	Nonce    uint64
	Until    Instant // of EffectWake; of EffectConfirm: until when the grant is relied on, for the peer to repeat
	Grant    time.Duration
	View     viewsvc.View
	Proposal *viewsvc.Proposal
}

// Config is what does not change in a Core's life.
type Config struct {
	Self   viewsvc.ReplicaID
	Volume viewsvc.VolumeID
	Leases bool // the clock can be trusted with grants, given and taken
}

// Start is what a replica finds on its disk.
type Start struct {
	View    viewsvc.View // the newest stored
	End     wal.LSN      // end of the log; all of it is durable after opening
	Commit  wal.LSN
	Suspect bool // may lack acknowledged writes: an open in sync mode flush after a machine crash
	Now     Instant
}

// Core decides for one replica. Its methods are events; each may add effects, which the driver takes with Effects
// and carries out before it gives the next event. Not safe for concurrent use.
type Core struct {
	cfg     Config
	state   State
	view    viewsvc.View
	sync    viewsvc.SyncMode
	suspect bool

	minCopies int
	floor     viewsvc.Floor // newest that the view service told of

	now    Instant // newest reading that the driver told
	given  given   // as a peer
	wakeAt Instant // newest EffectWake

	// Own log. Invariant: commit ≤ written, durable ≤ written.
	written, durable, commit, stable wal.LSN

	// As primary.
	peers     []*peer // by id; members and recruits
	recruits  []viewsvc.ReplicaID
	openAt    wal.LSN // LSN of this tenure's VIEW record; 0 until it is appended
	nonce     uint64
	lease     lease
	readsDone uint64            // largest nonce for which EffectReads was given
	readsWait bool              // reads hold the ticket nonce+1, which is asked for when the present one is answered
	joining   viewsvc.ReplicaID // a learner in R that is to be proposed when it has what is committed
	proposal  *viewsvc.Proposal // asked for and not settled
	asked     bool              // a try of it is under way
	questions uint64            // how many were asked, tries counted
	retryIn   int
	ticks     int
	successor viewsvc.ReplicaID // of a handover under way
	trials    map[viewsvc.ReplicaID]*trial

	out []Effect
}

// NewCore makes the core of a replica that was just opened.
func NewCore(cfg Config, s Start) *Core {
	c := &Core{cfg: cfg, view: s.View, suspect: s.Suspect, sync: viewsvc.SyncAlways,
		written: s.End, durable: s.End, commit: s.Commit, stable: s.Commit, now: s.Now,
		trials: map[viewsvc.ReplicaID]*trial{}}
	if s.View.Num > 0 {
		// What the process before this one granted, and to whom, is not known. One that never had a view granted nothing.
		c.given.until = s.Now.add(grantMax)
	}
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
func (c *Core) State() State { return c.state }

func (c *Core) View() viewsvc.View { return c.view }

func (c *Core) Commit() wal.LSN { return c.commit }

func (c *Core) Stable() wal.LSN { return c.stable }

func (c *Core) Written() wal.LSN { return c.written }

func (c *Core) Suspect() bool { return c.suspect }

func (c *Core) Draining() bool { return c.successor != "" }

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

// SetFloor tells what every member has on stable storage, as the view service knows. Whoever has less has lost what it
// acknowledged, and perhaps all memory of its tenure: to begin that once more would be two writers in an epoch (I3), and
// the end of what the others have.
func (c *Core) SetFloor(f viewsvc.Floor) { c.floor = f }

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
	c.settled()

	if goesOn {
		for _, p := range c.peers {
			// A confirmation counts for one view only. What is merely written counts when the peer has stored the view
			// that makes it a member: else a crash of its machine would not make it suspect.
			p.confirmed, p.written = 0, p.durable
		}
		c.require()
		c.emit(Effect{Kind: EffectAnnounce, View: v})
		c.emit(Effect{Kind: EffectTargets})
		if len(v.Backups) == 0 && c.durable < c.written {
			c.emit(Effect{Kind: EffectSync})
		}
		c.progress()
		c.askReads()
		return
	}
	if inOffice {
		c.emit(Effect{Kind: EffectStepDown})
	}
	c.peers, c.recruits, c.openAt, c.lease = nil, nil, 0, lease{}
	c.trials = map[viewsvc.ReplicaID]*trial{}
	switch {
	case v.Primary == c.cfg.Self:
		if v.Tenure != v.Num || c.floor.LackedBy(old.Tenure, uint64(c.written)) {
			// I3: this process did not begin the tenure, an earlier one of this replica did, or may have and was
			// forgotten. It waits to be given a tenure of its own, or to be replaced.
			c.setState(StateRecovering)
			break
		}
		if c.suspect {
			// Nothing is sent to anybody: who is brought up to date by this replica has what it lacks cut from his log.
			c.setState(StateHeld)
			break
		}
		c.begin()
	case v.Has(c.cfg.Self):
		c.setState(StateBackup)
	default:
		c.setState(StateLearner)
	}
	c.emit(Effect{Kind: EffectTargets})
}

// begin takes office in the view, whose number is the tenure's.
func (c *Core) begin() {
	c.setState(StateOpening)
	c.require()
	c.emit(Effect{Kind: EffectBeginTenure, View: c.view})
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

// Resume is an operator's word that what a held primary has lost is accepted.
func (c *Core) Resume() {
	if c.state != StateHeld {
		return
	}
	c.suspect = false
	c.emit(Effect{Kind: EffectSaveView, View: c.view}) // with it, that the replica is no suspect
	c.begin()
	c.emit(Effect{Kind: EffectTargets})
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
