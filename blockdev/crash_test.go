package blockdev

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// crashWorkload does a little of everything, and notes after each step what a crash from then on must leave. It ends
// early when the file system stops or fails; err is nil if it did not.
type crashWorkload struct {
	*rig
	formatted bool
	synced    wal.LSN // stable
	committed wal.LSN // told to be, while stable
	saved     byte    // protocol state that is stable
	saving    byte    // may be, too
	err       error
}

func (w *crashWorkload) do(f func() error) bool {
	if w.err == nil {
		w.err = f()
	}
	return w.err == nil
}

func runCrashWorkload(t testing.TB, fsys *memfs.FS, broken mutation) *crashWorkload {
	r := &rig{t: t, fs: fsys, dir: "r", epoch: 1, next: 1}
	r.o = StoreOptions{FS: fsys, Dir: "r", BootID: "boot", Manual: true, broken: broken}
	w := &crashWorkload{rig: r}
	if !w.do(func() error {
		return Format(fsys, "r", FormatOptions{Identity: testIdentity(), LogBytes: 3 * 32768, SegmentBytes: 32768})
	}) {
		return w
	}
	w.formatted = true
	w.reopen()
	for i := range uint64(10) {
		w.frame(write(i%3, 2), trim(i%4, 1))
		w.frame(write(300*(i%2), 1))
		w.step(2) // applied, most often, but not checkpointed
		if i == 4 {
			w.do(func() error { w.saving = 7; return w.s.SaveProtocol([]byte{7}) })
			if w.err == nil {
				w.saved = 7
			}
			w.frame(histOp{kind: wal.KindTrim, block: 0, count: maxZeroEntries + 10})
			w.append1(write(9, 1))
			w.cut()
		}
		if i == 7 {
			w.do(func() error { return w.s.Close() })
			w.reopen()
		}
	}
	w.do(func() error { return w.s.Close() })
	return w
}

func (w *crashWorkload) reopen() {
	w.do(func() (err error) {
		w.s, err = OpenStore(w.o)
		return err
	})
}

// append1 leaves a frame that is neither synced nor committed. It may be there or not.
func (w *crashWorkload) append1(ops ...histOp) {
	w.do(func() error {
		f := w.seal(ops...)
		w.hist = append(w.hist, ops...)
		err := w.s.Append(f)
		if errors.Is(err, wal.ErrFull) {
			if w.step(99); w.err != nil {
				return w.err
			}
			err = w.s.Append(f)
		}
		return err
	})
}

func (w *crashWorkload) frame(ops ...histOp) {
	w.append1(ops...)
	w.do(func() error { return w.s.Sync() })
	if w.err == nil {
		w.synced = w.end()
		w.s.Commit(w.end())
		w.committed = w.end()
	}
}

func (w *crashWorkload) step(limit int) {
	for did := true; did && w.err == nil && limit > 0; limit-- {
		w.do(func() (err error) {
			did, err = w.s.Step()
			return err
		})
	}
}

func (w *crashWorkload) cut() {
	w.do(func() error { return w.s.Cut(w.committed) })
	if w.err == nil {
		w.hist = w.hist[:w.committed]
	}
}

// checkDisk opens what a crash left and compares.
func (w *crashWorkload) checkDisk(disk *memfs.FS) error {
	o := w.o
	o.FS = disk
	s, err := OpenStore(o)
	if err != nil {
		if !w.formatted && errors.Is(err, ErrNotReplica) {
			return Format(disk, "r", FormatOptions{Identity: testIdentity(), LogBytes: 3 * 32768, SegmentBytes: 32768})
		}
		return err
	}
	defer s.Abandon()
	m := s.Marks()
	if m.End < w.synced || m.End > w.end() {
		return fmt.Errorf("log ends with %d, synced %d of %d", m.End, w.synced, w.end())
	}
	if p := s.Protocol(); (len(p) == 0 && w.saved != 0) || len(p) > 0 && p[0] != w.saved && p[0] != w.saving {
		return fmt.Errorf("protocol state %v, saved %d", p, w.saved)
	}
	r := *w.rig
	r.s = s
	for _, l := range []wal.LSN{m.Committed, m.End} {
		s.Commit(l)
		got := make([]byte, 600*BlockSize)
		if err := s.Read(0, got); err != nil {
			return fmt.Errorf("at %d: %w", l, err)
		}
		if err := differs(got, 0, r.content(l)[:600]); err != nil {
			return fmt.Errorf("at %d, %+v: %w", l, m, err)
		}
	}
	if err := s.Checkpoint(); err != nil {
		return err
	}
	return nil
}

// crashPoints crashes the workload before each of its operations, or every stride-th, with up to so many fates for what
// was not synced, and returns the first failure.
func crashPoints(t testing.TB, broken mutation, stride, fates int) error {
	probe := memfs.New()
	if w := runCrashWorkload(t, probe, broken); w.err != nil {
		t.Fatal(w.err)
	}
	total, checked := probe.Ops(), 0
	for n := 0; n < total; n += stride {
		fsys := memfs.New()
		fsys.StopAt(n)
		w := runCrashWorkload(t, fsys, broken)
		if w.err == nil {
			return fmt.Errorf("workload of %d operations did not notice that it was stopped at %d", total, n)
		}
		pending := fsys.Pending()
		for i, fate := range memfs.Fates(pending, uint64(n)) {
			if i == fates {
				break
			}
			checked++
			if err := w.checkDisk(fsys.Crash(fate)); err != nil {
				return fmt.Errorf("crash before operation %d of %d, fate %s of %v: %w", n, total, fate.Name, pending, err)
			}
		}
	}
	t.Logf("%d operations, %d crashes", total, checked)
	return nil
}

func TestEveryCrashPointLeavesAPrefixOfHistory(t *testing.T) {
	stride, fates := 1, 1000
	if testing.Short() {
		stride, fates = 3, 6
	}
	if err := crashPoints(t, 0, stride, fates); err != nil {
		t.Fatal(err)
	}
}

// The crash points find out each rule that is not kept.
func TestCrashPointsNoticeBrokenRules(t *testing.T) {
	for name, broken := range map[string]mutation{
		"B3: checkpoint before the image is stable":   metaBeforeSync,
		"B1: image ahead of the known commit point":   applyUnrecorded,
		"W3: segments released before the checkpoint": releaseEarly,
	} {
		t.Run(name, func(t *testing.T) {
			err := crashPoints(t, broken, 1, 2)
			if err == nil {
				t.Fatal("nobody noticed")
			}
			t.Log(err)
		})
	}
}

// W5: whichever operation fails, nothing acknowledged is lost, and afterwards every change fails with the first error.
func TestEveryFailedOperationPoisonsForEver(t *testing.T) {
	probe := memfs.New()
	if w := runCrashWorkload(t, probe, 0); w.err != nil {
		t.Fatal(w.err)
	}
	stride := 1
	if testing.Short() {
		stride = 3
	}
	for n := 0; n < probe.Ops(); n += stride {
		fsys := memfs.New()
		fsys.FailAt(n, syscall.EIO)
		w := runCrashWorkload(t, fsys, 0)
		if !errors.Is(w.err, syscall.EIO) {
			t.Fatalf("operation %d failed, but the workload ended with %v", n, w.err)
		}
		if s := w.s; s != nil && !s.closed.Load() {
			first := s.Err()
			if !errors.Is(first, syscall.EIO) {
				t.Fatalf("operation %d failed: %v, store says %v", n, w.err, first)
			}
			select {
			case <-s.Failed():
			default:
				t.Fatalf("operation %d failed, but Failed is open", n)
			}
			for _, err := range []error{s.Sync(), s.SaveProtocol(nil), s.Checkpoint(), s.Cut(0), s.Append(w.seal(write(0, 1)))} {
				if err != first {
					t.Fatalf("operation %d failed: later error is %v, not %v", n, err, first)
				}
			}
			if err := s.Read(0, make([]byte, BlockSize)); err != nil {
				t.Fatalf("operation %d failed: read: %v", n, err)
			}
			s.Abandon()
		}
		if err := w.checkDisk(fsys.Crash(memfs.None)); err != nil {
			t.Fatalf("operation %d failed: %v", n, err)
		}
	}
}
