package replication

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"lockstep/blockdev"
	"lockstep/wal"
)

// A gateway that lost its connection cannot know what became of the requests that were not answered, and sends them
// again, to this primary or the next. One that changes the disk must not be carried out twice: between the two, another
// gateway's client may have seen it and have overwritten it.
//
// So a gateway numbers its requests (SessionID.Numbers), and the number goes into the log with each record. What is
// committed is in the store's session table (blockdev/sessions.go), on every member, in whatever way it got there: so
// the next primary knows. What was only ordered is known to the primary that ordered it (memory): it dies with the
// tenure, together with the doubt.
//
//   - R1 A number is looked up under the lock that orders requests, after all older attachments of the session have
//     been fenced (I11): whatever they ordered is known by then.
//   - R2 A request whose number is known is answered when the record that has it is committed, and not ordered.
//   - R3 The newest generation of a session that wrote is in the log, ahead of what it wrote: a KindAttach record. An
//     older one, or one that is as old, does not attach, at this primary or the next.
//
// Generations are those of the session's name. Numbers are those of SessionID.Numbers, which is the name itself or, where
// the name's owner may come back without its memory of them, a space that was new when it came: what one process of that
// owner repeats is recognised, and what the next one numbers anew is not taken for a repetition. R1 holds for a space as
// for a name, for only the attachments of one name use it.
//
// It is forgotten what a session did that wrote long ago: after blockdev.MaxSessions others, of which one with a space of
// its own counts twice. Its name is as old as its last KindAttach record.

// memory is what a primary knows of a name, of sessions or of a space of numbers, in this tenure. Guarded by Replica.mu.
type memory struct {
	number     uint64    // of the name, in records
	users      int       // attachments that use it
	attached   int       // attachments of the name that are not over
	generation uint64    // newest that attached
	logged     uint64    // newest of which a KindAttach record was made. Whoever builds frames owns it
	slots      []ordered // by slot
	last       wal.LSN   // of the newest record
}

// ordered is the newest request in a slot, and its last record. LSN 0: it is of an earlier tenure, and committed.
type ordered struct {
	seq uint64
	lsn wal.LSN
}

// sessionNumber is what a name is called in records, for it has no room there. Two names of a volume have the same with a
// probability of 2^-64.
func sessionNumber(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.LittleEndian.Uint64(sum[:]) | 1 // 0 is none
}

// remember finds what is known of a name, with mu held, when a session attaches to an open primary.
func (r *Replica) remember(name string) *memory {
	if m := r.memories[name]; m != nil {
		return m
	}
	if len(r.memories) >= blockdev.MaxSessions {
		for name, m := range r.memories {
			if m.users == 0 && m.last <= r.core.Commit() { // the store knows all that it knows
				delete(r.memories, name)
			}
		}
	}
	m := &memory{number: sessionNumber(name)}
	known := r.store.Session(m.number)
	m.generation, m.logged = known.Generation, known.Generation
	m.slots = make([]ordered, len(known.Slots))
	for i, seq := range known.Slots {
		m.slots[i].seq = seq
	}
	r.memories[name] = m
	return m
}

// numbered tells whether a request has a number that is looked after.
func (s *session) numbered(q *blockdev.Request) bool {
	return s.space != nil && blockdev.RequestSeq(q.ID) != 0 && blockdev.RequestSlot(q.ID) < blockdev.MaxSlots
}

// repeated takes a request that was ordered before (R2). mu is held.
func (s *session) repeated(q *blockdev.Request, a *after) bool {
	slot := blockdev.RequestSlot(q.ID)
	if !s.numbered(q) || slot >= len(s.space.slots) {
		return false
	}
	known := s.space.slots[slot]
	switch seq := blockdev.RequestSeq(q.ID); {
	case seq > known.seq:
		return false
	case seq < known.seq:
		q.Err = fmt.Errorf("replication: request %d of slot %d after request %d: %w", seq, slot, known.seq, blockdev.ErrInvalid)
		a.completed = append(a.completed, pendingReq{req: q, s: s})
		return true
	}
	p := pendingReq{lsn: known.lsn, req: q, s: s, stable: q.Flags&blockdev.FlagFUA != 0}
	if p.lsn == 0 {
		p.lsn = s.r.core.Commit()
	}
	s.r.await(p, a)
	return true
}

// note remembers a request that got its LSN. mu is held.
func (s *session) note(q *blockdev.Request, l wal.LSN) {
	if !s.numbered(q) {
		return
	}
	m, slot := s.space, blockdev.RequestSlot(q.ID)
	if slot >= len(m.slots) {
		m.slots = slices.Grow(m.slots, slot+1-len(m.slots))[:slot+1]
	}
	m.slots[slot] = ordered{blockdev.RequestSeq(q.ID), l}
	m.last, s.mem.last = l, l
}

// letGo is the end of an attachment, with mu held, once nothing of it is noted any more.
func (s *session) letGo() {
	if s.mem == nil || s.parted {
		return
	}
	s.parted = true
	s.mem.users--
	s.mem.attached--
	s.r.idle.Broadcast() // to the next attachment of the name
	if s.space != nil {
		s.space.users--
	}
}

// announce puts a KindAttach record into the frame, ahead of the first write of a generation (R3).
func (s *session) announce(fb *frameBuf) {
	if m := s.mem; m != nil && m.logged < s.id.Generation {
		m.logged = s.id.Generation
		fb.session, fb.number = m.number, s.id.Generation
		fb.add(wal.Record{Kind: wal.KindAttach}, nil, nil)
	}
}
