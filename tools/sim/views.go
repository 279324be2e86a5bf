package main

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"lockstep/viewsvc"
)

// The waits of the view service, in its ticks.
const (
	viewTick  = 20 * time.Millisecond
	pingHold  = 100 * time.Millisecond
	raftLease = 400 * time.Millisecond // how long a leader that hears of nobody takes itself for it
)

// tDead is how long a node is silent before it is called dead.
const tDead = 1200 * time.Millisecond

var monitorOptions = viewsvc.MonitorOptions{TDead: uint64(tDead / viewTick), FirstWait: 15, ResumeWait: 15, RecruitAfter: 150, HandoverWait: 100,
	SettleEvery: 5, BackoffMin: 5, BackoffMax: 100, FloorEvery: 2 * uint64(tDead/viewTick)}

// views is the view service: the real replicated state and the real Monitor. Raft is abstracted to what it promises: a
// command is committed after a while or never; its answer may be lost either way; leadership moves, and what a leader
// knew beside the state is then forgotten. A leader that is left behind goes on for a while: it answers whoever asks it
// from the state of before, and commits nothing.
type views struct {
	w       *world
	net     *network
	state   *viewsvc.State
	lead    *office        // nil: nobody leads
	behind  *office        // a leader of before that does not know that it is none; nil: there is none
	servers []string       // hosts
	down    []bool         // by server
	asked   map[string]int // by host: the server that it asks first, because that answered last
	term    uint64
	history []viewsvc.View
	onView  func(viewsvc.Kind, viewsvc.View)
	onGrown func(size uint64)
	onClaim func(viewsvc.Claim)
	onBelow func(text string)

	loss int // one reply in so many is lost

	underWay int // proposals that may still be committed
}

// office is a server's time as leader.
type office struct {
	server int
	term   uint64
	mon    *viewsvc.Monitor // nil: it is over
	held   []*heldPing
}

type heldPing struct {
	req   viewsvc.PingRequest
	until time.Duration
	reply func(viewsvc.PingReply, error)
}

var errNoLeader = errors.New("no view server leads")

func newViews(w *world, n *network, servers int) *views {
	v := &views{w: w, net: n, state: viewsvc.NewState(), down: make([]bool, servers), asked: map[string]int{}}
	for i := range servers {
		v.servers = append(v.servers, fmt.Sprintf("v%d", i+1))
	}
	if _, err := v.state.Apply(viewsvc.Command{Op: viewsvc.OpInit, Cluster: clusterID}); err != nil {
		w.fail("views: %v", err)
	}
	v.elect(0)
	v.tick()
	return v
}

// up counts the servers that run.
func (v *views) up() int {
	n := 0
	for _, d := range v.down {
		if !d {
			n++
		}
	}
	return n
}

func (v *views) quorum() bool { return v.up() > len(v.servers)/2 }

// elect makes another server the leader after a while, if a majority runs.
func (v *views) elect(after time.Duration) {
	v.abdicate()
	v.term++
	term := v.term
	v.w.after(after, func() {
		if v.term != term || !v.quorum() {
			return
		}
		o := &office{server: v.w.rng.IntN(len(v.servers)), term: term}
		for v.down[o.server] || v.behind != nil && v.behind.server == o.server && v.up() > 1 {
			o.server = (o.server + 1) % len(v.servers)
		}
		options := monitorOptions
		options.Epoch = term
		o.mon = viewsvc.NewMonitor(v.state, options)
		v.lead = o
		v.w.tr("views: %s leads in term %d", v.servers[o.server], term)
		v.flush()
	})
}

// abdicate ends the leader's office, if there is one.
func (v *views) abdicate() {
	v.end(v.lead)
	v.lead = nil
}

// end is when a server notices that it leads no more.
func (v *views) end(o *office) {
	if o == nil {
		return
	}
	for _, h := range o.held {
		h.reply(viewsvc.PingReply{}, errNoLeader)
	}
	o.held, o.mon = nil, nil
}

// leaveBehind has another server lead while this one takes itself for the leader yet: it was stopped, or lost the others,
// and what it calls its lease is not over.
func (v *views) leaveBehind(after time.Duration) {
	o := v.lead
	if o == nil || v.behind != nil || len(v.servers) == 1 {
		v.elect(after)
		return
	}
	state, err := v.copyState()
	if err != nil {
		v.w.fail("views: %v", err)
		return
	}
	v.w.stats.note(leftBehind)
	v.w.tr("views: %s is left behind", v.servers[o.server])
	v.behind, v.state = o, state // its Monitor keeps the state of before
	v.lead = nil
	v.elect(after)
	v.w.after(v.w.between(after/2, after+raftLease), func() {
		v.w.tr("views: %s notices that it leads no more", v.servers[o.server])
		v.behind = nil
		v.end(o)
	})
}

func (v *views) copyState() (*viewsvc.State, error) {
	b, err := v.state.Encode()
	if err != nil {
		return nil, err
	}
	return viewsvc.DecodeState(bytes.NewReader(b))
}

// setDown stops or starts a view server.
func (v *views) setDown(i int, down bool) {
	if v.down[i] == down {
		return
	}
	v.down[i] = down
	v.w.tr("views: %s down: %v", v.servers[i], down)
	if o := v.behind; down && o != nil && o.server == i {
		v.behind = nil
		v.end(o)
	}
	if !v.quorum() {
		v.term++
		v.abdicate()
	} else if v.lead == nil || v.lead.server == i {
		v.elect(v.w.between(50*time.Millisecond, 800*time.Millisecond))
	}
}

// tick is the Monitors' clock.
func (v *views) tick() {
	v.w.after(viewTick, v.tick)
	for _, o := range []*office{v.lead, v.behind} {
		if o != nil {
			o.mon.Tick(false)
			v.flushOffice(o)
			v.release(o)
		}
	}
}

// release answers the pings that are held for no reason any more.
func (v *views) release(o *office) {
	held := o.held
	o.held = nil
	for _, h := range held {
		if o.mon != nil && o.mon.Held(h.req) && v.w.now < h.until {
			o.held = append(o.held, h)
			continue
		}
		o.answer(h)
	}
}

func (o *office) answer(h *heldPing) {
	if o.mon == nil {
		h.reply(viewsvc.PingReply{}, errNoLeader)
		return
	}
	h.reply(o.mon.Reply(h.req))
}

// flush passes on what the leader's Monitor wants done.
func (v *views) flush() { v.flushOffice(v.lead) }

func (v *views) flushOffice(o *office) {
	out := o.mon.Take()
	for _, e := range out.Events {
		if e.Kind == viewsvc.EventAwaited {
			v.w.stats.note(suspectWaited)
		}
		if e.Kind == viewsvc.EventBelow {
			v.onBelow(e.Text)
		}
		v.w.tr("views: %v %s %s %s %v", e.Kind, e.Node, e.Text, e.Change, errText(e.Err))
	}
	for _, c := range out.Commands {
		v.commitIn(o.term, c.Command, func(_ viewsvc.Result, err error) {
			if o.mon != nil {
				o.mon.Done(c.Key, err)
				v.flushOffice(o)
			}
		})
	}
	for _, p := range out.Probes {
		v.w.after(p.Delay, func() { v.probe(o, p) })
	}
	if out.News && len(o.held) > 0 {
		v.release(o)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// probe finds whether something listens at an address.
func (v *views) probe(o *office, p viewsvc.Probe) {
	host, server := hostOf(p.Addr), v.servers[o.server]
	outcome := viewsvc.ProbeFailed
	if o.mon != nil && v.net.open(server, host) && v.net.open(host, server) {
		switch v.net.accept(host, "probe", nil) {
		case accepted:
			outcome = viewsvc.ProbeConnected
		case refused:
			outcome = viewsvc.ProbeRefused
		case vanished:
		}
	}
	v.w.after(2*v.net.reach, func() {
		if o.mon != nil {
			o.mon.Probed(p, outcome)
			v.flushOffice(o)
		}
	})
}

// commit puts a command of the leader through Raft.
func (v *views) commit(c viewsvc.Command, done func(viewsvc.Result, error)) {
	v.commitIn(v.term, c, done)
}

// commitIn puts a command through Raft. What was given to a leader that fell, or was left behind, may be committed by the
// next one, or not.
func (v *views) commitIn(term uint64, c viewsvc.Command, done func(viewsvc.Result, error)) {
	if c.Proposal != nil {
		v.underWay++
	}
	over := func() {
		if c.Proposal != nil {
			v.underWay--
		}
	}
	v.w.after(v.w.between(100*time.Microsecond, 3*time.Millisecond)+v.raftDelay(), func() {
		if v.term != term {
			if v.w.one(2) {
				over()
				done(viewsvc.Result{}, errNoLeader)
				return
			}
			done(viewsvc.Result{}, errNoLeader) // and yet:
			v.w.after(v.w.between(0, 2*time.Second), func() {
				over()
				if _, err := v.apply(c); err == nil && c.Proposal != nil {
					v.w.stats.note(proposalLate)
				}
			})
			return
		}
		over()
		done(v.apply(c))
	})
}

// raftDelay is now and then long: a follower, or its disk, is slow.
func (v *views) raftDelay() time.Duration {
	if v.w.one(v.loss) {
		return v.w.between(0, 300*time.Millisecond)
	}
	return 0
}

func (v *views) apply(c viewsvc.Command) (viewsvc.Result, error) {
	c.Time = epoch
	r, err := v.state.Apply(c)
	if err == nil && c.Op == viewsvc.OpView {
		v.w.tr("view %d.%d %s %v: %s, %s", r.View.Num, r.View.Tenure, r.View.Primary, r.View.Backups, c.Proposal.Kind, c.Proposal.Reason)
		v.onView(c.Proposal.Kind, r.View)
		v.history = append(v.history, r.View)
		if c.Proposal.Kind == viewsvc.KindHandover {
			v.w.stats.note(handedOver)
		}
	}
	if err == nil && c.Op == viewsvc.OpGrown && c.Size > r.Size {
		v.w.tr("the volume has grown from %d to %d bytes", r.Size, c.Size)
		v.onGrown(c.Size)
	}
	if err == nil && c.Op == viewsvc.OpClaim {
		v.onClaim(r.Claim)
	}
	if err == nil && v.lead != nil {
		v.lead.mon.Changed(c, r)
		v.flush()
	}
	return r, err
}

// floor is what every member has, as the leader knows.
func (v *views) floor() viewsvc.Floor {
	if v.lead == nil {
		return viewsvc.Floor{}
	}
	s, err := v.lead.mon.VolumeStatus(volumeName)
	if err != nil {
		return viewsvc.Floor{}
	}
	return s.Floor
}

// current is the volume's newest view.
func (v *views) current() viewsvc.View {
	if len(v.history) == 0 {
		return viewsvc.View{}
	}
	return v.history[len(v.history)-1]
}
