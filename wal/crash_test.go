package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"lockstep/wal/vfs/memfs"
)

// owner is what keeps a log in a crash test: it does with it what a replica's storage does, and remembers what it
// may count on. Its own metadata (start) is taken to be stable at once.
type owner struct {
	o     Options
	l     *Log
	rng   *rand.Rand
	start Start

	frames  []Frame // of the log as it is, from the beginning or the last reset
	durable LSN     // acknowledged by Sync, and not cut since
	cut     *LSN    // a Cut to there is under way

	all []Frame // every frame there ever was, also cut ones
}

// step does one thing at random.
func (w *owner) step() error {
	switch k := w.rng.IntN(100); {
	case k < 55:
		return w.append(nextFrame(w.l, w.rng.Uint64(), w.rng.IntN(5), w.rng.IntN(3)))
	case k < 75:
		lsn, err := w.l.Sync()
		if err == nil {
			w.durable = lsn
		}
		return err
	case k < 87:
		return w.checkpoint(w.start.LSN + LSN(w.rng.Uint64N(uint64(w.durable-w.start.LSN)+1)))
	case k < 97:
		return w.cutTo(w.start.LSN + LSN(w.rng.Uint64N(uint64(w.l.End()-w.start.LSN)+1)))
	}
	return w.reset()
}

func (w *owner) append(f Frame) error {
	_, err := w.l.Append(f)
	if err == ErrFull {
		if w.durable, err = w.l.Sync(); err != nil {
			return err
		}
		return w.checkpoint(w.durable)
	}
	// A frame whose write was interrupted may be found later: it counts.
	w.frames, w.all = append(w.frames, f), append(w.all, f)
	return err
}

// frameEnd rounds down to a frame's end.
func (w *owner) frameEnd(lsn LSN) LSN {
	for i := len(w.frames) - 1; i >= 0; i-- {
		if w.frames[i].Last() <= lsn {
			return w.frames[i].Last()
		}
	}
	return w.start.LSN
}

func (w *owner) checkpoint(lsn LSN) error {
	if lsn = w.frameEnd(lsn); lsn <= w.start.LSN {
		return nil
	}
	s, err := w.l.StartAfter(lsn)
	if err == nil {
		w.start = s
		w.l.Checkpointed(s)
	}
	return err
}

func (w *owner) cutTo(lsn LSN) error {
	lsn = max(w.frameEnd(lsn), w.start.LSN)
	w.cut = &lsn
	if err := w.l.Cut(lsn); err != nil {
		return err
	}
	w.cut = nil
	w.durable = min(w.durable, lsn)
	w.frames = slices.DeleteFunc(w.frames, func(f Frame) bool { return f.First() > lsn })
	return nil
}

func (w *owner) reset() error {
	// Back or forth: a learner is told where to go on.
	to := w.l.End() + LSN(w.rng.IntN(20))
	to -= min(to, 10)
	w.start = w.l.BlankAfter(to, w.rng.Uint32())
	w.frames, w.durable, w.cut = nil, to, nil
	if err := w.l.Reset(w.start); err != nil {
		return err
	}
	w.start.Blank = false
	return nil
}

// check recovers a log and says which promise it breaks.
func (w *owner) check(found [][]byte, r Recovery) error {
	var live [][]byte
	for _, f := range w.frames {
		if f.First() > w.start.LSN {
			live = append(live, f.b)
		}
	}
	if len(found) > len(live) || !sameFrames(found, live[:len(found)]) {
		return fmt.Errorf("the %d frames found are no prefix of the %d written", len(found), len(live))
	}
	if w.cut != nil && r.End == *w.cut {
		return nil
	}
	if r.End < w.durable {
		return fmt.Errorf("record %d is the last, %d was durable", r.End, w.durable)
	}
	return nil
}

// recovers opens the log after a crash, checks it, appends what makes most trouble, and opens it once more.
func (w *owner) recovers(m *memfs.FS) error {
	l, r, found, err := open(w.o.on(m), w.start, RefuseCorruption)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := w.check(found, r); err != nil {
		return err
	}
	// A frame that was there before, byte by byte, is what a replica gets when it comes back: what lies behind
	// it on the disk would chain to it.
	var again Frame
	for _, f := range w.all {
		if f.First() == l.End()+1 && f.Header().Chain == l.EndSum() {
			again = f
		}
	}
	if len(again.b) == 0 {
		again = nextFrame(l, 7, 1, 0)
	}
	if _, err := l.Append(again); err != nil && err != ErrFull {
		return fmt.Errorf("append after recovery: %w", err)
	} else if err == nil {
		found = append(found, again.b)
	}
	if _, err := l.Sync(); err != nil {
		return err
	}
	want := l.End()
	start := w.start
	start.Blank = false
	l2, r2, found2, err := open(w.o.on(m.Crash(memfs.None)), start, RefuseCorruption)
	if err != nil {
		return fmt.Errorf("second recovery: %w", err)
	}
	defer l2.Close()
	if r2.End != want || !sameFrames(found, found2) {
		return fmt.Errorf("second recovery finds record %d and %d frames, not %d and %d", r2.End, len(found2), want, len(found))
	}
	return nil
}

// recoversInPieces crashes the recovery itself after each of its operations: the second one comes to the same end.
func (w *owner) recoversInPieces(m *memfs.FS) error {
	_, want, frames, err := open(w.o.on(m.Crash(memfs.None)), w.start, RefuseCorruption)
	if err != nil || !want.Torn {
		return err
	}
	for n := 0; ; n++ {
		half := m.Crash(memfs.None)
		half.StopAt(n)
		_, _, _, err := open(w.o.on(half), w.start, RefuseCorruption)
		for _, fate := range memfs.Fates(half.Pending(), uint64(n)) {
			_, r, got, err := open(w.o.on(half.Crash(fate)), w.start, RefuseCorruption)
			if err != nil || r.End != want.End || !sameFrames(got, frames) {
				return fmt.Errorf("recovery that is stopped at %d (%s) ends with %d, not %d: %w", n, fate.Name, r.End, want.End, err)
			}
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, memfs.ErrStopped) {
			return err
		}
	}
}

// crashes runs a workload once for each of its operations, stops there, and recovers from every disk that a power
// failure could leave. It returns the first broken promise.
func crashes(t testing.TB, seed uint64, steps int, broken mutation) error {
	for n := 0; ; n++ {
		m, o := created(t)
		o.broken = broken
		w := &owner{o: o, rng: rand.New(rand.NewPCG(seed, 1))}
		var err error
		if w.l, _, _, err = open(o, Start{}, RefuseCorruption); err != nil {
			return err
		}
		m.StopAt(m.Ops() + n)
		for i := 0; i < steps && err == nil; i++ {
			err = w.step()
		}
		if err != nil && !errors.Is(err, memfs.ErrStopped) {
			return fmt.Errorf("seed %d, operation %d: %w", seed, n, err)
		}
		pending := m.Pending()
		for _, fate := range memfs.Fates(pending, seed) {
			if err := w.recovers(m.Crash(fate)); err != nil {
				return fmt.Errorf("seed %d, operation %d, %s of %v: %w", seed, n, fate.Name, pending, err)
			}
		}
		if err := w.recoversInPieces(m.Crash(memfs.Random(seed, 0.5))); err != nil {
			return fmt.Errorf("seed %d, operation %d: %w", seed, n, err)
		}
		// The process dies, and what the next one finds is durable even if then the power fails (W6).
		m.Restart()
		_, r, found, openErr := open(w.o, w.start, RefuseCorruption)
		if openErr == nil {
			openErr = w.check(found, r)
		}
		if openErr != nil {
			return fmt.Errorf("seed %d, operation %d, restart: %w", seed, n, openErr)
		}
		_, r2, _, openErr := open(w.o.on(m.Crash(memfs.None)), w.start, RefuseCorruption)
		if openErr != nil || r2.End != r.End {
			return fmt.Errorf("seed %d, operation %d, restart, then power failure: %d was found, now %d: %w", seed, n, r.End, r2.End, openErr)
		}
		if err == nil {
			return nil // the workload came to its end
		}
	}
}

const crashSteps = 40

func TestEveryCrashLeavesAPrefixWithAllThatWasDurable(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			if err := crashes(t, seed, crashSteps, 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCrashTestSeesEachBrokenRule shows that the test above can fail.
func TestCrashTestSeesEachBrokenRule(t *testing.T) {
	for name, rule := range map[string]mutation{
		"skipOpenSync":     skipOpenSync,
		"ignorePayload":    ignorePayload,
		"ignoreCheckpoint": ignoreCheckpoint,
		"keepGhosts":       keepGhosts,
		"noEndMark":        noEndMark,
		"lazySegments":     lazySegments,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(200) {
				if err := crashes(t, seed, crashSteps, rule); err != nil {
					t.Log(err)
					return
				}
			}
			t.Error("nothing is noticed")
		})
	}
}
