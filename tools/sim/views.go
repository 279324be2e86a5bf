package main

import (
	"errors"
	"fmt"
	"time"

	"lockstep/viewsvc"
)

// The waits of the view service, in its ticks.
const (
	viewTick   = 20 * time.Millisecond
	pingHold   = 100 * time.Millisecond
	rpcTimeout = 3 * time.Second
)

var monitorOptions = viewsvc.MonitorOptions{TDead: 60, FirstWait: 15, ResumeWait: 15, RecruitAfter: 150, HandoverWait: 100,
	SettleEvery: 5, BackoffMin: 5, BackoffMax: 100}

// views is the view service: the real replicated state and the real Monitor. Raft is abstracted to what it promises: a
// command is committed after a while or never; its answer may be lost either way; leadership moves, and what a leader
// knew beside the state is then forgotten.
type views struct {
	w       *world
	net     *network
	state   *viewsvc.State
	mon     *viewsvc.Monitor // nil: nobody leads
	servers []string         // hosts
	down    []bool           // by server
	leader  int
	term    uint64
	held    []*heldPing
	history []viewsvc.View
	onView  func(viewsvc.Kind, viewsvc.View)
	onGrown func(size uint64)

	loss int // one reply in so many is lost

	underWay map[viewsvc.ReplicaID]int // proposals of a replica that may still be committed
}

type heldPing struct {
	req   viewsvc.PingRequest
	until time.Duration
	reply func(viewsvc.PingReply, error)
}

var errNoLeader = errors.New("no view server leads")

func newViews(w *world, n *network, servers int) *views {
	v := &views{w: w, net: n, state: viewsvc.NewState(), down: make([]bool, servers), underWay: map[viewsvc.ReplicaID]int{}}
	for i := range servers {
		v.servers = append(v.servers, fmt.Sprintf("v%d", i+1))
	}
	if _, err := v.state.Apply(viewsvc.Command{Op: viewsvc.OpInit, Cluster: clusterID}); err != nil {
		w.fail("views: %v", err)
	}
	v.elect(0)
	v.tick(false)
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
		for v.leader = v.w.rng.IntN(len(v.servers)); v.down[v.leader]; {
			v.leader = (v.leader + 1) % len(v.servers)
		}
		o := monitorOptions
		o.Epoch = term
		v.mon = viewsvc.NewMonitor(v.state, o)
		v.w.tr("views: %s leads in term %d", v.servers[v.leader], term)
		v.flush()
	})
}

func (v *views) abdicate() {
	v.mon = nil
	for _, h := range v.held {
		h.reply(viewsvc.PingReply{}, errNoLeader)
	}
	v.held = nil
}

// setDown stops or starts a view server.
func (v *views) setDown(i int, down bool) {
	if v.down[i] == down {
		return
	}
	v.down[i] = down
	v.w.tr("views: %s down: %v", v.servers[i], down)
	if !v.quorum() {
		v.term++
		v.abdicate()
	} else if v.mon == nil || v.leader == i {
		v.elect(v.w.between(50*time.Millisecond, 800*time.Millisecond))
	}
}

// tick is the Monitor's clock.
func (v *views) tick(late bool) {
	v.w.after(viewTick, func() { v.tick(false) })
	if v.mon == nil {
		return
	}
	v.mon.Tick(late)
	v.flush()
	v.release(false)
}

// release answers the pings that are held for no reason any more.
func (v *views) release(bool) {
	held := v.held
	v.held = nil
	for _, h := range held {
		if v.mon != nil && v.mon.Held(h.req) && v.w.now < h.until {
			v.held = append(v.held, h)
			continue
		}
		v.answer(h)
	}
}

func (v *views) answer(h *heldPing) {
	if v.mon == nil {
		h.reply(viewsvc.PingReply{}, errNoLeader)
		return
	}
	h.reply(v.mon.Reply(h.req))
}

// flush passes on what the Monitor wants done.
func (v *views) flush() {
	mon := v.mon
	out := mon.Take()
	for _, e := range out.Events {
		if e.Kind == viewsvc.EventAwaited {
			v.w.stats.note(suspectWaited)
		}
		if e.Kind == viewsvc.EventAwaited {
			v.w.stats.note(suspectWaited)
		}
		v.w.tr("views: %v %s %s %s %v", e.Kind, e.Node, e.Text, e.Change, errText(e.Err))
	}
	for _, c := range out.Commands {
		v.commit(c.Command, func(_ viewsvc.Result, err error) {
			if v.mon == mon {
				mon.Done(c.Key, err)
				v.flush()
			}
		})
	}
	for _, p := range out.Probes {
		v.w.after(p.Delay, func() { v.probe(mon, p) })
	}
	if out.News && len(v.held) > 0 {
		v.release(true)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// hosts finds whether something listens at an address.
func (v *views) probe(mon *viewsvc.Monitor, p viewsvc.Probe) {
	host := hostOf(p.Addr)
	outcome := viewsvc.ProbeFailed
	if v.mon == mon && v.net.open(v.servers[v.leader], host) && v.net.open(host, v.servers[v.leader]) {
		switch v.net.accept(host, "probe", nil) {
		case accepted:
			outcome = viewsvc.ProbeConnected
		case refused:
			outcome = viewsvc.ProbeRefused
		case vanished:
		}
	}
	v.w.after(2*v.net.reach, func() {
		if v.mon == mon {
			mon.Probed(p, outcome)
			v.flush()
		}
	})
}

// commit puts a command through Raft. What was given to a leader that fell may be committed by the next one, or not.
func (v *views) commit(c viewsvc.Command, done func(viewsvc.Result, error)) {
	term := v.term
	if c.Proposal != nil {
		v.underWay[c.Proposal.From]++
	}
	over := func() {
		if c.Proposal != nil {
			v.underWay[c.Proposal.From]--
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
	if err == nil && v.mon != nil {
		v.mon.Changed(c, r)
		v.flush()
	}
	return r, err
}

// current is the volume's newest view.
func (v *views) current() viewsvc.View {
	if len(v.history) == 0 {
		return viewsvc.View{}
	}
	return v.history[len(v.history)-1]
}

// call is a request of a process to the leader, and its answer: either may be lost.
func call[T any](v *views, p *proc, host string, timeout time.Duration, handle func(reply func(T, error))) (T, error) {
	var out T
	err := errNoLeader
	answered := p.Alarm()
	v.w.after(v.net.hop(), func() {
		server := v.servers[v.leader]
		if v.mon == nil || !v.net.open(host, server) {
			return
		}
		handle(func(t T, e error) {
			if !v.net.open(server, host) {
				return
			}
			if v.w.one(v.loss) { // the connection breaks, at once or in the caller's patience
				if v.w.one(2) {
					v.w.after(v.net.hop(), answered.Ring)
				}
				return
			}
			v.w.after(v.net.delay(server, host), func() {
				out, err = t, e
				answered.Ring()
			})
		})
	})
	if !answered.Wait(nobody, timeout) {
		return out, errNoLeader
	}
	return out, err
}

// ping is a node's sign of life.
func (v *views) ping(p *proc, host string, req viewsvc.PingRequest) (viewsvc.PingReply, error) {
	return call(v, p, host, 600*time.Millisecond, func(reply func(viewsvc.PingReply, error)) {
		mon := v.mon
		err := mon.Ping(req)
		v.flush()
		if err != nil {
			reply(viewsvc.PingReply{}, err)
			return
		}
		h := &heldPing{req: req, until: v.w.now + pingHold, reply: reply}
		if v.mon == mon && mon.Held(req) {
			v.held = append(v.held, h)
			return
		}
		v.answer(h)
	})
}

// propose is a primary's request for a view.
func (v *views) propose(p *proc, host string, q viewsvc.Proposal) (viewsvc.View, error) {
	view, err := call(v, p, host, rpcTimeout, func(reply func(viewsvc.View, error)) {
		c, err := v.mon.Vet(q)
		if err != nil {
			reply(viewsvc.View{}, err)
			return
		}
		v.commit(c, func(r viewsvc.Result, err error) { reply(r.View, err) })
	})
	if errors.Is(err, errNoLeader) {
		v.w.stats.note(proposalLost)
	}
	return view, err
}

// primary is what a client is told: where the volume's primary is.
func (v *views) primary(p *proc, host string) (route, error) {
	return call(v, p, host, 300*time.Millisecond, func(reply func(route, error)) {
		s, err := v.mon.VolumeStatus(volumeName)
		for _, peer := range s.Peers {
			if peer.Replica == s.View.Primary {
				reply(route{s.View.Tenure, peer.NBD}, nil)
				return
			}
		}
		if err == nil {
			err = errNoLeader
		}
		reply(route{}, err)
	})
}
