package gateway

import (
	"context"
	"errors"

	"lockstep/blockdev/nbd"
	"lockstep/replication/exportname"
	"lockstep/viewsvc"
)

// A node that does not serve a volume may say who does (exportname.Primary). After a handover that is the quickest way to
// the new primary when the view service's word is late, and the only one for a gateway that cannot reach it. The view
// service's word comes first all the same: a hint is looked at only if its view is later than the route's, it moves the
// route only when the node that it names has let the session in, and any newer word replaces it (G7).

// hint reads a node's refusal. It is nil if that says nothing newer than r.
func hint(r *route, refusal error) *route {
	var option *nbd.OptionError
	if !errors.As(refusal, &option) || !errors.Is(option, nbd.ErrUnknownExport) {
		return nil
	}
	p, err := exportname.ParsePrimary(option.Text)
	if err != nil || viewsvc.ViewNum(p.View) <= r.tenure || p.NBD == r.addr {
		return nil
	}
	return &route{tenure: viewsvc.ViewNum(p.View), addr: p.NBD}
}

// second tries elsewhere when a route has failed. It returns the route that it came by; with an error, what to try next
// is not known.
func (s *session) second(ctx context.Context, r *route, refusal error) (*nbd.Conn, *route, error) {
	other := s.v.other(r, refusal)
	if other == nil {
		return nil, r, refusal
	}
	defer other.end()
	conn, err := s.dial(ctx, other)
	if err != nil {
		return nil, r, err
	}
	now := s.v.adopt(other, r)
	if now == nil {
		conn.Close()
		return nil, r, errMoved
	}
	return conn, now, nil
}

// other is where to try when a route has failed: where the refusal points, or if the route was such a hint itself, where
// the view service points; nil is nowhere. It is over when r is.
func (v *volume) other(r *route, refusal error) *route {
	o := hint(r, refusal)
	if o == nil {
		v.mu.Lock()
		word, hinted := v.word, r.tenure > v.view
		v.mu.Unlock()
		if !hinted {
			return nil
		}
		o = &word
	}
	o.over, o.end = context.WithCancel(r.over)
	return o
}

// adopt makes the other way, which has proved right, the volume's route in place of r, and returns the route to use: nil
// if the volume's route is yet another one by now.
func (v *volume) adopt(other, r *route) *route {
	v.mu.Lock()
	if v.gone || v.route != r {
		now := v.route
		v.mu.Unlock()
		if !now.same(other) {
			return nil
		}
		return now // another session was told the same
	}
	next := &route{tenure: other.tenure, addr: other.addr}
	v.setRouteLocked(next)
	v.tellLocked()
	v.mu.Unlock()
	v.g.emit(Event{Kind: EventRoute, Volume: v.name, View: next.tenure, Addr: next.addr})
	return next
}
