package main

import (
	"errors"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// The messages between a client and a node: NBD without its bytes.
type (
	attachMsg struct {
		client int
		id     blockdev.SessionID
	}
	attached struct {
		err  error
		size uint64 // blocks
	}
	ask    struct{ reqs []wireReq }
	answer struct {
		tag  uint64
		err  error
		data []byte
	}
	wireReq struct {
		tag    uint64
		id     uint64
		op     blockdev.Op
		flags  blockdev.Flags
		off    uint64
		length uint32
		data   []byte
	}
)

// serveClient is the NBD server of one connection.
func (m *machine) serveClient(p *proc, e *endpoint) {
	first, err := e.recv()
	if err != nil || m.replica == nil {
		return
	}
	hello, ok := first.(attachMsg)
	if !ok {
		return
	}
	c := &front{m: m, p: p, e: e, no: hello.client, taken: map[uint64]viewsvc.ViewNum{}}
	r := m.replica
	s, err := r.Attach(nobody, hello.id, c)
	e.post(attached{err, r.Geometry().Size / blockdev.BlockSize})
	if err != nil {
		return
	}
	for {
		next, err := e.recv()
		if err != nil {
			break
		}
		if m.c.lazy > 0 && m.w.one(20) {
			p.sleep(m.w.between(0, m.c.lazy)) // the process has other work, and this lies unread
		}
		var burst []*blockdev.Request
		for _, q := range next.(ask).reqs {
			r := &blockdev.Request{Op: q.op, Flags: q.flags, Offset: q.off, Length: q.length, Tag: q.tag, ID: q.id, Data: q.data}
			if q.op == blockdev.OpRead {
				r.Data = make([]byte, q.length)
				c.reads++
				c.taken[q.tag] = m.c.openIn
			}
			if m.c.minCopies > 1 && r.Op.Mutates() && len(m.c.views.current().Members()) < m.c.minCopies {
				m.w.stats.note(minWaited)
			}
			burst = append(burst, r)
		}
		s.Submit(burst)
	}
	s.Close()
}

// front is the connection as the session sees it.
type front struct {
	m     *machine
	p     *proc
	e     *endpoint
	no    int                        // of the client
	reads int                        // submitted and not completed
	taken map[uint64]viewsvc.ViewNum // by tag of a read: the newest tenure that any primary served in when it was submitted
}

// Complete implements blockdev.Client.
func (f *front) Complete(done []*blockdev.Request) {
	if f.p.dead {
		return
	}
	changed, taken := false, viewsvc.ViewNum(0)
	for _, q := range done {
		if errors.Is(q.Err, blockdev.ErrNoSpace) {
			f.p.w.after(0, func() { f.m.c.noSpace(f.m) })
		}
		a := answer{tag: q.Tag, err: q.Err}
		if q.Op == blockdev.OpRead {
			a.data = q.Data
			f.reads--
			if q.Err == nil {
				taken = max(taken, f.taken[q.Tag])
			}
			delete(f.taken, q.Tag)
		}
		changed = changed || q.Op.Mutates() && q.Err == nil
		f.e.post(a)
	}
	// A little later, when no lock is held: the invariants hold at every moment.
	f.p.w.after(0, func() { f.m.c.acknowledged(f.m, changed, taken) })
}

// Abort implements blockdev.Client.
func (f *front) Abort(error) {
	if f.p.dead {
		return
	}
	if f.reads > 0 {
		f.p.w.stats.note(readsFenced)
	}
	// Not at once: in which order a replica ends its sessions is chance, and here nothing may be.
	f.p.w.after(time.Duration(f.no+1), func() {
		if f.e.coming > 0 || len(f.e.in) > 0 {
			f.p.w.stats.note(fencedUnread)
		}
		f.e.Close()
	})
}
