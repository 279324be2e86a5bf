package stamped

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// worker issues one request after the other.
type worker struct {
	r    *runner
	link *link
	id   uint32
	rng  *rand.Rand
	buf  []byte
	read Read
}

// loop works until ctx ends or the run fails.
func (w *worker) loop(ctx context.Context) {
	for ctx.Err() == nil {
		disk := w.link.current()
		err := w.step(disk)
		if err == nil {
			continue
		}
		if !errors.Is(err, ErrLost) || !w.r.o.Reconnect {
			w.r.fail(err)
			return
		}
		w.r.abandoned.Add(1)
		if err := w.link.lost(ctx, disk); err != nil {
			if ctx.Err() == nil {
				w.r.fail(err)
			}
			return
		}
	}
}

// step issues one request.
func (w *worker) step(disk Disk) error {
	first, n := w.choose()
	kind := Reading
	switch p := w.rng.IntN(100); {
	case p < 2:
		kind = Flushing
	case p < 5:
		kind = Trimming
	case p < 8:
		kind = Zeroing
	case p < 65:
		kind = Writing
	}
	began := time.Now()
	var err error
	switch kind {
	case Reading:
		err = w.doRead(disk, first, n)
	case Flushing:
		err = disk.Flush()
	case Writing, Zeroing, Trimming:
		claim, ok := w.claim(first, n, kind != Writing)
		if !ok { // all is busy; look at what is there instead
			kind = Reading
			err = w.doRead(disk, first, n)
			break
		}
		if err = w.doWrite(disk, kind, claim); err != nil {
			w.r.ledger.Abandon(claim)
		} else {
			w.r.ledger.Ack(claim)
		}
	}
	if err != nil {
		var v *Violation
		if errors.As(err, &v) {
			return err
		}
		return fmt.Errorf("stamped: %v of %d cells from %d: %w", kind, n, first, err)
	}
	w.note(kind, began)
	return nil
}

// choose picks a run of cells: mostly short ones, and half of them in a small hot part, so that cells are
// overwritten often and requests meet each other's neighbours.
func (w *worker) choose() (first, n int) {
	l := w.r.ledger.layout
	cells := l.Cells()
	switch w.rng.IntN(4) {
	case 0: // hot, whole blocks
		first = w.rng.IntN(max(1, l.Whole/16))
	case 1: // hot, odd cells
		first = cells - 1 - w.rng.IntN(max(1, (cells-l.Whole)/16))
	default:
		first = w.rng.IntN(cells)
	}
	n = 1
	if w.rng.IntN(3) == 0 {
		n = 1 + w.rng.IntN(w.r.o.MaxCells)
	}
	return first, l.clip(first, n)
}

// claim asks the ledger for the cells, and for others if those are busy.
func (w *worker) claim(first, n int, zero bool) (Write, bool) {
	for range claimTries {
		if c, ok := w.r.ledger.Begin(first, n, zero); ok {
			return c, true
		}
		first, n = w.choose()
	}
	return Write{}, false
}

func (w *worker) doRead(disk Disk, first, n int) error {
	l := w.r.ledger
	off, length := l.layout.extent(first, n)
	buf := w.room(length)
	l.BeginRead(&w.read, first, n)
	if err := disk.ReadAt(buf, off); err != nil {
		return err
	}
	return l.EndRead(&w.read, buf)
}

// doWrite issues a write that the ledger let pass.
func (w *worker) doWrite(disk Disk, kind Kind, c Write) error {
	l := w.r.ledger
	off, length := l.layout.extent(c.First, c.N)
	fua := w.rng.IntN(8) == 0
	switch kind {
	case Zeroing:
		return disk.ZeroAt(off, length, fua)
	case Trimming:
		return disk.TrimAt(off, length, fua)
	case Reading, Writing, Flushing:
	}
	buf := w.room(length)
	for i := c.First; i < c.First+c.N; i++ {
		at := int(l.layout.offset(i) - off)
		s := stamp{run: l.run, cell: uint64(i), seq: c.Seq, writer: w.id}
		s.put(buf[at : at+l.layout.cellSize(i)])
	}
	return disk.WriteAt(buf, off, fua)
}

// room is a buffer of n bytes, in use until the next call.
func (w *worker) room(n int) []byte {
	if cap(w.buf) < n {
		w.buf = make([]byte, n)
	}
	return w.buf[:n]
}

func (w *worker) note(kind Kind, began time.Time) {
	took := time.Since(began)
	w.r.ops[kind].Add(1)
	for {
		old := w.r.longest.Load()
		if int64(took) <= old || w.r.longest.CompareAndSwap(old, int64(took)) {
			break
		}
	}
	if w.r.o.Observe != nil {
		w.r.o.Observe(kind, began, took)
	}
}
