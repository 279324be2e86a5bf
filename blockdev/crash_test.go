package blockdev

import (
	"flag"
	"testing"

	"lockstep/wal/vfs/memfs"
)

var (
	crashSeed  = flag.Uint64("crash.seed", 1, "seed of the crash tests")
	crashImage = flag.Int("crash.image", 0, "check this image alone")
)

// crasher gives one that takes samples where everything would take too long.
func crasher() *memfs.Crasher {
	c := &memfs.Crasher{Seed: *crashSeed, Only: *crashImage, Every: 1}
	switch {
	case c.Only > 0:
	case testing.Short(), raceEnabled:
		c.Every = 40
	}
	return c
}

// crashLife crashes the life of a replica before each of its operations, and every recovery likewise.
func crashLife(t testing.TB, c *memfs.Crasher, broken mutation) error {
	m := memfs.New()
	w := newSurvivor(t, m, broken)
	c.Promises = func() uint64 { return w.promises }
	c.Check = w.survives
	c.Watch(m)
	w.live()
	if c.Crash(m); c.Err != nil {
		return c.Err
	}
	return w.err
}

func TestEveryCrashLeavesWhatWasAcknowledged(t *testing.T) {
	c := crasher()
	if err := crashLife(t, c, 0); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d crashes, %d disks, %d checked", c.Points, c.Images, c.Checked)
}

// Each of these rules, if it is not kept, is noticed by the crash tests: one of the three, within so many disks.
func TestCrashTestsNoticeBrokenRules(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("takes long; tools/test runs it without the race detector")
	}
	for _, c := range []struct {
		broken mutation
		what   string
		crash  func(testing.TB, *memfs.Crasher, mutation) error
	}{
		{ackUnsynced, "no sync before a write is acknowledged", crashLife},
		{applyUnrecorded, "B1: image ahead of the commit point that recovery knows", crashLife},
		{cutUnrecorded, "B1: commit point cut with the frames that carry it", crashLife},
		{metaBeforeSync, "B3: checkpoint before the image is stable", crashLife},
		{sumsUnsynced, "B3: checkpoint before the checksums are stable", crashLife},
		{regionsUnsynced, "B3, B5: checkpoint before the region table is stable", crashLife},
		{metaUnsynced, "meta written without a sync", crashLife},
		{sessionsNotSaved, "B8: checkpoint without the session table", crashLife},
		{releaseEarly, "W3: segments released before the checkpoint", crashLife},
		{keptAsHole, "space that is to stay allocated noted as a hole", crashLife},
		{namesUnsynced, "W6: names that a killed process made are not synced", crashLife},
		{growUnsynced, "B11: larger size noted before the files' lengths are stable", crashGrow},
		{growNotedFirst, "B11: larger size noted before the files have it", crashGrow},
		{growUnannounced, "files extended before that is noted", crashGrow},
		{copyDoneEarly, "B7: copying flag dropped before the copy is stable", crashCopy},
		{resetFirst, "a copy that begins with the log, and notes it afterwards", crashCopy},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			cr := &memfs.Crasher{Seed: *crashSeed}
			err := c.crash(t, cr, c.broken)
			if err == nil {
				t.Fatalf("nobody noticed on %d disks", cr.Checked)
			}
			t.Logf("noticed on disk %d: %v", cr.Checked, err)
		})
	}
}
