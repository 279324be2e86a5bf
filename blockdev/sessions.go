package blockdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// The session table says which numbered requests the history holds, so that whoever is primary recognises a request
// that is sent again. A session numbers its requests by slot: a slot has one request at a time, and the next one in it
// has a higher sequence number. So one number for each slot says everything about all requests that may still be
// repeated, and its size is bounded however long one of them is kept waiting.
//
// It is a function of the committed records and grows only: recovery, a log that is read twice and a table that comes
// from another member cannot do harm. On disk it covers at least what the checkpoint covers (B10); the log has the rest.
//
// A record of a numbered request has the session's number and the request's (RequestID). A KindAttach record has the
// session's number and the generation that attached.
const (
	// MaxSlots is how many requests a session has under way at most. A higher slot is not remembered.
	MaxSlots = 256
	// MaxSessions is how many sessions are remembered: of more, those that have written last.
	MaxSessions = 256

	sessionsName      = "sessions"
	sessionsMagic     = 0x535345534b4c // "LKSESS", little-endian
	sessionsSlotBytes = 1 << 20        // two of them, written as those of meta
	sessionsHead      = 28             // magic 8, generation 8, length 4, crc32c 4 of all of it, zero 4
	sessionHead       = 28             // id 8, generation 8, lsn 8, slots 4; then 8 for each slot in use
)

// RequestID is a request's number: a slot and a sequence number, which is not 0.
func RequestID(slot int, seq uint64) uint64 { return seq<<16 | uint64(slot) }

// RequestSlot and RequestSeq are its parts.
func RequestSlot(id uint64) int { return int(id & 0xffff) }

// RequestSeq is the sequence number in a request's number.
func RequestSeq(id uint64) uint64 { return id >> 16 }

// mark is what a record says about a session.
type mark struct {
	session, number uint64
	attach          bool
}

// SessionMemory is what the history holds of a session.
type SessionMemory struct {
	Generation uint64   // newest that wrote
	Slots      []uint64 // by slot: the highest sequence number; 0: none
	last       wal.LSN
}

// sessionTable is the table in memory. Guarded by Store.mu.
type sessionTable struct {
	all   map[uint64]*SessionMemory
	id    uint64         // of the session below
	at    *SessionMemory // the one that was looked for last
	dirty bool           // there is news since the last save
}

// fold takes in what a committed record says.
func (t *sessionTable) fold(m mark, lsn wal.LSN) {
	s := t.find(m.session, lsn)
	t.dirty = true
	s.last = max(s.last, lsn)
	if m.attach {
		s.Generation = max(s.Generation, m.number)
		return
	}
	slot := RequestSlot(m.number)
	if slot >= MaxSlots {
		return
	}
	for len(s.Slots) <= slot {
		s.Slots = append(s.Slots, 0)
	}
	s.Slots[slot] = max(s.Slots[slot], RequestSeq(m.number))
}

// find finds a session, or makes it at the cost of the one that wrote longest ago.
func (t *sessionTable) find(id uint64, lsn wal.LSN) *SessionMemory {
	if t.at != nil && t.id == id {
		return t.at
	}
	s := t.all[id]
	if s == nil {
		if len(t.all) >= MaxSessions {
			oldest, at := uint64(0), ^wal.LSN(0)
			for id, s := range t.all {
				if s.last < at {
					oldest, at = id, s.last
				}
			}
			delete(t.all, oldest)
		}
		if t.all == nil {
			t.all = make(map[uint64]*SessionMemory)
		}
		s = &SessionMemory{last: lsn}
		t.all[id] = s
	}
	t.id, t.at = id, s
	return s
}

// encode is the table as on disk and on the wire: sessions one after the other.
func (t *sessionTable) encode(p []byte) []byte {
	le := binary.LittleEndian
	for id, s := range t.all {
		p = le.AppendUint64(p, id)
		p = le.AppendUint64(p, s.Generation)
		p = le.AppendUint64(p, uint64(s.last))
		count := len(p)
		p = le.AppendUint32(p, 0)
		n := uint32(0)
		for slot, seq := range s.Slots {
			if seq != 0 {
				p = le.AppendUint64(p, RequestID(slot, seq))
				n++
			}
		}
		le.PutUint32(p[count:], n)
	}
	return p
}

var errBadSessions = errors.New("blockdev: malformed session table")

// merge takes in what another table, or an earlier one, knows.
func (t *sessionTable) merge(p []byte) error {
	le := binary.LittleEndian
	for len(p) > 0 {
		if len(p) < sessionHead {
			return errBadSessions
		}
		id, generation, last, n := le.Uint64(p), le.Uint64(p[8:]), wal.LSN(le.Uint64(p[16:])), le.Uint32(p[24:])
		p = p[sessionHead:]
		if n > MaxSlots || len(p) < int(n)*8 {
			return errBadSessions
		}
		t.fold(mark{id, generation, true}, last)
		for i := range int(n) {
			t.fold(mark{id, le.Uint64(p[i*8:]), false}, last)
		}
		p = p[n*8:]
	}
	return nil
}

// sessionsFile is the table on disk. Guarded by Store.applyMu.
type sessionsFile struct {
	f          vfs.File
	generation uint64
	buf        []byte
}

// openSessions opens the file, which a replica that was formatted by an earlier release lacks.
func openSessions(fsys vfs.FS, dir string) (*sessionsFile, error) {
	f, err := fsys.Open(path.Join(dir, sessionsName))
	if errors.Is(err, fs.ErrNotExist) {
		if err = createSparse(fsys, path.Join(dir, sessionsName), 2*sessionsSlotBytes); err == nil {
			err = fsys.SyncDir(dir)
		}
		if err == nil {
			f, err = fsys.Open(path.Join(dir, sessionsName))
		}
	}
	if err != nil {
		return nil, err
	}
	return &sessionsFile{f: f}, nil
}

// load reads the newer sound slot, which must not be older than what the checkpoint needs. A file without one is that of
// a replica that was never checkpointed with sessions.
func (s *sessionsFile) load(t *sessionTable, need uint64) error {
	if err := syncOpened(s.f); err != nil {
		return fmt.Errorf("sync sessions: %w", err)
	}
	var newest []byte
	for i := range int64(2) {
		head := make([]byte, sessionsHead)
		if _, err := s.f.ReadAt(head, i*sessionsSlotBytes); err != nil {
			return fmt.Errorf("read sessions: %w", err)
		}
		le := binary.LittleEndian
		n := le.Uint32(head[16:])
		if le.Uint64(head) != sessionsMagic || n > sessionsSlotBytes-sessionsHead {
			continue
		}
		b := make([]byte, sessionsHead+int(n))
		if _, err := s.f.ReadAt(b, i*sessionsSlotBytes); err != nil {
			return fmt.Errorf("read sessions: %w", err)
		}
		sum := le.Uint32(b[20:])
		le.PutUint32(b[20:], 0)
		if g := le.Uint64(b[8:]); crc32.Checksum(b, castagnoli) == sum && g > s.generation {
			s.generation, newest = g, b[sessionsHead:]
		}
	}
	if s.generation < need {
		return &DamagedError{sessionsName, fmt.Sprintf("has generation %d of the session table, the checkpoint needs %d", s.generation, need)}
	}
	if err := t.merge(newest); err != nil {
		return &DamagedError{sessionsName, err.Error()}
	}
	t.dirty = false
	return nil
}

// save writes a table, encoded behind sessionsHead bytes of room, and makes it stable; then a second copy, as meta does.
// After a refusal for want of space it may be called again: there is still a sound slot.
func (s *sessionsFile) save(b []byte) error {
	le := binary.LittleEndian
	generation := s.generation + 1
	clear(b[:sessionsHead])
	le.PutUint64(b, sessionsMagic)
	le.PutUint64(b[8:], generation)
	le.PutUint32(b[16:], uint32(len(b)-sessionsHead))
	le.PutUint32(b[20:], crc32.Checksum(b, castagnoli))
	at := int64(generation%2) * sessionsSlotBytes
	if _, err := s.f.WriteAt(b, at); err != nil {
		return fmt.Errorf("write sessions: %w", noSpace(err))
	}
	if err := s.f.Sync(); err != nil {
		return fmt.Errorf("sync sessions: %w", err)
	}
	s.generation = generation
	if _, err := s.f.WriteAt(b, sessionsSlotBytes-at); err != nil {
		return fmt.Errorf("write sessions: %w", noSpace(err))
	}
	return nil
}

// saveSessions makes the table stable, with all that is committed (B10). applyMu is held.
func (s *Store) saveSessions() error {
	f := s.sessionsAt
	s.mu.Lock()
	dirty := s.sessions.dirty
	if dirty {
		f.buf = s.sessions.encode(append(f.buf[:0], make([]byte, sessionsHead)...))
		s.sessions.dirty = false
	}
	s.mu.Unlock()
	if !dirty {
		return nil
	}
	err := f.save(f.buf)
	if err != nil {
		s.mu.Lock()
		s.sessions.dirty = true
		s.mu.Unlock()
	}
	return err
}

// Session is what the committed history holds of a session; the zero value if nothing.
func (s *Store) Session(id uint64) SessionMemory {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.sessions.all[id]
	if m == nil {
		return SessionMemory{}
	}
	return SessionMemory{Generation: m.Generation, Slots: append([]uint64(nil), m.Slots...), last: m.last}
}

// Sessions is the whole table, for a replica that gets a copy of the image instead of the log.
func (s *Store) Sessions() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions.encode(nil)
}

// MergeSessions takes in the table of a member of the view: only what is committed there. It is stable with the next
// checkpoint.
func (s *Store) MergeSessions(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions.merge(b)
}

// MaxSessionsBytes bounds what Sessions returns.
const MaxSessionsBytes = MaxSessions * (sessionHead + 8*MaxSlots)
