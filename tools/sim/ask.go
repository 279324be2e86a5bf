package main

import (
	"errors"
	"time"

	"lockstep/viewsvc"
)

// What nodes and gateways ask the view service, and how long they wait for an answer.
const (
	pingTimeout  = 600 * time.Millisecond
	rpcTimeout   = 3 * time.Second
	watchTimeout = 300 * time.Millisecond
)

// office is who a host asks: the server that answered it last while that takes itself for the leader, else the leader.
func (v *views) office(host string) *office {
	if o := v.behind; o != nil && v.asked[host] == o.server && v.net.open(host, v.servers[o.server]) {
		return o
	}
	return v.lead
}

// call is a request of a process to who leads, as it believes, and the answer: either may be lost.
func call[T any](v *views, p *proc, host string, timeout time.Duration, handle func(o *office, reply func(T, error))) (T, error) {
	var out T
	err := errNoLeader
	answered := p.Alarm()
	v.w.after(v.net.hop(), func() {
		o := v.office(host)
		if o == nil {
			return
		}
		server := v.servers[o.server]
		if !v.net.open(host, server) {
			return
		}
		handle(o, func(t T, e error) {
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
				if out, err = t, e; !errors.Is(e, errNoLeader) {
					v.asked[host] = o.server
				}
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
	return call(v, p, host, pingTimeout, func(o *office, reply func(viewsvc.PingReply, error)) {
		err := o.mon.Ping(req)
		v.flushOffice(o)
		if err != nil {
			reply(viewsvc.PingReply{}, err)
			return
		}
		h := &heldPing{req: req, until: v.w.now + pingHold, reply: reply}
		if o.mon != nil && o.mon.Held(req) {
			o.held = append(o.held, h)
			return
		}
		o.answer(h)
	})
}

// propose is a primary's request for a view.
func (v *views) propose(p *proc, host string, q viewsvc.Proposal) (viewsvc.View, error) {
	view, err := call(v, p, host, rpcTimeout, func(o *office, reply func(viewsvc.View, error)) {
		c, err := o.mon.Vet(q)
		if err != nil {
			reply(viewsvc.View{}, err)
			return
		}
		v.commitIn(o.term, c, func(r viewsvc.Result, err error) { reply(r.View, err) })
	})
	if errors.Is(err, errNoLeader) {
		v.w.stats.note(proposalLost)
	}
	return view, err
}

// said is what a client is told of the volume.
type said struct {
	route route
	claim viewsvc.Claim
}

// primary is what a client asks: where the volume's primary is.
func (v *views) primary(p *proc, host string) (said, error) {
	return call(v, p, host, watchTimeout, func(o *office, reply func(said, error)) {
		s, err := o.mon.VolumeStatus(volumeName)
		for _, peer := range s.Peers {
			if peer.Replica == s.View.Primary {
				reply(said{route{s.View.Tenure, peer.NBD}, s.Volume.Claim}, nil)
				return
			}
		}
		if err == nil {
			err = errNoLeader
		}
		reply(said{}, err)
	})
}
