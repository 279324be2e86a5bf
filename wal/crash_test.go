package wal

import (
	"flag"
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

	promises uint64 // how often any of the above changed
}

// step does one thing at random.
func (w *owner) step() error {
	w.promises++
	switch k := w.rng.IntN(100); {
	case k < 55:
		return w.append(nextFrame(w.l, w.rng.Uint64(), w.rng.IntN(5), w.rng.IntN(3)))
	case k < 75:
		return w.sync()
	case k < 87:
		return w.checkpoint(w.start.LSN + LSN(w.rng.Uint64N(uint64(w.durable-w.start.LSN)+1)))
	case k < 97:
		return w.cutTo(w.start.LSN + LSN(w.rng.Uint64N(uint64(w.l.End()-w.start.LSN)+1)))
	}
	return w.reset()
}

func (w *owner) sync() error {
	lsn, err := w.l.Sync()
	if err == nil {
		w.durable = lsn
		w.promises++
	}
	return err
}

func (w *owner) append(f Frame) error {
	if !w.l.Fits(len(f.b)) {
		if err := w.sync(); err != nil {
			return err
		}
		return w.checkpoint(w.durable)
	}
	// A frame whose write is interrupted may be found later: it counts.
	w.frames, w.all = append(w.frames, f), append(w.all, f)
	w.promises++
	_, err := w.l.Append(f)
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
		w.promises++
		w.l.Checkpointed(s)
	}
	return err
}

func (w *owner) cutTo(lsn LSN) error {
	lsn = max(w.frameEnd(lsn), w.start.LSN)
	w.cut = &lsn
	w.promises++
	if err := w.l.Cut(lsn); err != nil {
		return err
	}
	w.cut = nil
	w.promises++
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
	w.promises++
	if err := w.l.Reset(w.start); err != nil {
		return err
	}
	w.start.Blank = false
	w.promises++
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
	killed := len(m.Pending()) > 0
	l, r, found, err := open(w.o.on(m), w.start)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := w.check(found, r); err != nil {
		return err
	}
	if killed {
		// What was found is durable even if now the power fails (W6).
		_, r2, _, err := open(w.o.on(m.Crash(memfs.None)), w.start)
		if err == nil && r2.End != r.End {
			err = fmt.Errorf("record %d was found, but only %d after a power failure", r.End, r2.End)
		}
		if err != nil {
			return err
		}
	}
	want := append(found, w.appendAgain(l))
	if _, err := l.Sync(); err != nil {
		return err
	}
	start := w.start
	start.Blank = false
	l2, r2, found, err := open(w.o.on(m.Crash(memfs.None)), start)
	if err != nil {
		return fmt.Errorf("second recovery: %w", err)
	}
	defer l2.Close()
	if want[len(want)-1] == nil { // the log is full
		want = want[:len(want)-1]
	}
	if r2.End != l.End() || !sameFrames(found, want) {
		return fmt.Errorf("second recovery finds record %d and %d frames, not %d and %d", r2.End, len(found), l.End(), len(want))
	}
	return nil
}

// appendAgain appends a frame that was there before, byte by byte, as a replica gets it that comes back: what lies behind
// it on the disk would chain to it. Else it appends any.
func (w *owner) appendAgain(l *Log) []byte {
	f := nextFrame(l, 7, 1, 0)
	for _, old := range w.all {
		if old.First() == l.End()+1 && old.Header().Chain == l.EndSum() {
			f = old
		}
	}
	if !l.Fits(len(f.b)) {
		return nil
	}
	if _, err := l.Append(f); err != nil {
		panic(err) // it fits, it chains, the disk is good
	}
	return f.b
}

// recoversInPieces crashes the recovery itself, in every way: the second one comes to the same end.
func (w *owner) recoversInPieces(m *memfs.FS) error {
	_, want, frames, err := open(w.o.on(m.Crash(memfs.All)), w.start)
	if err != nil || !want.Torn && !w.start.Blank {
		return err // it writes nothing
	}
	again := &memfs.Crasher{Check: func(disk *memfs.FS) error {
		_, r, got, err := open(w.o.on(disk), w.start)
		if err == nil && (r.End != want.End || !sameFrames(got, frames)) {
			err = fmt.Errorf("it ends with record %d, not %d", r.End, want.End)
		}
		return err
	}}
	again.Watch(m)
	if _, _, _, err := open(w.o.on(m), w.start); err != nil && again.Err == nil {
		return err
	}
	if again.Err != nil {
		return fmt.Errorf("crash in the recovery: %w", again.Err)
	}
	return nil
}

// crashes runs a workload and crashes it before each of its operations. It tells how many disks it checked, and the
// first broken promise.
func crashes(t testing.TB, c memfs.Crasher, steps int, broken mutation) (int, error) {
	m, o := created(t)
	o.broken = broken
	w := &owner{o: o, rng: rand.New(rand.NewPCG(c.Seed, 1))}
	var err error
	if w.l, _, _, err = open(o, Start{}); err != nil {
		return 0, err
	}
	c.Promises = func() uint64 { return w.promises }
	c.Check = func(disk *memfs.FS) error {
		if len(disk.Pending()) == 0 { // else what is found depends on when the second crash comes
			if err := w.recoversInPieces(disk.Crash(memfs.All)); err != nil {
				return err
			}
		}
		return w.recovers(disk)
	}
	c.Watch(m)
	for i := 0; i < steps && err == nil; i++ {
		err = w.step()
	}
	if c.Crash(m); c.Err != nil {
		return c.Checked, c.Err
	}
	return c.Checked, err
}

var (
	crashSeed  = flag.Uint64("crash.seed", 0, "first seed of the crash test")
	crashSeeds = flag.Uint64("crash.seeds", 12, "number of seeds; with -short 1")
	crashImage = flag.Int("crash.image", 0, "check this image of the first seed alone")
)

const crashSteps = 60

func TestEveryCrashLeavesAPrefixWithAllThatWasDurable(t *testing.T) {
	seeds, every := *crashSeeds, 1
	switch {
	case *crashImage > 0:
		seeds = 1
	case testing.Short():
		seeds, every = 1, 5
	case raceEnabled:
		every = 10
	}
	for seed := *crashSeed; seed < *crashSeed+seeds; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			n, err := crashes(t, memfs.Crasher{Seed: seed, Every: every, Only: *crashImage}, crashSteps, 0)
			if err != nil {
				t.Error(err)
			}
			t.Logf("%d disks", n)
		})
	}
}

// TestCrashTestSeesEachBrokenRule shows that the test above can fail.
func TestCrashTestSeesEachBrokenRule(t *testing.T) {
	if raceEnabled {
		t.Skip("takes long; tools/test runs it without the race detector")
	}
	for name, rule := range map[string]mutation{
		"skipOpenSync":     skipOpenSync,
		"ignorePayload":    ignorePayload,
		"ignoreCheckpoint": ignoreCheckpoint,
		"keepGhosts":       keepGhosts,
		"noEndMark":        noEndMark,
		"lazySegments":     lazySegments,
		"noSync":           noSync,
		"unsyncedErase":    unsyncedErase,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disks := 0
			for seed := range uint64(40) {
				n, err := crashes(t, memfs.Crasher{Seed: seed, Every: 1}, crashSteps, rule)
				if disks += n; err != nil {
					t.Logf("seen on disk %d: %v", disks, err)
					return
				}
			}
			t.Errorf("nothing is noticed on %d disks", disks)
		})
	}
}
