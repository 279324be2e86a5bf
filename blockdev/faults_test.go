package blockdev

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"lockstep/wal/vfs/memfs"
)

// failures are what a disk can make of an operation that changes something or syncs.
var failures = []struct {
	name  string
	kinds []string
	memfs.Effect
}{
	{"EIO", []string{"write", "truncate", "punch", "create", "mkdir", "rename", "remove", "syncdir"}, memfs.Effect{Err: syscall.EIO}},
	{"short write, no space left", []string{"write"}, memfs.Effect{Err: syscall.ENOSPC, Sectors: 9}},
	{"no space left", []string{"write", "truncate", "create", "mkdir"}, memfs.Effect{Err: syscall.ENOSPC}},
	{"EIO, pages stay in memory, clean", []string{"sync"}, memfs.Effect{Err: syscall.EIO}},
	{"EIO, pages dropped", []string{"sync"}, memfs.Effect{Err: syscall.EIO, Drop: true}},
}

// operations lists what a replica's life does to a disk.
func operations(t *testing.T) (ops []memfs.Op) {
	m := memfs.New()
	m.Inject(func(op memfs.Op) memfs.Effect {
		ops = append(ops, op)
		return memfs.Effect{}
	})
	w := newSurvivor(t, m, 0)
	if w.live(); w.err != nil {
		t.Fatal(w.err)
	}
	return ops
}

// liveWith lives the same life, but for the n-th operation.
func liveWith(t *testing.T, n int, e memfs.Effect, broken mutation) (*survivor, *memfs.FS) {
	m := memfs.New()
	at := 0
	m.Inject(func(memfs.Op) memfs.Effect {
		if at++; at == n+1 {
			return e
		}
		return memfs.Effect{}
	})
	w := newSurvivor(t, m, broken)
	w.live()
	m.Inject(nil)
	return w, m
}

// sampled leaves out most of many cases where they would take too long.
func sampled(n int) bool {
	switch {
	case testing.Short(), raceEnabled:
		return n%50 != 0
	}
	return false
}

// W5: whichever operation fails, and however: the store's answer to every change is that error, for ever; reads give
// what they gave or an error; nothing that was acknowledged is lost, whether then the process dies or the power fails.
func TestEveryFaultPoisonsForEver(t *testing.T) {
	for n, op := range operations(t) {
		for _, f := range failures {
			if !slices.Contains(f.kinds, op.Kind) || sampled(n) {
				continue
			}
			w, m := liveWith(t, n, f.Effect, 0)
			check := w.isPoisoned
			if f.Err == syscall.ENOSPC && slices.Contains([]string{imageName, sumsName, regionsName, sessionsName}, path.Base(op.Name)) {
				check = w.hasWaited
			}
			if err := check(f.Err); err != nil {
				t.Fatalf("operation %d, %v, %s: %v", n, op, f.name, err)
			}
			disks := []*memfs.FS{m.Crash(memfs.None), m.Crash(memfs.All)}
			if op.Kind != "syncdir" { // nobody can make up for a name that the disk refused
				disks = append(disks, m.Kill())
			}
			for _, disk := range disks {
				if err := w.survives(disk); err != nil {
					t.Fatalf("operation %d, %v, %s, then a crash: %v", n, op, f.name, err)
				}
			}
		}
	}
}

// isPoisoned tells what is wrong with how a failure was answered.
func (w *survivor) isPoisoned(cause error) error {
	if !errors.Is(w.err, cause) {
		return fmt.Errorf("the workload ended with %v", w.err)
	}
	s := w.s
	if s == nil || s.closed.Load() {
		return nil
	}
	defer s.Abandon()
	first := s.Err()
	if !errors.Is(first, cause) {
		return fmt.Errorf("the store says %v", first)
	}
	select {
	case <-s.Failed():
	default:
		return errors.New("Failed is open")
	}
	for _, err := range []error{s.Sync(), s.SaveProtocol(nil), s.Checkpoint(), s.Cut(0), s.Append(w.seal(write(0, 1)))} {
		if err != first {
			return fmt.Errorf("a later change gives %v", err)
		}
	}
	return w.readsRight()
}

// hasWaited is isPoisoned for a data file that had no space for a while: nobody needed to notice, but for a call that could
// not be put off; or for a cut, because the log had room for less meanwhile and more was committed to make some.
func (w *survivor) hasWaited(cause error) error {
	waited := errors.Is(w.err, cause) || errors.Is(w.err, ErrBelowCommit)
	if w.err == nil || w.s == nil || w.s.closed.Load() {
		return nil
	}
	if !waited || w.s.Err() != nil {
		return w.isPoisoned(cause)
	}
	defer w.s.Abandon()
	if err := w.readsRight(); err != nil {
		return err
	}
	if err := w.s.Checkpoint(); err != nil {
		return fmt.Errorf("checkpoint when there is space again: %w", err)
	}
	return w.readsRight()
}

// readsRight reads every block by itself. It must be what was committed, or there must be an error.
func (w *survivor) readsRight() error {
	got := make([]byte, BlockSize)
	for b, stamp := range w.content(w.s.Marks().Committed) {
		if w.s.Read(uint64(b), got) == nil {
			if err := differs(got, uint64(b), []uint64{stamp}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Whichever read fails, it is reported by the one who needed it, or poisons: nothing is lost.
func TestEveryReadFaultIsReported(t *testing.T) {
	for n, op := range operations(t) {
		if op.Kind != "read" || sampled(n) {
			continue
		}
		w, m := liveWith(t, n, memfs.Effect{Err: syscall.EIO}, 0)
		// What the applier reads of the log it reads again, block by block.
		if again := strings.Contains(op.Name, walName) && w.err == nil; !again && !errors.Is(w.err, syscall.EIO) {
			t.Fatalf("operation %d, %v: the workload ended with %v", n, op, w.err)
		}
		if s := w.s; s != nil && !s.closed.Load() {
			if err := w.readsRight(); err != nil {
				t.Fatalf("operation %d, %v: %v", n, op, err)
			}
			s.Abandon()
		}
		if err := w.survives(m.Crash(memfs.None)); err != nil {
			t.Fatalf("operation %d, %v, then a crash: %v", n, op, err)
		}
	}
}

// A client's read that the disk fails is that client's error, and nobody else's: the next one is served.
func TestFaultOfAClientsReadPoisonsNothing(t *testing.T) {
	m := memfs.New()
	w := newSurvivor(t, m, 0)
	w.format()
	w.open()
	w.put(write(0, 4))
	w.steps()
	w.put(write(2, 4)) // half in the image, half in the log
	if w.err != nil {
		t.Fatal(w.err)
	}
	got := make([]byte, 6*BlockSize)

	for n := 0; ; n++ {
		at := 0
		m.Inject(func(op memfs.Op) memfs.Effect {
			if at++; at == n+1 {
				return memfs.Effect{Err: syscall.EIO}
			}
			return memfs.Effect{}
		})
		err := w.s.Read(0, got)
		m.Inject(nil)
		if done := at <= n; done {
			break
		}
		if err == nil { // it was read again
			if err := differs(got, 0, w.content(w.end())[:6]); err != nil {
				t.Fatal(err)
			}
		}
		if err := holds(w.rig, w.end()); err != nil || w.s.Err() != nil {
			t.Fatalf("read %d failed, and then: %v, %v", n, err, w.s.Err())
		}
	}
	w.put(write(1, 1))
	if w.close(); w.err != nil {
		t.Fatal(w.err)
	}
}
