package wal

import (
	"errors"
	"io"
	"math/rand/v2"
	"path"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"

	"lockstep/wal/vfs/memfs"
)

// segmentsOf copies what is in a log's directory, in a form that cannot be written through.
func segmentsOf(t testing.TB, m *memfs.FS) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	for _, name := range must1(m.List("/v/wal"))(t) {
		f := must1(m.Open(path.Join("/v/wal", name)))(t)
		b := make([]byte, must1(f.Size())(t))
		if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: b}
		must(t, f.Close())
	}
	return files
}

func inspected(t testing.TB, files fstest.MapFS, o InspectOptions) (Inspection, []Found) {
	t.Helper()
	var list []Found
	o.FS = files
	x, err := Inspect(o, func(f Found) error {
		f.Frame = Frame{}
		list = append(list, f)
		return nil
	})
	must(t, err)
	return x, list
}

// wander lets a log go through appends, syncs, checkpoints and cuts, and gives its last checkpoint. It returns before
// anything is closed or synced.
func wander(t testing.TB, o Options, seed uint64) (*Log, Start) {
	t.Helper()
	l, _, _ := opened(t, o, Start{})
	rng := rand.New(rand.NewPCG(seed, 7))
	start := Start{}
	for range 20 + rng.IntN(80) {
		switch rng.IntN(10) {
		case 0:
			must1(l.Sync())(t)
			if end, err := l.FrameEnd(start.LSN + 1 + LSN(rng.IntN(5))); err == nil {
				start = must1(l.StartAfter(end))(t)
				l.Checkpointed(start)
			}
		case 1:
			if end, err := l.FrameEnd(start.LSN + 1 + LSN(rng.IntN(20))); err == nil && end >= start.LSN {
				must(t, l.Cut(end))
			}
		case 2, 3:
			must1(l.Sync())(t)
		default:
			if _, err := l.Append(nextFrame(l, rng.Uint64(), rng.IntN(4), rng.IntN(3))); err != nil && err != ErrFull {
				t.Fatal(err)
			}
		}
	}
	return l, start
}

// TestInspectForetellsWhatOpenFinds, after crashes that lose or tear what was not synced and with flipped bits, and
// changes nothing.
func TestInspectForetellsWhatOpenFinds(t *testing.T) {
	torn, corrupt := 0, 0
	for seed := range uint64(120) {
		m, o := created(t)
		_, start := wander(t, o, seed)
		disk := m.Crash(memfs.Random(seed, 0.5))
		rng := rand.New(rand.NewPCG(seed, 8))
		if rng.IntN(2) == 0 {
			name := path.Join("/v/wal", segmentName(rng.IntN(o.Segments)))
			must(t, disk.Flip(name, rng.Int64N(o.SegmentBytes), 1<<rng.IntN(8)))
		}
		files := segmentsOf(t, disk)
		x, _ := inspected(t, files, InspectOptions{SegmentBytes: o.SegmentBytes, Segments: o.Segments, Salt: o.Salt, Start: &start})
		if !reflect.DeepEqual(files, segmentsOf(t, disk)) {
			t.Fatalf("seed %d: the inspection changed something", seed)
		}
		_, r, _, err := open(o.on(disk), start)
		var c *CorruptError
		switch {
		case errors.As(err, &c):
			corrupt++
			if x.Recovery.Corruption == nil || x.Recovery.Corruption.Reason != c.Reason || x.Recovery.Corruption.LSN != c.LSN {
				t.Errorf("seed %d: open found %v, inspect %+v", seed, c, x.Recovery)
			}
		case err != nil:
			t.Errorf("seed %d: %v", seed, err)
		default:
			if a, b := r.Rotten, x.Recovery.Rotten; a != nil && b != nil && a.LSN == b.LSN && a.Reason == b.Reason {
				r.Rotten = b // but for the directory
			}
			if r != x.Recovery {
				t.Errorf("seed %d: open found %+v, inspect %+v", seed, r, x.Recovery)
			}
			if r.Torn {
				torn++
			}
		}
	}
	if torn < 5 || corrupt < 5 {
		t.Errorf("only %d torn and %d corrupt logs: the walk is too tame", torn, corrupt)
	}
}

// TestInspectFindsEveryFrameOfTheLog: what is live or applied is, without a gap, what the log has.
func TestInspectFindsEveryFrameOfTheLog(t *testing.T) {
	laps := 0
	for seed := range uint64(80) {
		m, o := created(t)
		l, start := wander(t, o, seed)
		must1(l.Sync())(t)
		first, end := l.First(), l.End()
		x, list := inspected(t, segmentsOf(t, m), InspectOptions{SegmentBytes: o.SegmentBytes, Segments: o.Segments, Salt: o.Salt, Start: &start})
		if len(x.Problems) != 0 {
			t.Errorf("seed %d: %v", seed, x.Problems)
		}
		next := LSN(0)
		for _, f := range list {
			switch f.State {
			case FrameLive, FrameApplied:
				if next == 0 {
					// Frames may be there that the log calls overwritten: it entered their segment and cut again.
					next = min(f.Header.First, first)
				}
				if f.Header.First != next || (f.State == FrameLive) != (next > start.LSN) {
					t.Errorf("seed %d: a frame of record %d, %v, where %d is next; checkpoint %d", seed, f.Header.First, f.State, next, start.LSN)
				}
				next = f.last() + 1
			case FrameLeft:
				laps++
			case FrameFound, FrameBehind:
				t.Errorf("seed %d: %+v", seed, f)
			}
		}
		if next != end+1 && end+1 != first {
			t.Errorf("seed %d: the frames end with record %d, the log with %d", seed, next-1, end)
		}
	}
	if laps == 0 {
		t.Error("no log went round")
	}
}

// TestInspectFindsDamageBeforeTheCheckpoint, which Open does not look at, wherever it is.
func TestInspectFindsDamageBeforeTheCheckpoint(t *testing.T) {
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 11) // of two blocks each: four to a segment
	start := must1(l.StartAfter(11))(t)
	files := segmentsOf(t, m)
	for _, off := range []int64{0, 4, 17, 60, BlockSize + 5} { // magic, sum, salt, commit, payload of the frame
		for frame := range int64(11) {
			name := segmentName(int(frame / 4))
			b := files[name].Data
			at := frame%4*2*BlockSize + off
			b[at] ^= 0x20
			x, _ := inspected(t, files, InspectOptions{SegmentBytes: o.SegmentBytes, Segments: o.Segments, Salt: o.Salt, Start: &start})
			// In earlier segments a frame whose magic or salt is gone leaves no trace.
			if len(x.Problems) == 0 && (frame >= 8 || off == 4 || off > 20) {
				t.Errorf("frame %d, byte %d: nothing was found", frame, off)
			}
			b[at] ^= 0x20
		}
	}
}

func TestInspectGoesOnWithWhatIsThere(t *testing.T) {
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 9)
	files := segmentsOf(t, m)
	delete(files, "00.seg")
	files["02.seg"].Data = files["02.seg"].Data[:2*BlockSize+100]
	files["99.seg"] = &fstest.MapFile{}
	x, list := inspected(t, files, InspectOptions{SegmentBytes: o.SegmentBytes, Segments: o.Segments, Salt: o.Salt, Start: &Start{}})
	if len(list) != 5 || list[4].Header.First != 9 {
		t.Errorf("%d frames: %+v", len(list), list)
	}
	var all []string
	for _, p := range x.Problems {
		all = append(all, p.String())
	}
	text := strings.Join(all, "\n")
	for _, want := range []string{"00.seg: is missing", "02.seg: is 8292 bytes long instead of 32768", "99.seg: is not one of"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not among\n%s", want, text)
		}
	}
	// Without the owner's knowledge: shape and salt are guessed.
	x, list = inspected(t, segmentsOf(t, m), InspectOptions{})
	if x.Salt != testSalt || x.SegmentBytes != o.SegmentBytes || x.Segments != o.Segments || len(list) != 9 || list[0].State != FrameFound {
		t.Errorf("%+v, %d frames", x, len(list))
	}
	if _, err := Inspect(InspectOptions{FS: fstest.MapFS{}}, nil); err == nil {
		t.Error("an empty directory is a log")
	}
}

func FuzzInspect(f *testing.F) {
	m, o := created(f)
	l, _, _ := opened(f, o, Start{})
	grow(f, l, 5)
	f.Add(segmentsOf(f, m)["00.seg"].Data, uint64(2), uint64(4))
	f.Fuzz(func(t *testing.T, seg []byte, lsn, pos uint64) {
		files := fstest.MapFS{"00.seg": {Data: seg}, "01.seg": {Data: seg}, "02.seg": {Data: nil}}
		for _, o := range []InspectOptions{{}, {SegmentBytes: 8 * BlockSize, Segments: 3, Salt: testSalt, Start: &Start{LSN: LSN(lsn), Pos: Pos(pos)}}} {
			o.FS = files
			_, _ = Inspect(o, func(Found) error { return nil }) // that it comes to an end is all
		}
	})
}
