package main

import (
	"errors"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// Exclusive attachments, of which replication/gateway's exclusive.go is retold: the owner asks the view service for the
// volume, attaches at the primary, and has it when the view service says so. From the first answer that it has then
// until the claim changes, nobody else has an answer to what he asked later, and nothing that others asked before is
// carried out any more.

// alone is who has the volume for himself.
type alone struct {
	s     *session
	since int64 // moment of its first answer
}

// claim is a request for another claim.
func (v *views) claim(p *proc, host string, change viewsvc.ClaimChange) (viewsvc.Claim, error) {
	return call(v, p, host, rpcTimeout, func(o *office, reply func(viewsvc.Claim, error)) {
		cmd, err := o.mon.PlanClaim(volumeName, change)
		if err != nil {
			reply(viewsvc.Claim{}, err)
			return
		}
		v.commitIn(o.term, cmd, func(r viewsvc.Result, err error) { reply(r.Claim, err) })
	})
}

// attachAlone is the beginning of an exclusive session, and returns its first connection; nil: the client was refused.
func (s *session) attachAlone() *endpoint {
	g, c := s.g, s.g.c
	change := viewsvc.ClaimChange{Act: viewsvc.ClaimAsk, Owner: s.name, Host: g.name, PID: g.runs}
	if c.w.one(4) {
		change.Act = viewsvc.ClaimTakeOver
	}
	claim, err := c.views.claim(g.p, g.name, change)
	c.w.tr("%s: %s: %v", s, change.Act, errText(err))
	if err != nil {
		if !errors.Is(err, viewsvc.ErrClaimed) { // the answer was lost, perhaps
			s.withdraw()
		}
		return nil
	}
	s.start, s.era, s.generation = claim.Start, claim.SessionEra(), (uint64(s.k.lives)+claim.Start)<<32
	var e *endpoint
	for e == nil && s.refused == nil && !s.gone {
		if e = s.connect(); e == nil {
			g.p.sleep(c.w.between(c.reconnect/2, 2*c.reconnect))
		}
	}
	if e != nil {
		change.Act, change.Start = viewsvc.ClaimHold, s.start
		if _, err = c.views.claim(g.p, g.name, change); err == nil && !s.gone {
			c.w.tr("%s has the volume for itself", s)
			return e
		}
		e.Close()
	}
	if !claim.Held { // else it is the same client's from before
		s.release()
	}
	return nil
}

// withdraw gives up a claim of which the answer was lost, if it was made and is not held.
func (s *session) withdraw() {
	said, err := s.g.c.views.primary(s.g.p, s.g.name)
	if claim := said.claim; err == nil && claim.Owner == s.name && !claim.Held {
		s.start = claim.Start
		s.release()
	}
}

// release gives the claim up, as well as it can.
func (s *session) release() {
	change := viewsvc.ClaimChange{Act: viewsvc.ClaimRelease, Owner: s.name, Start: s.start}
	_, err := s.g.c.views.claim(s.g.p, s.g.name, change)
	s.g.c.w.tr("%s gives the volume up: %v", s, errText(err))
}

// learn hears of a claim, and ends the sessions that it has ended for good.
func (g *gatewayProc) learn(claim viewsvc.Claim) {
	if claim.Num <= g.claim.Num {
		return
	}
	g.claim = claim
	for _, s := range g.sessions {
		if alive, _ := claim.Admits(s.name, s.era); !alive && !s.evicted && !g.direct {
			g.c.w.tr("%s is ended by a claim", s)
			s.evicted = true
			if !s.gone {
				s.k.s = nil
				s.close()
			}
		}
	}
}

// claimed hears of a claim that the view service has made.
func (c *cluster) claimed(claim viewsvc.Claim) {
	if claim == c.claim {
		return
	}
	c.w.tr("claim: %+v", claim)
	c.claim, c.alone = claim, alone{}
	c.w.stats.note(claimMade)
}

// answeredAlone looks at an answer: somebody may have the volume for himself.
func (c *cluster) answeredAlone(s *session, o *op) {
	h := c.history
	switch {
	case c.alone.s != nil && c.alone.s != s && o.call > c.alone.since:
		c.w.fail("%v is answered to %s, and %s has had the volume for itself since before that was asked", o, s, c.alone.s)
	case s.ready && s.alone && c.alone.s != s && c.claim.Held && c.claim.Owner == s.name && c.claim.Start == s.start:
		h.moment++
		c.alone = alone{s, h.moment}
		c.w.stats.note(attachedAlone)
		for _, p := range h.ops {
			unsent := p.s != nil && p.s.g.direct && !p.s.live // it waits for a connection, which may come after all claims
			if p.ret == 0 && p.s != s && p.fenced == 0 && !unsent {
				p.fenced = h.moment
			}
		}
	}
}

// detachAll is an operator's end of all attachments, once nobody wants the volume for himself any more.
func (c *cluster) detachAll() {
	for _, k := range c.clients {
		if k.alone = false; k.s != nil && k.s.alone {
			k.s.close()
			k.s = nil
		}
	}
	if c.claim.Owner == "" || c.views.lead == nil {
		return
	}
	cmd, err := c.views.lead.mon.PlanClaim(volumeName, viewsvc.ClaimChange{Act: viewsvc.ClaimEvict})
	if err == nil {
		c.views.commit(cmd, func(viewsvc.Result, error) {})
	}
}

// refusal tells of an answer to an attachment that is the end of trying: of the first one of an exclusive client, and of
// a session that a claim has ended, which is fenced with it.
func (s *session) refusal(err error) bool {
	return errors.Is(err, blockdev.ErrExclusive) && (s.evicted || s.alone && !s.ready)
}
