package blockdev

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// memory is what the first records of the history say about the sessions, by the definition.
func (r *rig) memory(l wal.LSN) map[uint64]SessionMemory {
	want := map[uint64]SessionMemory{}
	for _, op := range r.hist[:l] {
		if op.session == 0 {
			continue
		}
		s := want[op.session]
		if op.kind == wal.KindAttach {
			s.Generation = max(s.Generation, op.number)
		} else {
			slot := RequestSlot(op.number)
			if len(s.Slots) <= slot {
				s.Slots = append(s.Slots, make([]uint64, slot+1-len(s.Slots))...)
			}
			s.Slots[slot] = max(s.Slots[slot], RequestSeq(op.number))
		}
		want[op.session] = s
	}
	return want
}

func (r *rig) checkMemory(sessions uint64) error {
	want := r.memory(r.s.Marks().Committed)
	for id := uint64(1); id <= sessions; id++ {
		got := r.s.Session(id)
		if got.Generation != want[id].Generation || !slices.Equal(got.Slots, want[id].Slots) {
			return fmt.Errorf("session %d: %+v, want %+v, at %+v", id, got, want[id], r.s.Marks())
		}
	}
	return nil
}

// walkSessions writes as sessions, commits some of it, cuts some, and crashes, again and again.
func walkSessions(t *testing.T, seed uint64, broken mutation) error {
	const sessions = 3
	rng := rand.New(rand.NewPCG(seed, 1))
	fsys := memfs.New()
	r := newRig(t, fsys, "replica", StoreOptions{Manual: true, broken: broken})
	defer func() { r.s.Abandon() }()
	seqs := map[[2]uint64]uint64{}
	for range 60 {
		switch k := rng.IntN(10); {
		case k < 5:
			id, slot := 1+rng.Uint64N(sessions), rng.Uint64N(5)
			seqs[[2]uint64{id, slot}]++
			ops := []histOp{{kind: wal.KindAttach, session: id, number: 1 + rng.Uint64N(9)}}
			for block := range 1 + rng.Uint64N(2) {
				op := write(block, 1)
				op.session, op.number = id, RequestID(int(slot), seqs[[2]uint64{id, slot}])
				ops = append(ops, op)
			}
			r.append(ops...)
		case k < 6:
			r.check(r.s.Sync())
		case k < 7:
			r.check(r.s.Sync())
			if len(r.ends) > 0 {
				r.s.Commit(r.ends[rng.IntN(len(r.ends))])
			}
		case k < 8:
			r.check(r.s.Checkpoint())
		case k < 9:
			m := r.s.Marks()
			to := m.Committed
			r.check(r.s.Cut(to))
			r.forget(to)
		default:
			r.s.Abandon()
			fsys = fsys.Crash(memfs.Random(rng.Uint64(), rng.Float64()))
			r.fs, r.o.FS = fsys, fsys
			r.open()
			r.forget(r.s.Marks().End)
		}
		if err := r.checkMemory(sessions); err != nil {
			return err
		}
	}
	return nil
}

func TestSessionTableIsThatOfTheCommittedRecords(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seeds from %d", seed)
	for i := range uint64(100) {
		if err := walkSessions(t, seed+i, 0); err != nil {
			t.Fatalf("seed %d: %v", seed+i, err)
		}
	}
	for i := range uint64(200) {
		if walkSessions(t, i, sessionsNotSaved) != nil {
			return
		}
	}
	t.Error("no walk notices that the table is not saved with a checkpoint")
}

func TestSessionTableOfAnotherMemberIsMerged(t *testing.T) {
	r := newRig(t, memfs.New(), "replica", StoreOptions{Manual: true})
	defer r.s.Close()
	op := func(session uint64, slot int, seq uint64) histOp {
		w := write(0, 1)
		w.session, w.number = session, RequestID(slot, seq)
		return w
	}
	r.put(op(1, 0, 5), op(1, 3, 9), op(2, MaxSlots, 1))
	table := r.s.Sessions()
	other := newRig(t, memfs.New(), "other", StoreOptions{Manual: true})
	defer other.s.Close()
	other.put(op(1, 0, 6), op(1, 3, 2))
	r.check(other.s.MergeSessions(table))
	if got := other.s.Session(1).Slots; !slices.Equal(got, []uint64{6, 0, 0, 9}) {
		t.Errorf("merged: %v", got)
	}
	for n := 1; n < len(table); n++ {
		if n == sessionHead+2*8 || n == sessionHead {
			continue // the end of a session
		}
		_ = other.s.MergeSessions(table[:n]) // whatever it says, it does not panic
	}
	if err := other.s.MergeSessions(append(table, 1)); err == nil {
		t.Error("a torn table was taken")
	}
}

func TestOldestSessionIsForgottenFirst(t *testing.T) {
	var table sessionTable
	for id := uint64(1); id <= MaxSessions; id++ {
		table.fold(mark{id, RequestID(0, 1), false}, wal.LSN(id))
	}
	table.fold(mark{1, RequestID(0, 2), false}, MaxSessions+1)
	table.fold(mark{MaxSessions + 1, RequestID(0, 1), false}, MaxSessions+2)
	if table.all[1] == nil || table.all[2] != nil || len(table.all) != MaxSessions {
		t.Errorf("%d sessions; 1 is there: %v; 2 is there: %v", len(table.all), table.all[1] != nil, table.all[2] != nil)
	}
	if n := len(table.encode(nil)); n > MaxSessionsBytes || MaxSessionsBytes > sessionsSlotBytes-sessionsHead {
		t.Errorf("%d bytes do not fit", n)
	}
}
