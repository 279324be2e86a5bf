package replication

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"lockstep/viewsvc"
	"lockstep/wal"
)

// A random walk of three replicas of one volume: the real Core in each, driven as Replica drives it, over model disks,
// model streams and a model view service (walk_model_test.go). Every step of the drivers, every message and every
// crash may come at any time. What must hold is checked at each effect:
//
//	C1  no LSN is committed twice with different content
//	C2  a primary opens with every acknowledged write, unless an operator let it
//	C3  a read has every write that was acknowledged before it was taken
//	C4  nobody is told to cut what it knows to be committed
//	C5  a write that an open primary does not have never comes back
//	I9  while a primary reads under a lease nobody else is open
//	C6  a replica whose copy is incomplete is never primary
//	I5  what is committed is durable at every member (written, in sync mode flush), what is stable is durable
//
// A failing walk names its seed; -walk.seed runs that one alone and prints what happened.
var (
	walkSeed = flag.Uint64("walk.seed", 0, "run only the walk with this seed")
	walkTime = flag.Duration("walk.time", 4*time.Second, "how long each random walk test runs")
)

// walkMode is what a walk may do to the replicas.
type walkMode int

const (
	walkAlways     walkMode = iota // sync mode always; crashes lose what was not synced
	walkFlush                      // sync mode flush; processes crash, machines do not
	walkFlushCrash                 // sync mode flush; machines crash, too: suspects are held
	walkLease                      // as always; leases, and primaries that are cut off
)

const (
	walkReplicas = 3
	walkSteps    = 500
	walkViews    = 14
	walkWrites   = 40 // at most 63: sets of writes are bit masks
)

var walkIDs = [walkReplicas]viewsvc.ReplicaID{"a", "b", "c"}

func walkIndex(id viewsvc.ReplicaID) int { return int(id[0] - 'a') }

// wEntry is a record. val 0 is a VIEW record, others number the writes.
type wEntry struct{ epoch, val int }

// wMsg is a message on a stream.
type wMsg struct {
	typ             msgType
	view            viewsvc.View // its number is in every header; whole in Hello, Stale and View
	a, b            int          // as in wire.go
	commit          wal.LSN
	nonce           uint64
	sync, copied    bool
	suspect         bool // Ack: the peer may lack what was acknowledged
	entry           wEntry
	log             []wEntry // Welcome: the peer's log, instead of an epoch index; Copy: what the regions will have
	copying         bool
	applied         int
	written, stored wal.LSN
	lease           Instant
	grant           time.Duration
	returned        bool // no earlier grant is relied on
}

// wConn is one connection. Messages arrive in order; those under way when it breaks may or may not.
type wConn struct {
	from, to       int // primary, peer
	id             uint64
	toPeer, toPrim []wMsg
	broken         bool // nothing more can be sent
}

// wStream is a primary's end: it outlives connections.
type wStream struct {
	tenure viewsvc.ViewNum
	conn   *wConn
	id     uint64
	up     bool
	direct bool
	next   int
	copy   bool // CopyDone is to be sent
}

// wFollow is a peer's end.
type wFollow struct {
	conn    *wConn
	held    bool // it has the log
	begun   bool // a message was checked, and is handled in the next step
	msg     wMsg
	started bool
	dirty   bool
	fresh   bool
	nonce   uint64
	lease   Instant
	caught  int
}

// walkClock is a replica's clock: it is off, and it may run faster or slower than it should. It is right about neither.
type walkClock struct {
	off  time.Duration
	rate float64
}

// Clocks that leases have to put up with differ by a tenth in rate.
const walkDrift = 0.05

func (w *walk) newClock() walkClock {
	drift := walkDrift
	if w.mutant == "drift" {
		drift = 0.5
	}
	c := walkClock{off: time.Duration(w.rng.IntN(1e10)), rate: 1}
	switch w.rng.IntN(3) {
	case 0:
		c.rate = 1 - drift
	case 1:
		c.rate = 1 + drift
	}
	return c
}

// time reads the clock.
func (r *wReplica) time() Instant {
	return Instant(r.clock.off + time.Duration(float64(r.w.now)*r.clock.rate))
}

// pass lets some time go by, and those wake up who wanted to.
func (w *walk) pass() {
	step := 2 * grantMax // promises are over before those that wait for them have lost interest
	if w.mode == walkLease {
		step = grantMax / 8
	}
	w.now += time.Duration(1 + w.rng.IntN(int(step)))
	for _, r := range w.rs {
		if r.up && r.core.wakeAt != 0 && r.time() >= r.core.wakeAt && !w.one(4) {
			r.core.Wake(r.time())
			r.settle()
		}
	}
}

// cutOff cuts a replica off, or ends that.
func (w *walk) cutOff(r *wReplica) {
	r.cutOff = !r.cutOff
	w.tr("%s is cut off: %v", walkIDs[r.i], r.cutOff)
	for _, c := range w.conns {
		if r.cutOff && (c.from == r.i || c.to == r.i) {
			w.breakConn(c)
		}
	}
}

type wPending struct{ lsn, val int }

type wRead struct {
	ticket uint64
	need   uint64 // writes that it must have
}

// who has the right to write a log
const (
	logFree = iota
	logCommitter
	logFollower
)

// wReplica is a model disk and the model driver of a Core.
type wReplica struct {
	w    *walk
	i    int
	up   bool
	core *Core

	// On disk.
	log     []wEntry
	durable int
	applied int
	known   int // commit points up to here may be found in the log
	view    viewsvc.View
	suspect bool
	copying bool

	// In memory.
	busy      int
	sealed    bool // an entry has its LSN and was sent, but is not in the log
	entry     wEntry
	begin     viewsvc.View
	queue     []int
	pending   []wPending
	reads     []wRead
	streams   [walkReplicas]*wStream
	nextID    uint64
	follow    *wFollow
	seen      int             // commit point, as of the last EffectCommit
	resumedIn viewsvc.ViewNum // the tenure that an operator wanted begun
	clock     walkClock
	cutOff    bool    // no message arrives from it, none reaches it
	lastRead  Instant // clock, when the mutant looked at it
}

// wProposal is one try of a proposal, on its way to the view service or back.
type wProposal struct {
	r        *wReplica
	core     *Core
	p        *viewsvc.Proposal
	answered bool // the proposer was given an answer, or up
}

type walk struct {
	rng     *rand.Rand
	mode    walkMode
	mutant  string
	hist    []viewsvc.View
	tried   map[viewsvc.ViewNum]uint64 // by tenure: the newest question of its primary that was decided
	rs      [walkReplicas]*wReplica
	conns   []*wConn
	props   []*wProposal
	crashes int
	power   bool // crashes are power failures

	now    time.Duration // true time
	leases bool          // else every read is confirmed

	committed []wEntry
	acked     uint64 // writes
	dead      uint64
	wroteIn   [walkWrites + 1]viewsvc.ViewNum
	writes    int

	tracing bool
	trace   []string
	bad     string

	nOpens, nReads, nLeased, nAcks, nStable int
}

func (w *walk) always() bool { return w.mode == walkAlways || w.mode == walkLease }

func (w *walk) tr(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf(format, args...))
	}
}

func (w *walk) fail(format string, args ...any) {
	if w.bad == "" {
		w.bad = fmt.Sprintf(format, args...)
		w.tr("FAIL %s", w.bad)
	}
}

func (w *walk) one(n int) bool { return w.rng.IntN(n) == 0 }

func newWalk(seed uint64, mode walkMode, mutant string, tracing bool) *walk {
	w := &walk{rng: rand.New(rand.NewPCG(seed, 7)), mode: mode, mutant: mutant, tracing: tracing, tried: map[viewsvc.ViewNum]uint64{}}
	first := viewsvc.View{Volume: "v", Num: 1, Tenure: 1, Primary: walkIDs[0]}
	for _, r := range walkIDs[1:] {
		if w.one(2) {
			first.Backups = append(first.Backups, r)
		}
	}
	w.hist = []viewsvc.View{first}
	w.now, w.leases = time.Hour, mode == walkLease || mode != walkFlushCrash && w.one(3)
	for i := range w.rs {
		w.rs[i] = &wReplica{w: w, i: i, clock: w.newClock()}
		w.rs[i].start(0)
		w.rs[i].observe(first)
	}
	w.crashes, w.power = w.rng.IntN(5), w.one(2)
	return w
}

// run walks, and says what went wrong.
func (w *walk) run() string {
	weights := w.weights()
	total := 0
	for _, x := range weights {
		total += x
	}
	for range walkSteps {
		x, action := w.rng.IntN(total), 0
		for x >= weights[action] {
			x -= weights[action]
			action++
		}
		w.survive(action)
		if w.bad != "" {
			break
		}
	}
	return w.bad
}

// survive does a step that may end with a crash.
func (w *walk) survive(action int) {
	defer func() {
		if p := recover(); p != nil && p != errWalkCrash {
			if w.tracing {
				w.tr("%s", debug.Stack())
			}
			w.fail("panic: %v", p)
		}
	}()
	w.step(action)
}

// The actions of a step, with their usual weights. Each walk has other ones: a rare thing must be common in some.
const (
	actWrite = iota
	actCommitter
	actSyncLoop
	actFollow
	actAnswers
	actDial
	actShip
	actBreak
	actCrash
	actRestart
	actPromote
	actResume
	actHear
	actRecruit
	actTick
	actLongTick
	actDecide
	actLose
	actRead
	actHandover
	actRefused
	actApply
	actOperator
	actRest
	actTime
	actCut
	actions
)

var usualWeights = [actions]int{
	actWrite: 12, actCommitter: 40, actSyncLoop: 3, actFollow: 110, actAnswers: 60, actDial: 12, actShip: 40, actBreak: 2,
	actCrash: 1, actRestart: 8, actPromote: 1, actResume: 2, actHear: 12, actRecruit: 4, actTick: 8, actLongTick: 1,
	actDecide: 8, actLose: 1, actRead: 12, actHandover: 1, actRefused: 1, actApply: 6, actOperator: 2, actRest: 2,
	actTime: 4,
}

func (w *walk) weights() []int {
	out := slices.Clone(usualWeights[:])
	for i := range out {
		switch w.rng.IntN(6) {
		case 0:
			out[i] *= 4
		case 1:
			out[i] = (out[i] + 3) / 4
		}
	}
	if w.one(3) { // a restless view service, and old messages
		out[actPromote] *= 5
		out[actResume] *= 3
		out[actAnswers] = max(1, out[actAnswers]/4)
	}
	if w.mode == walkLease { // who is cut off goes on reading, while others take over in next to no time
		out[actRead], out[actWrite] = 30, 20
		out[actTime], out[actCut], out[actPromote] = 3, 3, 3
		out[actHear], out[actRestart] = 30, 20
		out[actCrash], out[actHandover] = 1+2*w.rng.IntN(2), 1+3*w.rng.IntN(2)
	}
	if w.mode == walkFlushCrash {
		out[actCrash] *= 3
		out[actSyncLoop] = 1
	}
	return out
}

// anywhere are the actions that do not prefer a primary.
var anywhere = [actions]bool{actFollow: true, actCrash: true, actRestart: true, actHear: true, actSyncLoop: true, actApply: true}

func (w *walk) step(action int) {
	r := w.rs[w.rng.IntN(walkReplicas)]
	if !anywhere[action] && !w.one(4) {
		for k := range w.rs {
			if q := w.rs[(r.i+k)%walkReplicas]; q.up && q.core.State().Primary() {
				r = q
				break
			}
		}
	}
	if action == actFollow {
		for k := 0; k < walkReplicas && !r.hasNews(); k++ {
			r = w.rs[(r.i+1)%walkReplicas]
		}
	}
	switch action {
	case actPromote:
		w.promote()
	case actResume:
		w.resume()
	case actDecide:
		w.decide()
	case actLose:
		w.loseProposal()
	case actTime:
		w.pass()
	case actCut:
		w.cutOff(r)
	case actBreak:
		if len(w.conns) > 0 {
			w.breakConn(w.conns[w.rng.IntN(len(w.conns))])
		}
	case actRestart:
		if !r.up {
			r.start(r.applied + w.rng.IntN(r.known-r.applied+1))
		}
	default:
		if r.up {
			r.act(action)
		}
	}
}

func (r *wReplica) act(action int) {
	w := r.w
	switch action {
	case actWrite:
		if r.core.State() == StateOpen && !r.core.Draining() && w.writes < walkWrites {
			w.writes++
			r.queue = append(r.queue, w.writes)
		}
	case actCommitter:
		r.committer()
	case actSyncLoop:
		r.syncNow()
	case actFollow:
		r.followStep()
	case actAnswers:
		r.answers()
	case actDial:
		r.dial()
	case actShip:
		r.ship()
	case actCrash:
		if w.crashes > 0 {
			w.crashes--
			r.crash()
			for _, q := range w.rs {
				if w.mode == walkFlushCrash && q.up && w.power {
					q.crash() // a power failure
				}
			}
		}
	case actHear:
		switch {
		case r.cutOff:
		case w.one(2):
			r.observe(w.current())
		default:
			r.observe(w.hist[w.rng.IntN(len(w.hist))])
		}
	case actRecruit:
		r.core.Recruits(w.someOutside(r))
		r.settle()
	case actTick:
		r.core.Tick(r.time())
		r.settle()
	case actLongTick:
		for range peerDeadTicks + 2 {
			r.core.Tick(r.time())
			r.settle()
		}
	case actRead:
		r.read()
	case actHandover:
		if w.one(3) {
			r.core.CancelHandover()
		} else {
			_ = r.core.Handover(walkIDs[w.rng.IntN(walkReplicas)]) // refused as often as not
		}
		r.settle()
	case actRefused:
		j := w.rng.IntN(walkReplicas)
		if s := r.streams[j]; s != nil && !w.rs[j].up && s.conn == nil {
			r.core.PeerDown(walkIDs[j], s.id, true)
			r.settle()
		}
	case actApply:
		r.applied = max(r.applied, min(int(r.core.Commit()), r.durable))
	case actOperator:
		if r.core.State() == StateHeld && w.one(3) {
			r.resumedIn = r.core.View().Tenure
			if r.core.View().Num == w.current().Num {
				w.acked &= r.has(len(r.log)) // the operator knows that the rest is lost
			}
			r.core.Resume()
			r.settle()
		}
	}
}
