package blockdev

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// survivor does things to a store and knows, at every moment, what a crash from then on must leave. What is under way
// counts as promised to nobody, and as possible. It stops at the first error.
type survivor struct {
	*rig
	all []oldFrame // every frame there ever was, also cut ones

	formatted     bool
	synced        wal.LSN  // everything up to here was acknowledged as stable
	cutTo         *wal.LSN // a cut to there is under way: that, or all that was acknowledged
	saved, saving byte     // protocol state: stable, and perhaps stable
	size, growing uint64   // bytes: it has at least that size, and perhaps this
	promises      uint64   // how often any of this changed

	err error
}

type oldFrame struct {
	wal.Frame
	ops []histOp
}

// The replica of the crash tests: four whole regions and a short one, and a log of 80 blocks that a frame of 19 fits into.
const (
	crashBlocks  = 4*RegionBlocks + 64
	crashSegment = 20 * BlockSize
	crashLog     = 4 * crashSegment

	crashSessions = 2
)

func crashFormat() FormatOptions {
	id := testIdentity()
	id.Size = crashBlocks * BlockSize
	return FormatOptions{Identity: id, LogBytes: crashLog, SegmentBytes: crashSegment}
}

func newSurvivor(t testing.TB, m *memfs.FS, broken mutation) *survivor {
	w := &survivor{rig: &rig{t: t, fs: m, dir: "data/r", epoch: 1, next: 1}}
	w.o = StoreOptions{FS: m, Dir: w.dir, BootID: "boot", Manual: true, broken: broken}
	return w
}

func (w *survivor) do(f func() error) {
	if w.err == nil {
		w.err = f()
		w.promises++
	}
}

// may notes what is about to be possible.
func (w *survivor) may(f func()) {
	if w.err == nil {
		f()
		w.promises++
	}
}

func (w *survivor) format() {
	w.may(func() { w.size = crashFormat().Size })
	w.do(func() error { return Format(w.fs, w.dir, crashFormat()) })
	w.may(func() { w.formatted = true })
}

func (w *survivor) open() {
	w.do(func() (err error) {
		w.s, err = OpenStore(w.o)
		return err
	})
	w.may(func() { w.synced = w.s.Marks().End }) // W6
	w.may(func() { w.forget(w.synced) })
}

// append leaves a frame that is neither synced nor committed.
func (w *survivor) append(ops ...histOp) {
	w.do(func() error {
		f := w.seal(ops...)
		for !w.s.RoomFor(len(f.Bytes())) && w.err == nil {
			w.s.Commit(w.end())
			w.steps()
			f = w.seal(ops...)
		}
		if w.err != nil {
			return w.err
		}
		kept, err := wal.ParseFrame(slices.Clone(f.Bytes()))
		if err != nil {
			return err
		}
		w.may(func() {
			w.hist = append(w.hist, ops...)
			w.ends = append(w.ends, w.end())
			w.all = append(w.all, oldFrame{kept, ops})
		})
		return w.s.Append(kept)
	})
}

func (w *survivor) sync() {
	w.do(func() error { return w.s.Sync() })
	w.may(func() { w.synced = w.end() })
}

func (w *survivor) commit() { w.do(func() error { w.s.Commit(w.end()); return nil }) }

// put is a write as clients know it: acknowledged.
func (w *survivor) put(ops ...histOp) {
	w.append(ops...)
	w.sync()
	w.commit()
}

// apply does one piece of background work, steps does all.
func (w *survivor) apply() (did bool) {
	w.do(func() (err error) {
		did, err = w.s.Step()
		return err
	})
	return did
}

func (w *survivor) steps() {
	for w.apply() {
	}
}

func (w *survivor) cut(l wal.LSN) {
	w.may(func() { w.cutTo = &l })
	w.do(func() error { return w.s.Cut(l) })
	w.may(func() { w.cutTo = nil; w.synced = min(w.synced, l); w.forget(l) })
}

// view is what a change of views does to a replica: new state, a new epoch.
func (w *survivor) view(n byte) {
	w.may(func() { w.saving = n })
	w.do(func() error { return w.s.SaveProtocol([]byte(state(n))) })
	w.may(func() { w.saved = n; w.epoch++ })
}

func state(view byte) string {
	if view == 0 {
		return ""
	}
	return fmt.Sprint("view ", view)
}

// grow makes the replica larger, to so many blocks.
func (w *survivor) grow(blocks uint64) {
	w.may(func() { w.growing = blocks * BlockSize })
	w.do(func() error { return w.s.Grow(blocks * BlockSize) })
	w.may(func() { w.size = w.s.Size() })
}

func (w *survivor) close() { w.do(func() error { return w.s.Close() }) }

// die has the process killed: the next one finds what was written.
func (w *survivor) die() { w.do(func() error { return w.s.Abandon() }) }

// survives tells which promise a crash broke that left disk. It checks what recovery finds, and that the replica goes on.
func (w *survivor) survives(disk *memfs.FS) error {
	killed := len(disk.Pending()) > 0
	pieces := disk.Crash(memfs.All)
	r := *w.rig
	r.fs, r.o.FS = disk, disk
	s, err := OpenStore(r.o)
	if err != nil {
		if !w.formatted && errors.Is(err, ErrNotReplica) {
			return Format(disk, r.dir, crashFormat())
		}
		return err
	}
	defer s.Abandon()
	r.s = s
	end := s.Marks().End
	if err := w.checkFound(&r); err != nil {
		return err
	}
	if killed { // what was found is stable (W6), and what a checkpoint relies on then, too
		if err := stands(&r, disk, end); err != nil {
			return fmt.Errorf("power failure after recovery: %w", err)
		}
		if err := s.Checkpoint(); err != nil {
			return err
		}
		if err := stands(&r, disk, end); err != nil {
			return fmt.Errorf("power failure after a checkpoint: %w", err)
		}
	}
	if !killed && w.o.broken == 0 { // the tests of broken rules do without
		if err := w.recoversInPieces(pieces); err != nil {
			return fmt.Errorf("crash in the recovery: %w", err)
		}
	}
	if err := w.goesOn(&r, disk); err != nil {
		return fmt.Errorf("going on with record %d: %w", end+1, err)
	}
	return nil
}

// recoversInPieces crashes the recovery itself before each of its operations: another one finds what was promised.
func (w *survivor) recoversInPieces(disk *memfs.FS) error {
	c := memfs.Crasher{Check: func(disk *memfs.FS) error {
		r := *w.rig
		r.fs, r.o.FS = disk, disk
		var err error
		if r.s, err = OpenStore(r.o); err != nil {
			return err
		}
		defer r.s.Abandon()
		return w.checkFound(&r)
	}}
	c.Watch(disk)
	o := w.o
	o.FS = disk
	s, err := OpenStore(o)
	if c.Err != nil || err != nil {
		return errors.Join(c.Err, err)
	}
	return s.Abandon()
}

// checkFound checks what recovery found, as it is and with all of the log committed.
func (w *survivor) checkFound(r *rig) error {
	s := r.s
	m := s.Marks()
	if s.Size() != w.size && s.Size() != w.growing {
		return fmt.Errorf("it has %d bytes, it was made for %d and was growing to %d", s.Size(), w.size, w.growing)
	}
	if whole := m.End == 0 || slices.Contains(w.ends, m.End); !whole {
		return fmt.Errorf("log ends with %d, which is the end of no frame", m.End)
	}
	if m.End < w.synced && (w.cutTo == nil || m.End != *w.cutTo) {
		return fmt.Errorf("log ends with %d, acknowledged was %d", m.End, w.synced)
	}
	if p := string(s.Protocol()); p != state(w.saved) && p != state(w.saving) {
		return fmt.Errorf("protocol state %q, saved was %q", p, state(w.saved))
	}
	if s.Copying() {
		return errors.New("it is copying")
	}
	for _, l := range []wal.LSN{m.Committed, m.End} {
		s.Commit(l)
		if err := holds(r, l); err != nil {
			return err
		}
		if err := extentsDiffer(s, r.content(l), s.Blocks()); err != nil {
			return fmt.Errorf("at %d: %w", l, err)
		}
		if err := r.checkMemory(crashSessions); err != nil {
			return err
		}
	}
	return regionsKnow(r)
}

// holds compares what can be read with the history up to l.
func holds(r *rig, l wal.LSN) error {
	const chunk = 64
	got := make([]byte, chunk*BlockSize)
	want := r.content(l)
	for b := 0; b < len(want); b += chunk {
		n := min(chunk, len(want)-b)
		if err := r.s.Read(uint64(b), got[:n*BlockSize]); err != nil {
			return fmt.Errorf("at %d: %w", l, err)
		}
		if err := differs(got, uint64(b), want[b:b+n]); err != nil {
			return fmt.Errorf("at %d, %+v: %w", l, r.s.Marks(), err)
		}
	}
	return nil
}

// regionsKnow checks that every region was changed, for all that NewerRegions tells, at least when it was (B5).
func regionsKnow(r *rig) error {
	changed := map[int]wal.LSN{}
	for i, op := range r.hist[:r.s.Marks().Committed] {
		if op.count > 0 {
			for reg := op.block / RegionBlocks; reg <= (op.block+op.count-1)/RegionBlocks; reg++ {
				changed[int(reg)] = wal.LSN(i + 1)
			}
		}
	}
	for reg, l := range changed {
		if got, ok := r.s.NewerRegions(l-1, reg); !ok || got != reg {
			return fmt.Errorf("region %d was changed by record %d, and nobody knows", reg, l)
		}
	}
	return nil
}

// goesOn appends what makes most trouble, a frame that was there before, byte by byte, as a replica gets it that comes
// back: whatever lies behind it on the disk would chain to it. Then the power fails, and once more behind a checkpoint.
func (w *survivor) goesOn(r *rig, disk *memfs.FS) error {
	s, end := r.s, r.s.Marks().End
	next := oldFrame{ops: []histOp{write(3, 1), write(RegionBlocks, 2)}}
	for _, old := range w.all {
		if old.First() == end+1 && old.Header().Chain == s.EndSum() {
			next = old
		}
	}
	if len(next.Bytes()) == 0 {
		next.Frame = r.seal(next.ops...)
	}
	r.hist = append(slices.Clone(r.hist[:end]), next.ops...)
	if !s.RoomFor(len(next.Bytes())) {
		if err := s.Checkpoint(); err != nil {
			return err
		}
	}
	if err := s.Append(next.Frame); err != nil {
		return err
	}
	if err := s.Sync(); err != nil {
		return err
	}
	disk = disk.Crash(memfs.None)
	r, err := reopen(r, disk, next.Last())
	if err != nil {
		return err
	}
	if err := r.s.Close(); err != nil {
		return err
	}
	if r, err = reopen(r, disk.Crash(memfs.None), next.Last()); err != nil {
		return fmt.Errorf("after a clean stop: %w", err)
	}
	if m := r.s.Marks(); !r.s.CleanStart() || m.Committed != m.End {
		return fmt.Errorf("after a clean stop: %+v", m)
	}
	return r.s.Abandon()
}

// stands checks that the power may fail now.
func stands(r *rig, disk *memfs.FS, end wal.LSN) error {
	again, err := reopen(r, disk.Crash(memfs.None), end)
	if err != nil {
		return err
	}
	return again.s.Abandon()
}

// reopen opens the same replica on another disk, and checks that it ends with the record and holds the history.
func reopen(r *rig, disk *memfs.FS, end wal.LSN) (*rig, error) {
	again := *r
	again.fs, again.o.FS = disk, disk
	s, err := OpenStore(again.o)
	if err != nil {
		return nil, err
	}
	again.s = s
	if m := s.Marks(); m.End != end {
		return nil, fmt.Errorf("log ends with %d, not %d", m.End, end)
	}
	s.Commit(end)
	if err := holds(&again, end); err != nil {
		return nil, err
	}
	if err := again.checkMemory(crashSessions); err != nil {
		return nil, err
	}
	return &again, regionsKnow(&again)
}

// by is an operation that a client's session asked for, in a slot of its own.
func by(session, seq uint64, op histOp) histOp {
	op.session, op.number = session, RequestID(int(session), seq)
	return op
}

// attach is a session's beginning.
func attach(session, generation uint64) histOp {
	return histOp{kind: wal.KindAttach, session: session, number: generation}
}
