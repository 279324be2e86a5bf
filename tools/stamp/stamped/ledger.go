package stamped

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

// Ledger knows what was issued, acknowledged and read back for every cell, and so what a read may return. Its
// methods may be called from many goroutines; it does no I/O.
type Ledger struct {
	layout Layout
	run    uint64

	// mu guards everything below.
	mu        sync.Mutex
	next      uint64 // the next sequence number
	cells     []cell
	abandoned map[uint64]Write // for S6: writes whose connection was lost, by sequence number
}

// cell is what is known of one cell.
type cell struct {
	floor  uint64 // the newest version acknowledged or read back: nothing older may be read any more
	seen   bool   // the floor was read back before it was acknowledged
	newest uint64 // the newest version issued; above floor: in flight or abandoned
	zero   uint64 // the newest zeroing up to floor; 0 also stands for "never written"
	zeros  []uint64
	busy   bool // a write is in flight

	// Invariant: zero ≤ floor < zeros[0] < zeros[1] … ≤ newest.
}

// Write is a write, trim or zeroing of a run of cells that the ledger let pass.
type Write struct {
	First, N int
	Seq      uint64
	Zero     bool // a trim or zeroing
}

// NewLedger makes a ledger for an area that is all zeroes.
func NewLedger(l Layout) *Ledger {
	return &Ledger{
		layout:    l,
		run:       rand.Uint64(),
		next:      1,
		cells:     make([]cell, l.Cells()),
		abandoned: make(map[uint64]Write),
	}
}

// Layout is where the cells are.
func (l *Ledger) Layout() Layout { return l.layout }

// Begin takes a sequence number for a write that is about to be issued. It refuses, with false, if one of the
// cells has a write in flight.
func (l *Ledger) Begin(first, n int, zero bool) (Write, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	run := l.cells[first : first+n]
	for i := range run {
		if run[i].busy {
			return Write{}, false
		}
	}
	w := Write{First: first, N: n, Seq: l.next, Zero: zero}
	l.next++
	for i := range run {
		run[i].busy = true
		run[i].newest = w.Seq
		if zero {
			run[i].zeros = append(run[i].zeros, w.Seq)
		}
	}
	return w, true
}

// Ack notes that the disk acknowledged a write.
func (l *Ledger) Ack(w Write) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := w.First; i < w.First+w.N; i++ {
		c := &l.cells[i]
		c.busy = false
		c.raise(w.Seq, false)
	}
}

// Abandon notes that nobody will ever know whether a write took effect.
func (l *Ledger) Abandon(w Write) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := w.First; i < w.First+w.N; i++ {
		l.cells[i].busy = false
	}
	l.abandoned[w.Seq] = w
}

// raise moves a cell's floor up to a version known to have taken effect.
func (c *cell) raise(seq uint64, seen bool) {
	if seq < c.floor || (seq == c.floor && seen) {
		return
	}
	c.floor, c.seen = seq, seen
	for len(c.zeros) > 0 && c.zeros[0] <= seq {
		c.zero = c.zeros[0]
		c.zeros = c.zeros[1:]
	}
}

// lastZero is the newest zeroing issued.
func (c *cell) lastZero() uint64 {
	if n := len(c.zeros); n > 0 {
		return c.zeros[n-1]
	}
	return c.zero
}

// floor is what a read had to honour of one cell when it began.
type floor struct {
	seq  uint64
	seen bool
}

// Read is a read of a run of cells in progress. The memory belongs to the caller, who may use it again.
type Read struct {
	first  int
	floors []floor
	found  []content
}

// content is what a cell held.
type content struct {
	stamp
	verdict
}

func (c content) String() string {
	switch c.verdict {
	case isZero:
		return "zeroes"
	case isStamp:
		return fmt.Sprintf("version %d by writer %d", c.seq, c.writer)
	case isTorn:
		return fmt.Sprintf("a torn block that begins as version %d by writer %d", c.seq, c.writer)
	case isGarbage:
		return "garbage"
	}
	return "?"
}

// BeginRead notes what a read that is about to be issued has to honour.
func (l *Ledger) BeginRead(r *Read, first, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.first = first
	r.floors = r.floors[:0]
	for i := first; i < first+n; i++ {
		r.floors = append(r.floors, floor{l.cells[i].floor, l.cells[i].seen})
	}
}

// EndRead checks what a read returned: data begins at the first cell's first byte. The error is a *Violation.
func (l *Ledger) EndRead(r *Read, data []byte) error {
	base := l.layout.offset(r.first)
	r.found = r.found[:0]
	for i := range r.floors {
		at := l.layout.offset(r.first+i) - base
		s, v := parse(data[at : at+uint64(l.layout.cellSize(r.first+i))])
		r.found = append(r.found, content{s, v})
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	for i, got := range r.found {
		if err := l.judgeLocked(r.first+i, got, r.floors[i]); err != nil {
			return err
		}
	}
	return nil
}

// judgeLocked applies S1 to S5 to one cell and learns from what was found (S3).
func (l *Ledger) judgeLocked(i int, got content, f floor) error {
	c := &l.cells[i]
	fail := func(k Fault) error {
		want := fmt.Sprintf("version %d or newer, up to %d", f.seq, c.newest)
		if f.seen {
			want += " (read before)"
		} else {
			want += " (acknowledged)"
		}
		return &Violation{Fault: k, Cell: i, Offset: l.layout.offset(i), Got: got.String(), Want: want}
	}
	older := Lost
	if f.seen {
		older = Backward
	}
	switch got.verdict {
	case isTorn:
		return fail(Torn)
	case isGarbage:
		return fail(Garbage)
	case isZero:
		if c.lastZero() < f.seq {
			return fail(older)
		}
		// Which zeroing this is cannot be told; only if it must be one above the floor something is learnt.
		if c.zero < f.seq && len(c.zeros) > 0 {
			c.raise(c.zeros[0], true)
		}
	case isStamp:
		switch {
		case got.run != l.run:
			return fail(Foreign)
		case got.cell != uint64(i):
			return fail(Misplaced)
		case got.seq > c.newest:
			return fail(Unissued)
		case got.seq < f.seq:
			return fail(older)
		}
		c.raise(got.seq, true)
	}
	return nil
}

// halfWriteLocked checks S6 once found holds the content of every cell and nothing is in flight. Only a cell
// without a later write, and whose content tells whether the write took effect, has a say.
func (l *Ledger) halfWriteLocked(found []content) error {
	for _, w := range l.abandoned {
		in, out := -1, -1
		for i := w.First; i < w.First+w.N; i++ {
			c := &l.cells[i]
			if c.newest != w.Seq {
				continue
			}
			switch {
			case c.floor == w.Seq: // read back, now or earlier
				in = i
			case w.Zero && found[i].verdict == isZero: // this zeroing or an older one
			default:
				out = i
			}
		}
		if in >= 0 && out >= 0 {
			return &Violation{
				Fault: HalfWrite, Cell: out, Offset: l.layout.offset(out), Got: found[out].String(),
				Want: fmt.Sprintf("version %d, of which cell %d is there (%d cells from %d)", w.Seq, in, w.N, w.First),
			}
		}
	}
	return nil
}
