package stamped

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

// state is a ledger in a file.
type state struct {
	Layout    Layout            `json:"layout"`
	Run       uint64            `json:"run"`
	Next      uint64            `json:"next"`
	Cells     map[int]cellState `json:"cells"` // those ever written
	Abandoned []Write           `json:"abandoned"`
}

type cellState struct {
	Floor  uint64   `json:"floor"`
	Seen   bool     `json:"seen,omitempty"`
	Newest uint64   `json:"newest"`
	Zero   uint64   `json:"zero,omitempty"`
	Zeros  []uint64 `json:"zeros,omitempty"`
}

// Save writes the ledger to a file, replacing it. Nothing may be in flight.
func (l *Ledger) Save(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := state{Layout: l.layout, Run: l.run, Next: l.next, Cells: make(map[int]cellState)}
	for i, c := range l.cells {
		if c.busy {
			return fmt.Errorf("stamped: save: a write to cell %d is in flight", i)
		}
		if c.newest != 0 {
			s.Cells[i] = cellState{c.floor, c.seen, c.newest, c.zero, c.zeros}
		}
	}
	for _, w := range l.abandoned {
		s.Abandoned = append(s.Abandoned, w)
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("stamped: save: %w", err)
	}
	if err := os.WriteFile(name+".new", b, 0o644); err != nil {
		return fmt.Errorf("stamped: save: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("stamped: save: %w", err)
	}
	return nil
}

// Load reads a ledger that Save wrote.
func Load(name string) (*Ledger, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("stamped: load: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("stamped: load %s: %w", name, err)
	}
	if s.Layout.Validate(1<<63) != nil || s.Run == 0 {
		return nil, fmt.Errorf("stamped: load %s: %w", name, errors.New("this is no ledger"))
	}
	l := NewLedger(s.Layout)
	l.run, l.next = s.Run, s.Next
	for i, c := range s.Cells {
		if i < 0 || i >= len(l.cells) {
			return nil, fmt.Errorf("stamped: load %s: no cell %d in this layout", name, i)
		}
		l.cells[i] = cell{floor: c.Floor, seen: c.Seen, newest: c.Newest, zero: c.Zero, zeros: c.Zeros}
	}
	for _, w := range s.Abandoned {
		if w.First < 0 || w.N < 1 || w.N > len(l.cells)-w.First {
			return nil, fmt.Errorf("stamped: load %s: abandoned write %d is outside this layout", name, w.Seq)
		}
		l.abandoned[w.Seq] = w
	}
	return l, nil
}
