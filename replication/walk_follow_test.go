package replication

import (
	"slices"

	"lockstep/viewsvc"
	"lockstep/wal"
)

// followStep is one step of the goroutine that follows a primary, or of one that is new to this replica. Between the
// check of a message and its handling, its sync and its answer, anything may happen.
func (r *wReplica) followStep() {
	f := r.follow
	if f != nil && f.held {
		switch {
		case f.begun:
			f.begun = false
			r.handle(f)
		case len(f.conn.toPeer) == 0 && f.conn.broken:
			r.leave(f)
		case len(f.conn.toPeer) == 0 || r.w.one(3):
			r.endBurst(f)
		default:
			r.begins(f)
		}
		return
	}
	var ready []*wConn
	for _, c := range r.w.conns {
		if c.to == r.i && len(c.toPeer) > 0 {
			ready = append(ready, c)
		}
	}
	if len(ready) == 0 {
		return
	}
	c := ready[r.w.rng.IntN(len(ready))]
	switch {
	case c.toPeer[0].typ == msgHello:
		r.accept(c)
	case f == nil || f.conn != c:
		r.w.breakConn(c) // superseded
		c.toPeer = nil
	default:
		r.begins(f)
	}
	r.w.forget()
}

// hasNews tells whether followStep has something to do.
func (r *wReplica) hasNews() bool {
	return r.up && (r.follow != nil && r.follow.held ||
		slices.ContainsFunc(r.w.conns, func(c *wConn) bool { return c.to == r.i && len(c.toPeer) > 0 }))
}

// leave ends following.
func (r *wReplica) leave(f *wFollow) {
	if f.held {
		f.held, r.busy = false, logFree
	}
	r.w.breakConn(f.conn)
	f.conn.toPeer = nil
	if r.follow == f {
		r.follow = nil
	}
	r.w.forget()
}

func (r *wReplica) accept(c *wConn) {
	hello := c.toPeer[0]
	ok := r.core.Hello(walkIDs[c.from], hello.view)
	r.settle()
	if !ok && (r.w.mutant != "noaccepts" || r.core.State().Primary()) {
		r.stale(c)
		return
	}
	if r.follow != nil && r.follow.conn != c {
		r.w.breakConn(r.follow.conn)
		if !r.follow.held {
			r.follow.conn.toPeer = nil
		}
	}
	if r.busy != logFree {
		return // comes again
	}
	r.follow = &wFollow{conn: c}
	c.toPeer = c.toPeer[1:]
	c.send(&c.toPrim, wMsg{typ: msgWelcome, log: slices.Clone(r.log), applied: r.applied, copying: r.copying})
}

func (r *wReplica) stale(c *wConn) {
	c.send(&c.toPrim, wMsg{typ: msgStale, view: r.core.View()})
	c.broken = true
	c.toPeer = nil
}

// begins is follower.begin.
func (r *wReplica) begins(f *wFollow) {
	if !f.held && r.busy != logFree {
		return
	}
	m := f.conn.toPeer[0]
	if m.typ == msgView {
		f.conn.toPeer = f.conn.toPeer[1:]
		ok := r.core.Hello(walkIDs[f.conn.from], m.view)
		r.settle()
		if !ok {
			r.stale(f.conn)
			r.leave(f)
		}
		return
	}
	f.conn.toPeer = f.conn.toPeer[1:]
	f.held, r.busy = true, logFollower
	if !r.core.Accepts(walkIDs[f.conn.from], m.view.Num) && (r.w.mutant != "noaccepts" || r.core.State().Primary()) {
		r.stale(f.conn)
		r.leave(f)
		return
	}
	f.begun, f.msg = true, m
}

func (r *wReplica) handle(f *wFollow) {
	w, m := r.w, f.msg
	switch m.typ {
	case msgStart:
		if w.mutant != "nocut" && !r.cut(f, m.a) {
			return
		}
		f.started, f.caught, f.dirty = true, m.b, true
	case msgCopy:
		r.log, r.durable, r.applied, r.seen = slices.Clone(m.log), len(m.log), len(m.log), len(m.log)
		r.copying = true
		r.core.Restarted(wal.LSN(len(m.log)))
		f.started, f.caught, f.dirty = true, m.b, true
	case msgCopyDone:
		r.copying = false
		f.dirty = true
		r.durable = len(r.log)
		r.core.Durable(wal.LSN(len(r.log)))
		r.settle()
		r.ack(f, true)
	case msgAppend:
		if m.a <= len(r.log) && w.mutant == "nocut" {
			break
		}
		r.follows(f, m)
		if m.a != len(r.log)+1 || m.a > 1 && w.mutant == "" && !r.chained(f, m) {
			w.fail("driver: %s has %d records and is sent number %d", walkIDs[r.i], len(r.log), m.a)
			return
		}
		r.log = append(r.log, m.entry)
		r.core.Appended(wal.LSN(len(r.log)))
		if w.mutant == "applyearly" {
			r.follows(f, wMsg{typ: msgConfirm, commit: wal.LSN(len(r.log))})
		}
		f.dirty = f.dirty || w.always() || m.entry.val == 0
	case msgConfirm:
		r.follows(f, m)
		f.fresh = f.fresh || m.nonce > f.nonce
		f.nonce = max(f.nonce, m.nonce)
		r.grant(f, m)
		f.dirty = f.dirty || m.sync
	}
}

// chained tells whether the sender's log is the same up to here: what wal checks by the sum of the frame before.
func (r *wReplica) chained(f *wFollow, m wMsg) bool {
	p := r.w.rs[f.conn.from]
	n := m.a - 1
	return len(p.log) < n || !r.w.always() && !p.up || slices.Equal(p.log[:n], r.log[:n]) || !p.up || p.core.View().Tenure != m.view.Tenure
}

// grant is follower.grant.
func (r *wReplica) grant(f *wFollow, m wMsg) {
	from := walkIDs[f.conn.from]
	if m.returned {
		r.core.GrantReturned(from, m.view.Num)
	}
	if m.lease != 0 && r.core.Grant(from, m.view.Num, m.grant, r.time()) {
		f.lease, f.fresh = m.lease, true
	}
	if r.w.mutant == "nograntwait" {
		r.core.given = given{}
	}
}

func (r *wReplica) follows(f *wFollow, m wMsg) {
	if !f.started {
		r.w.fail("driver: type %d before Start", m.typ)
		return
	}
	r.core.Follow(m.commit)
	r.settle()
}

func (r *wReplica) cut(f *wFollow, to int) bool {
	if to >= len(r.log) {
		return true
	}
	if wal.LSN(to) < r.core.Commit() {
		if r.w.mode != walkFlushCrash {
			r.w.fail("C4 %s is told to cut at %d below %d", walkIDs[r.i], to, r.core.Commit())
		}
		r.leave(f)
		return false
	}
	r.w.tr("%s cuts %v after %d", walkIDs[r.i], r.log, to)
	r.log = slices.Clone(r.log[:to])
	r.durable = min(r.durable, to)
	r.core.CutTo(wal.LSN(to))
	return true
}

// endBurst is follower.endBurst, in up to three steps.
func (r *wReplica) endBurst(f *wFollow) {
	w := r.w
	if f.dirty && w.mutant != "ackearly" {
		if f.fresh {
			r.ack(f, false)
			f.fresh = false
			return
		}
		r.durable = len(r.log)
		r.core.Durable(r.core.Written())
		f.dirty = false
		r.settle()
		return
	}
	if f.started && r.core.Suspect() && !r.copying && (int(r.core.durable) >= f.caught || w.mutant == "launder") {
		r.core.Caught()
		r.suspect = false
	}
	r.ack(f, false)
	f.fresh = false
	f.held, r.busy = false, logFree
	w.forget()
}

func (r *wReplica) ack(f *wFollow, copied bool) {
	if !f.started || r.follow != f {
		return
	}
	m := wMsg{typ: msgAck, view: r.core.View(), nonce: f.nonce, lease: f.lease, copied: copied, suspect: r.core.Suspect(), written: r.core.written, stored: r.core.durable}
	switch r.w.mutant {
	case "ackearly":
		m.stored = m.written
	case "confirmany":
		if f.msg.view.Num != 0 {
			m.view = f.msg.view
		}
	}
	f.conn.send(&f.conn.toPrim, m)
}

// answers is a step of one of a primary's streams: it takes what the peer said.
func (r *wReplica) answers() {
	w := r.w
	j := r.some(func(_ int, s *wStream) bool { return s.conn != nil && (len(s.conn.toPrim) > 0 || s.conn.broken) })
	if j < 0 {
		return
	}
	s := r.streams[j]
	c := s.conn
	if len(c.toPrim) == 0 {
		w.forget()
		r.settle()
		return
	}
	m := c.toPrim[0]
	c.toPrim = c.toPrim[1:]
	switch m.typ {
	case msgStale:
		w.breakConn(c)
		c.toPrim = nil
		r.observe(m.view)
	case msgWelcome:
		r.serve(s, c, m)
	case msgAck:
		r.acked(s, c, m)
	}
	w.forget()
}

// serve is stream.serve.
func (r *wReplica) serve(s *wStream, c *wConn, m wMsg) {
	w := r.w
	if c.broken {
		c.toPrim = nil
		return
	}
	if !r.core.State().Primary() || r.core.View().Tenure != s.tenure {
		w.breakConn(c)
		return
	}
	common := 0
	for common < min(len(r.log), len(m.log)) && r.log[common] == m.log[common] {
		common++
	}
	if common < m.applied && !m.copying {
		if w.mode != walkFlushCrash {
			w.fail("C4 %s and %s share %d records, %d are applied", walkIDs[r.i], walkIDs[c.to], common, m.applied)
		}
		w.breakConn(c)
		return
	}
	view := r.core.View()
	peer := r.core.find(walkIDs[c.to])
	if peer == nil {
		w.fail("driver: %s has a stream to %s, which is no target", walkIDs[r.i], walkIDs[c.to])
		return
	}
	member := view.Has(walkIDs[c.to])
	needsCopy := !peer.required && (m.copying || w.one(4) && int(r.core.Commit()) >= m.applied)
	if m.copying && member {
		w.fail("C6 member %s of view %d has an incomplete copy", walkIDs[c.to], view.Num)
		return
	}
	r.nextID++
	s.id, s.up, s.direct, s.copy, s.next = r.nextID, true, false, needsCopy, common+1
	c.id = s.id
	end := len(r.log)
	if r.sealed {
		end++
	}
	c.send(&c.toPeer, wMsg{typ: msgView, view: view})
	if needsCopy {
		to := int(r.core.Commit())
		s.next = to + 1
		c.send(&c.toPeer, wMsg{typ: msgCopy, view: view, log: slices.Clone(r.log[:to]), b: end})
	} else {
		c.send(&c.toPeer, wMsg{typ: msgStart, view: view, a: common, b: end})
	}
	r.core.PeerUp(walkIDs[c.to], s.id, needsCopy && w.mutant != "copyunfinished")
	r.settle()
}

func (r *wReplica) acked(s *wStream, c *wConn, m wMsg) {
	a := Ack{From: walkIDs[c.to], Stream: c.id, View: m.view.Num, Tenure: m.view.Tenure, Written: m.written, Durable: m.stored, Nonce: m.nonce,
		Suspect: m.suspect, Lease: m.lease, At: r.time()}
	p := r.core.find(a.From)
	if p == nil {
		return
	}
	switch r.w.mutant {
	case "addbehind":
		if !p.required && r.core.State().Primary() {
			a.Written, a.Durable = max(a.Written, r.core.commit), max(a.Durable, r.core.commit)
		}
	case "ackwritten":
		a.Durable = a.Written
	case "notenure":
		a.Tenure = r.core.View().Tenure
	case "leasefromack":
		if a.Lease != 0 {
			a.Lease += a.At - r.core.lease.asked()
			r.core.lease.latest = max(r.core.lease.latest, a.Lease)
		}
	case "leaseofone":
		for _, q := range r.core.peers {
			q.lease = max(q.lease, a.Lease)
		}
	case "keepreturned":
		r.core.lease.ended = 0
	}
	if err := r.core.Acked(a); err != nil && r.w.mutant == "" {
		r.w.fail("driver: %v", err)
	}
	if m.copied {
		r.core.Copied(a.From, a.Stream)
	}
	r.settle()
}

// propose sends a proposal on its way.
func (r *wReplica) propose(p *viewsvc.Proposal) {
	w := r.w
	w.tr("%s asks to %s: %s %v", walkIDs[r.i], p.Kind, p.Primary, p.Backups)
	w.props = append(w.props, &wProposal{r: r, core: r.core, p: p})
	switch w.mutant {
	case "addlate":
		for _, q := range r.core.peers {
			q.required = q.required && r.core.view.Has(q.id)
		}
	case "dropearly":
		for _, q := range r.core.peers {
			q.required = q.required && (q.id == p.Primary || slices.Contains(p.Backups, q.id))
		}
		r.core.advance()
	}
}
