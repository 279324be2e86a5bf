package main

import (
	"fmt"
	"slices"

	"lockstep/blockdev"
	"lockstep/replication/gateway"
	"lockstep/viewsvc"
)

// gatewayProc is a gateway's process: what it has in flight is decided by the real gateway.Flight (G2, G3, G5, G12). How it finds
// the primary, connects, repeats and fences is retold from package gateway, without its goroutines. A direct one is no
// gateway: its client is attached to the primary itself, and whatever was under way when a connection ends may happen
// at any later time, or never.
type gatewayProc struct {
	c        *cluster
	name     string // of its machine
	direct   bool
	clients  []*client
	p        *proc // nil: it is dead
	runs     int
	flight   gateway.Flight
	sessions []*session        // of clients, and those that are fenced
	route    route             // to the primary
	eager    bool              // its clients read as fast as they can, for now
	heard    bool              // it knows the volume
	claim    viewsvc.Claim     // the newest that it heard of
	newest   map[string]uint64 // generation of each name that a client brought
}

// route is where a primary is.
type route struct {
	tenure viewsvc.ViewNum
	addr   string
}

// session is a client's, and has a connection to the primary.
type session struct {
	g          *gatewayProc
	k          *client
	gone       bool   // the client has hung up
	alone      bool   // it wants the volume for itself
	ready      bool   // the client may work
	evicted    bool   // a claim has ended it
	refused    error  // why it need not try any more
	era, start uint64 // viewsvc.Claim's
	name       string // "": anonymous
	numbers    string
	generation uint64
	no         int
	size       uint64 // of the disk, in blocks, as the client was told when it came
	lane       gateway.Lane
	asked      []*op     // by the client, and not answered
	e          *endpoint // nil: not connected
	live       bool      // what was in flight has been sent again
	owed       []*op     // sent, and of no interest to anybody any more: G5
}

func (g *gatewayProc) start() {
	if g.p != nil {
		return
	}
	g.runs++
	g.p = g.c.w.newProc(fmt.Sprintf("%s.%d", g.name, g.runs))
	g.flight, g.sessions, g.newest, g.heard, g.claim = gateway.Flight{}, nil, map[string]uint64{}, false, viewsvc.Claim{}
	g.p.Go(g.watch)
	for _, k := range g.clients {
		g.p.Go(k.work)
	}
}

// kill ends the process and its clients. What was under way is still carried out, perhaps.
func (g *gatewayProc) kill() {
	if g.p == nil {
		return
	}
	g.c.w.tr("%s is killed", g.p.name)
	g.p.kill()
	g.c.net.drop(g.p, false)
	g.p = nil
	for _, s := range g.sessions {
		if s.k.named {
			s.k.unresolved = slices.Concat(s.k.unresolved, s.asked, s.owed)
		}
		s.k.s = nil
	}
}

// attach begins a session; nil: the client is refused.
func (g *gatewayProc) attach(k *client) *session {
	if g.claim.Owner != "" && !k.alone && !g.direct || k.named && !g.heard {
		return nil
	}
	k.lives++
	g.c.sessions++
	s := &session{g: g, k: k, no: g.c.sessions, size: g.c.blocks(), alone: k.alone, ready: !k.alone, era: g.claim.SessionEra()}
	if !g.direct {
		s.name = fmt.Sprintf("c%d.%d", k.no, k.lives)
		s.numbers = s.name
		if k.named {
			s.name, s.generation = fmt.Sprintf("c%d", k.no), (uint64(k.lives)+g.claim.Num)<<32
			s.owed, k.unresolved = k.unresolved, nil
		}
	}
	g.sessions = append(g.sessions, s)
	g.p.Go(s.run)
	return s
}

// watch is the watcher of the volume's views: it leaves a primary that is none any more (G7).
func (g *gatewayProc) watch() {
	for {
		g.p.sleep(watchEvery)
		if said, err := g.c.views.primary(g.p, g.name); err == nil {
			g.heard = true
			g.learn(said.claim)
			if r := said.route; r.tenure >= g.route.tenure && r != g.route {
				g.route = r
				for _, s := range g.sessions {
					s.cut("another is primary")
				}
			}
		}
		for _, s := range g.sessions { // nobody waits for ever for a connection that died without a word
			if len(s.asked) > 0 && g.c.w.now-s.asked[0].since > clientTimeout {
				s.cut("no answer")
			}
		}
	}
}

// cut ends the connection; run makes the next.
func (s *session) cut(why string) {
	if s.e != nil {
		s.g.c.w.tr("%s leaves the primary: %s", s, why)
		s.e.Close()
	}
}

func (s *session) String() string { return fmt.Sprintf("%s session %d", s.g.p.name, s.no) }

// run keeps the session connected. It ends when the client has hung up and nothing of it can come any more.
func (s *session) run() {
	c := s.g.c
	var e *endpoint
	if s.alone {
		if e = s.attachAlone(); e == nil {
			if s.k.s == s {
				s.k.s = nil
			}
			s.gone = true
		} else {
			s.ready = true
		}
	}
	for !s.gone || len(s.owed) > 0 {
		if e == nil {
			e = s.connect()
		}
		if e == nil && s.refused != nil {
			s.fenced()
			break
		}
		if e == nil {
			s.g.p.sleep(c.w.between(c.reconnect/2, 2*c.reconnect))
			continue
		}
		s.begin(e)
		for !s.gone {
			m, err := e.recv()
			if err != nil || s.gone {
				break
			}
			s.answered(m.(answer))
		}
		e.Close()
		s.lost()
		e = nil
	}
	s.g.flight.Bury(&s.lane)
	s.g.sessions = slices.DeleteFunc(s.g.sessions, func(o *session) bool { return o == s })
	s.g.sendWoken()
	if s.alone && s.ready && !s.k.named && !s.evicted { // a named one keeps it for its next process
		s.release()
	}
}

// connect finds the primary and attaches (G6).
func (s *session) connect() *endpoint {
	g, w := s.g, s.g.c.w
	addr := g.route.addr
	if w.one(3) { // before the view service says so
		addr = g.c.machines[w.rng.IntN(len(g.c.machines))].name + ":" + clientPort
	} else if said, err := g.c.views.primary(g.p, g.name); err == nil && said.route.tenure >= g.route.tenure {
		g.route, addr = said.route, said.route.addr
	}
	if addr == "" {
		return nil
	}
	e, err := g.c.net.Dial(nobody, g.p, g.name, addr)
	if err != nil {
		return nil
	}
	e.p = g.p
	s.generation++
	if s.k.named { // a name that is fenced may be in use again
		s.generation = max(s.generation, g.newest[s.name]+1)
		g.newest[s.name] = s.generation
	}
	id := blockdev.SessionID{Name: s.name, Generation: s.generation, Numbers: s.numbers, Era: s.era, Exclusive: s.alone}
	if s.name == "" {
		id = blockdev.SessionID{}
	}
	e.post(attachMsg{s.no, id})
	e.deadline = w.now + clientTimeout
	m, err := e.recv()
	if err == nil && s.refusal(m.(attached).err) {
		s.refused = m.(attached).err
	}
	if err != nil || m.(attached).err != nil || m.(attached).size < s.size {
		e.Close()
		return nil
	}
	e.deadline = 0
	w.tr("%s attached to %s, generation %#x, %d asked", s, addr, s.generation, len(s.asked))
	return e
}

// begin sends what is in flight again (G2). What the session owed is fenced.
func (s *session) begin(e *endpoint) {
	s.fenced()
	if s.gone {
		return
	}
	s.e, s.live = e, true
	if s.g.direct {
		s.send(s.asked)
		return
	}
	s.g.flight.Rewind(&s.lane)
	s.take()
	s.g.sendWoken()
}

// fenced is when nothing that the session owes can be carried out any more.
func (s *session) fenced() {
	h := s.g.c.history
	for _, o := range s.owed {
		h.moment++
		o.fenced = h.moment
	}
	if len(s.owed) > 0 {
		s.g.c.w.stats.note(ghostFenced)
	}
	s.owed = nil
	s.g.flight.Bury(&s.lane)
}

// lost is the end of a connection.
func (s *session) lost() {
	s.e, s.live = nil, false
	if s.g.direct {
		s.asked = slices.DeleteFunc(s.asked, func(o *op) bool {
			if o.req.Op == blockdev.OpFlush {
				return false
			}
			o.s = nil
			return true
		})
	}
}

// submit takes requests of the client.
func (s *session) submit(ops []*op) {
	for _, o := range ops {
		o.s, o.by, o.since = s, s.g.p, s.g.c.w.now
		s.asked = append(s.asked, o)
		if !s.g.direct {
			s.g.flight.Admit(&s.lane, &o.req)
		}
	}
	switch {
	case !s.live:
	case s.g.direct:
		s.send(ops)
	default:
		s.take()
	}
}

// take sends what may be sent.
func (s *session) take() {
	var ops []*op
	for _, q := range s.g.flight.Take(&s.lane, nil) {
		ops = append(ops, s.g.c.history.ops[q.Tag-1])
	}
	s.send(ops)
}

func (s *session) send(ops []*op) {
	if len(ops) == 0 {
		return
	}
	m := ask{make([]wireReq, len(ops))}
	for i, o := range ops {
		q := &o.req
		if o.sent > 0 && q.Op.Mutates() {
			s.g.c.w.stats.note(replayed)
		}
		o.since = s.g.c.w.now
		o.sent++
		m.reqs[i] = wireReq{q.Tag, q.ID, q.Op, q.Flags, q.Offset, q.Length, slices.Clone(q.Data)} // the node's own
	}
	s.e.post(m)
}

// sendWoken sends requests that had to wait for others (G3).
func (g *gatewayProc) sendWoken() {
	for l := g.flight.Woken(); l != nil; l = g.flight.Woken() {
		for _, s := range g.sessions {
			if &s.lane == l && s.live {
				s.take()
			}
		}
	}
}

// answered passes an answer on (G1).
func (s *session) answered(a answer) {
	c := s.g.c
	i := slices.IndexFunc(s.asked, func(o *op) bool { return o.req.Tag == a.tag })
	if i < 0 {
		c.w.fail("%s is answered %d, which it did not ask", s, a.tag)
		return
	}
	o := s.asked[i]
	s.asked = slices.Delete(s.asked, i, i+1)
	o.s = nil
	if !s.g.direct {
		s.g.flight.Complete(&s.lane, &o.req)
	}
	s.k.answered(o, a)
	c.answeredAlone(s, o)
	s.g.sendWoken()
}

// close is the client's end. What was sent keeps its bytes until the session is fenced (G5).
func (s *session) close() {
	s.g.c.w.tr("%s: the client hangs up, %d asked", s, len(s.asked))
	s.gone = true
	if !s.g.direct && s.g.flight.Abandon(&s.lane) > 0 {
		for _, o := range s.asked {
			if o.req.Op.Mutates() {
				s.owed = append(s.owed, o)
			}
		}
	}
	s.g.c.history.moment++
	for _, o := range s.asked {
		if o.s = nil; !s.g.direct {
			o.left = s.g.c.history.moment
		}
	}
	s.asked, s.live = nil, false
	if s.e != nil {
		if there := s.e.peer; there.coming > 0 || len(there.in) > 0 {
			s.g.c.w.stats.note(leftUnread)
		}
		s.e.Close()
	}
	s.g.sendWoken()
}
