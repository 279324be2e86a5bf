package blockdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// readersBesideApplier has readers check, while one writer laps a small log with the driver at work, that every block
// they get is whole, and neither older than what was committed before their read began nor newer than what was
// appended when it ended. It returns the first that was not.
func readersBesideApplier(t *testing.T, frames int, broken mutation) error {
	const blocks = 96
	r := osRig(t, StoreOptions{broken: broken})
	room := make(chan struct{}, 1)
	r.check(r.s.Close())
	r.o.OnRoom = func() {
		select {
		case room <- struct{}{}:
		default:
		}
	}
	r.open()
	// The stamps of a block only grow, so a version is known by its stamp.
	var committed, appended [blocks]atomic.Uint64
	var stop atomic.Bool
	errs := make(chan error, 8)
	var readers sync.WaitGroup
	for id := range 3 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			rnd := rand.New(rand.NewPCG(uint64(id), 3))
			buf := make([]byte, blocks*BlockSize)
			want := make([]byte, BlockSize)
			var before [blocks]uint64
			for !stop.Load() {
				from := rnd.Uint64N(blocks)
				n := 1 + rnd.Uint64N(min(blocks-from, 1<<rnd.UintN(7)))
				for k := range n {
					before[k] = committed[from+k].Load()
				}
				if id != 0 || !r.s.ReadCached(from, buf[:n*BlockSize]) {
					if err := r.s.Read(from, buf[:n*BlockSize]); err != nil {
						errs <- err
						return
					}
				}
				for k := range n {
					got := buf[k*BlockSize : (k+1)*BlockSize]
					stamp := stampOf(got, from+k)
					if stampBlock(want, from+k, stamp); string(want) != string(got) {
						errs <- fmt.Errorf("block %d is torn", from+k)
						return
					}
					if stamp < before[k] || stamp > appended[from+k].Load() {
						errs <- fmt.Errorf("block %d has stamp %d, committed %d, appended %d", from+k, stamp, before[k], appended[from+k].Load())
						return
					}
				}
			}
		}()
	}
	rnd := rand.New(rand.NewPCG(9, 9))
	var err error
	for i := 0; i < frames && err == nil; i++ {
		var ops []histOp
		for range 1 + rnd.IntN(4) {
			n := 1 + rnd.Uint64N(6)
			ops = append(ops, write(rnd.Uint64N(blocks-n), n))
		}
		stamp := r.next
		for _, op := range ops {
			for k := range op.count {
				appended[op.block+k].Store(stamp)
				stamp++
			}
		}
		f := r.seal(ops...)
		for e := r.s.Append(f); e != nil; e = r.s.Append(f) {
			if !errors.Is(e, wal.ErrFull) {
				t.Fatal(e)
			}
			select {
			case <-room:
			case <-time.After(20 * time.Second):
				t.Fatalf("no room was made: %+v", r.s.Marks())
			}
		}
		if i%8 == 0 {
			r.check(r.s.Sync())
		}
		r.s.Commit(f.Last())
		for _, op := range ops {
			for k := range op.count {
				committed[op.block+k].Store(op.stamp + k)
			}
		}
		select {
		case err = <-errs:
		default:
		}
	}
	stop.Store(true)
	readers.Wait()
	select {
	case err = <-errs:
	default:
	}
	if m := r.s.Marks(); err == nil && m.First == 1 {
		t.Errorf("the log was never lapped: %+v", m)
	}
	r.check(r.s.Close())
	return err
}

// stampOf inverts stampBlock.
func stampOf(b []byte, block uint64) uint64 {
	x := binary.LittleEndian.Uint64(b)
	if x == 0 {
		return 0
	}
	return x ^ block*fibonacci
}

func TestReadsBesideApplierAreNeverTornOrStale(t *testing.T) {
	defer goleak.VerifyNone(t)
	frames := 4000
	if testing.Short() {
		frames = 1000
	}
	if err := readersBesideApplier(t, frames, 0); err != nil {
		t.Fatal(err)
	}
}

// B2: an applier that lets go of a block whose newer version it has not applied is found out by the model.
func TestModelNoticesClearedEntry(t *testing.T) {
	noticed := false
	for seed := uint64(1); seed < 50 && !noticed; seed++ {
		var f fakeT
		f.TB = t
		noticed = f.run(func() { modelRun(&f, seed, StoreOptions{Manual: true, broken: clearChanged}) })
	}
	if !noticed {
		t.Error("nobody noticed")
	}
}

// fakeT keeps a failure to itself.
type fakeT struct {
	testing.TB
	failed atomic.Bool
}

func (f *fakeT) Helper()               {}
func (f *fakeT) Failed() bool          { return f.failed.Load() }
func (f *fakeT) Logf(string, ...any)   {}
func (f *fakeT) Error(...any)          { f.failed.Store(true) }
func (f *fakeT) Errorf(string, ...any) { f.failed.Store(true) }
func (f *fakeT) Fatal(...any)          { f.failed.Store(true); panic(f) }
func (f *fakeT) Fatalf(string, ...any) { f.failed.Store(true); panic(f) }

// run tells whether the function failed its test.
func (f *fakeT) run(test func()) (failed bool) {
	defer func() {
		if p := recover(); p != nil && p != any(f) {
			panic(p)
		}
		failed = f.failed.Load()
	}()
	test()
	return
}

// A log that is full of committed frames empties itself without another commit, in sync mode flush too, where nobody
// else syncs; one that is full of uncommitted frames stays full.
func TestFullLogMakesRoomByItself(t *testing.T) {
	defer goleak.VerifyNone(t)
	room := make(chan struct{}, 1)
	r := newRig(t, memfs.New(), "r", StoreOptions{OnRoom: func() {
		select {
		case room <- struct{}{}:
		default:
		}
	}})
	for round := range 2 {
		var err error
		for err == nil {
			err = r.try(write(3, 8))
		}
		if !errors.Is(err, wal.ErrFull) {
			t.Fatal(err)
		}
		// In the second round the applier may still be making room out of what the first one committed.
		if round == 0 && r.s.RoomFor(9*BlockSize) {
			t.Fatal("room in a log full of uncommitted frames")
		}
		r.s.Commit(r.end())
		for !r.s.RoomFor(9 * BlockSize) {
			select {
			case <-room:
			case <-time.After(20 * time.Second):
				t.Fatalf("no room: %+v", r.s.Marks())
			}
		}
	}
	r.verify()
	r.check(r.s.Close())
}

// An idle store has everything in the image, so that the next start has nothing to do.
func TestIdleStoreCheckpoints(t *testing.T) {
	done := make(chan struct{}, 100)
	r := newRig(t, memfs.New(), "r", StoreOptions{OnEvent: func(e Event) {
		if _, ok := e.(EventCheckpoint); ok {
			done <- struct{}{}
		}
	}})
	r.append(write(3, 8))
	r.s.Commit(r.end())
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("no checkpoint")
	}
	if m := r.s.Marks(); m.Checkpoint != m.End || r.s.table.entries() != 0 {
		t.Errorf("%+v, %d entries", m, r.s.table.entries())
	}
	r.check(r.s.Close())
}
