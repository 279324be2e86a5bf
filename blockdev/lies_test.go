package blockdev

import (
	"errors"
	"fmt"
	"path"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// lies are what a disk does that says a write succeeded.
var lies = []struct {
	name string
	memfs.Effect
}{
	{"lost", memfs.Effect{Lost: true}},
	{"a block too far", memfs.Effect{Shift: BlockSize}},
	{"a block too near", memfs.Effect{Shift: -BlockSize}},
	{"a sector too far", memfs.Effect{Shift: 512}},
	{"64 blocks too far", memfs.Effect{Shift: 64 * BlockSize}},
}

// A disk that lies about a write costs what was written there, and what was overwritten instead; no read ever gives
// anything else than the replica's history up to some moment. What one replica alone cannot find out is in this table
// (doc.go: what is not found out here):
//
//	the lie is about  what may come of it, beside bad blocks and a replica that does not open
//	wal               the last frames are missing, as if they were torn
//	meta              protocol state and commit point as they were a save before, if a crash follows at once
//	regions           changes that a later copy would not know of
func TestFaultsThatTheDiskHidesGiveNoWrongData(t *testing.T) {
	if err := liedTo(t, 0); err != nil {
		t.Error(err)
	}
}

func TestFaultsThatTheDiskHidesAreMissedIfHolesAreTrusted(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("takes long; tools/test runs it without the race detector")
	}
	err := liedTo(t, trustHoles)
	if err == nil {
		t.Error("nobody noticed")
	}
	t.Log(err)
}

// liedTo lives with each lie, and gives the first that led to a broken promise.
func liedTo(t *testing.T, broken mutation) error {
	var refused, bad, fine int
	for n, op := range operations(t) {
		if op.Kind != "write" || sampled(n) {
			continue
		}
		for _, lie := range lies {
			if op.Off+lie.Shift < 0 {
				continue
			}
			w, m := liveWith(t, n, lie.Effect, broken)
			err := w.lied(m, path.Base(op.Name) == metaName, path.Base(path.Dir(op.Name)) == walName)
			switch {
			case errors.Is(err, errRefused):
				refused++
			case errors.Is(err, errBlocks):
				bad++
			case err == nil:
				fine++
			default:
				return fmt.Errorf("operation %d, %v: %s: %w", n, op, lie.name, err)
			}
		}
	}
	t.Logf("nothing came of %d lies, bad blocks of %d, a refusal of %d", fine, bad, refused)
	return nil
}

var (
	errRefused = errors.New("it does not open")
	errBlocks  = errors.New("some blocks are bad")
)

// lied tells what came of a lie: nothing, errRefused, errBlocks; any other error is a broken promise.
func (w *survivor) lied(m *memfs.FS, ofMeta, ofLog bool) error {
	if w.s != nil && !w.s.closed.Load() {
		err := w.readsRight()
		w.s.Abandon()
		if err != nil {
			return fmt.Errorf("while it lived: %w", err)
		}
	}
	r := *w.rig
	r.fs = m.Crash(memfs.All)
	r.o.FS = r.fs
	s, err := OpenStore(r.o)
	var log *wal.CorruptError
	var other *DamagedError
	switch {
	case errors.As(err, &log), errors.As(err, &other), !w.formatted && errors.Is(err, ErrNotReplica):
		return errRefused
	case err != nil:
		return err
	}
	defer s.Abandon()
	r.s = s
	mk := s.Marks()
	if mk.End > w.end() {
		return fmt.Errorf("log ends with %d, it had %d", mk.End, w.end())
	}
	if mk.End < w.synced && !ofLog {
		return fmt.Errorf("log ends with %d, acknowledged was %d", mk.End, w.synced)
	}
	if p := string(s.Protocol()); p != state(w.saved) && p != state(w.saving) && !ofMeta {
		return fmt.Errorf("protocol state %q, saved was %q", p, state(w.saved))
	}
	found, err := badBlocks(&r)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return errBlocks
	}
	return nil
}

// A write and its checksum that both land in the place of another block are as good as what belongs there, but for the
// block's number, which the checksum covers.
func TestFaultThatMovesBlockAndSumAlikeIsFound(t *testing.T) {
	m := memfs.New()
	w := newSurvivor(t, m, 0)
	w.format()
	w.open()
	m.Inject(func(op memfs.Op) (e memfs.Effect) {
		switch {
		case op.Kind != "write":
		case path.Base(op.Name) == imageName:
			e.Shift = 9 * BlockSize
		case path.Base(op.Name) == sumsName:
			e.Shift = 9 * 4
		}
		return e
	})
	w.put(write(0, 1))
	w.close()
	w.open()
	if w.err != nil {
		t.Fatal(w.err)
	}
	defer w.s.Abandon()
	var corrupt *CorruptBlockError
	if err := w.s.Read(9, make([]byte, BlockSize)); !errors.As(err, &corrupt) {
		t.Errorf("block 9 has what was written to block 0, and reads with %v", err)
	}
}
