package stamped

import (
	"errors"
	"path/filepath"
	"testing"
)

// script drives a ledger of a few whole cells by hand.
type script struct {
	t *testing.T
	l *Ledger
}

func newScript(t *testing.T) *script {
	return &script{t, NewLedger(Layout{Whole: 4})}
}

func (s *script) begin(first, n int, zero bool) Write {
	s.t.Helper()
	w, ok := s.l.Begin(first, n, zero)
	if !ok {
		s.t.Fatalf("cells %d+%d are busy", first, n)
	}
	return w
}

func (s *script) done(first, n int, zero bool) Write {
	s.t.Helper()
	w := s.begin(first, n, zero)
	s.l.Ack(w)
	return w
}

// holds is what a cell holds that the write did; the zero Write stands for zeroes.
func (s *script) holds(cell int, w Write) []byte {
	b := make([]byte, blockBytes)
	if w.Seq != 0 && !w.Zero {
		stamp{run: s.l.run, cell: uint64(cell), seq: w.Seq}.put(b)
	}
	return b
}

// read reads a cell now.
func (s *script) read(cell int, w Write) error {
	var r Read
	s.l.BeginRead(&r, cell, 1)
	return s.l.EndRead(&r, s.holds(cell, w))
}

func (s *script) allow(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("must be allowed: %v", err)
	}
}

func (s *script) refuse(err error, want Fault) {
	s.t.Helper()
	var v *Violation
	if !errors.As(err, &v) || v.Fault != want {
		s.t.Fatalf("got %v, want a violation %q", err, want)
	}
}

func TestReadDuringWriteMayReturnOldOrNewButNotOldAfterNew(t *testing.T) {
	s := newScript(t)
	a := s.done(0, 1, false)
	b := s.begin(0, 1, false)
	s.allow(s.read(0, a))
	s.allow(s.read(0, b))
	s.refuse(s.read(0, a), Backward)
}

// Of two reads at the same time one may return the old, the other the new version, whichever ends first.
func TestConcurrentReadsAreNotOrdered(t *testing.T) {
	s := newScript(t)
	a := s.done(0, 1, false)
	b := s.begin(0, 1, false)
	var r1, r2 Read
	s.l.BeginRead(&r1, 0, 1)
	s.l.BeginRead(&r2, 0, 1)
	s.allow(s.l.EndRead(&r1, s.holds(0, b)))
	s.allow(s.l.EndRead(&r2, s.holds(0, a)))
}

func TestReadThatOutlivesWritesMayReturnAnyOfThem(t *testing.T) {
	s := newScript(t)
	var r [4]Read
	a := s.done(0, 1, false)
	for i := range r {
		s.l.BeginRead(&r[i], 0, 1)
	}
	z := s.done(0, 1, true)
	b := s.done(0, 1, false)
	for i, w := range []Write{a, z, b} {
		s.allow(s.l.EndRead(&r[i], s.holds(0, w)))
	}
	s.refuse(s.read(0, z), Lost)
	s.refuse(s.read(0, a), Lost)
}

func TestAbandonedWriteMayAppearUntilALaterOneIsAcknowledged(t *testing.T) {
	s := newScript(t)
	a := s.done(0, 1, false)
	b := s.begin(0, 1, false)
	s.l.Abandon(b)
	s.allow(s.read(0, a))
	c := s.begin(0, 1, false)
	s.allow(s.read(0, b))
	s.l.Ack(c)
	s.refuse(s.read(0, b), Lost)
}

func TestZeroesNeedAZeroing(t *testing.T) {
	s := newScript(t)
	s.allow(s.read(0, Write{})) // never written
	s.done(0, 1, false)
	s.refuse(s.read(0, Write{}), Lost)
	z := s.begin(0, 1, true)
	s.allow(s.read(0, z))
	s.l.Abandon(z)
	s.allow(s.read(0, z))
	s.done(0, 1, false)
	s.refuse(s.read(0, z), Lost)
}

// Zeroes read after an abandoned zeroing prove that it took effect.
func TestZeroingSeenMayNotVanish(t *testing.T) {
	s := newScript(t)
	a := s.done(0, 1, false)
	s.l.Abandon(s.begin(0, 1, true))
	s.allow(s.read(0, a))
	s.allow(s.read(0, Write{}))
	s.refuse(s.read(0, a), Backward)
}

func TestVersionFromTheFutureIsRefused(t *testing.T) {
	s := newScript(t)
	s.done(0, 1, false)
	s.refuse(s.read(0, Write{Seq: 7}), Unissued)
}

func TestStampOfAnotherRunIsRefused(t *testing.T) {
	s := newScript(t)
	w := s.done(0, 1, false)
	b := s.holds(0, w)
	s.l.run++
	var r Read
	s.l.BeginRead(&r, 0, 1)
	s.refuse(s.l.EndRead(&r, b), Foreign)
}

func TestBusyCellsAreNotClaimedTwice(t *testing.T) {
	s := newScript(t)
	w := s.begin(1, 2, false)
	for _, c := range [][2]int{{0, 2}, {1, 1}, {2, 2}, {0, 4}} {
		if _, ok := s.l.Begin(c[0], c[1], false); ok {
			t.Errorf("cells %v were claimed although 1 and 2 are busy", c)
		}
	}
	s.l.Ack(w)
	s.begin(0, 4, true)
}

// verify checks S6 with the given content of all cells.
func (s *script) verify(held ...Write) error {
	var r Read
	var all []byte
	s.l.BeginRead(&r, 0, len(held))
	for i, w := range held {
		all = append(all, s.holds(i, w)...)
	}
	if err := s.l.EndRead(&r, all); err != nil {
		return err
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	return s.l.halfWriteLocked(r.found)
}

func TestAbandonedWriteIsThereInWholeOrNotAtAll(t *testing.T) {
	for _, zero := range []bool{false, true} {
		setup := func() (s *script, a, b Write) {
			s = newScript(t)
			a = s.done(0, 4, false)
			b = s.begin(0, 3, zero)
			s.l.Abandon(b)
			return s, a, b
		}
		s, a, b := setup()
		s.allow(s.verify(a, a, a, a))
		s.allow(s.verify(b, b, b, a))

		s, a, b = setup()
		s.refuse(s.verify(b, b, a, a), HalfWrite)

		s, a, b = setup()
		c := s.done(2, 1, false) // covers what would have told
		s.allow(s.verify(b, b, c, a))
	}
}

func TestLedgerSurvivesAFile(t *testing.T) {
	s := newScript(t)
	a := s.done(0, 4, false)
	s.done(1, 1, true)
	b := s.begin(2, 2, false)
	name := filepath.Join(t.TempDir(), "ledger")
	if err := s.l.Save(name); err == nil {
		t.Fatal("saved with a write in flight")
	}
	s.l.Abandon(b)
	if err := s.l.Save(name); err != nil {
		t.Fatal(err)
	}
	l, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	s.l = l
	s.allow(s.read(0, a))
	s.refuse(s.read(1, a), Lost)
	s.allow(s.read(3, a))
	s.refuse(s.verify(a, Write{}, b, a), HalfWrite)
}

func TestLayoutTilesItsBlocks(t *testing.T) {
	l := Layout{Base: 8192, Whole: 3, Odd: 2}
	end := l.Base
	for c := range l.Cells() {
		off := l.offset(c)
		if gap := off - end; gap != 0 && (c < l.Whole || gap != oddGap) {
			t.Errorf("cell %d begins at %d, %d bytes after the one before", c, off, gap)
		}
		end = off + uint64(l.cellSize(c))
		if off/blockBytes != (end-1)/blockBytes {
			t.Errorf("cell %d straddles two blocks", c)
		}
	}
	if end != l.Base+l.Bytes() {
		t.Errorf("the last cell ends at %d, the layout at %d", end, l.Base+l.Bytes())
	}
	if off, n := l.extent(4, 3); off != l.offset(4) || off+uint64(n) != l.offset(6)+oddBytes {
		t.Errorf("extent(4, 3) = %d, %d", off, n)
	}
}
