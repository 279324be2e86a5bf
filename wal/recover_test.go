package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"lockstep/wal/vfs"
	"lockstep/wal/vfs/memfs"
)

// edit changes bytes of a segment, durably, behind the log's back.
func edit(t testing.TB, m *memfs.FS, seg int, off int64, b []byte) {
	t.Helper()
	f := must1(m.Open(path.Join("/v/wal", segmentName(seg))))(t)
	must1(f.WriteAt(b, off))(t)
	must(t, f.Sync())
	must(t, f.Close())
}

// TestLastFrameTornAnywhereIsCut keeps only the first, or only the last, k sectors of the last frame.
func TestLastFrameTornAnywhereIsCut(t *testing.T) {
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	want := grow(t, l, 2)
	f := nextFrame(l, 3, 2, 0)
	must1(l.Append(f))(t)
	sectors := len(f.b) / 512
	for k := range sectors + 1 {
		for _, fate := range []memfs.Fate{memfs.Torn(0, 0, k), memfs.Torn(0, sectors-k, sectors)} {
			disk := o.on(m.Crash(fate))
			_, r, frames := opened(t, disk, Start{})
			// A sector that is all zero need not have been written.
			whole := r.End == 3 && k >= sectors-8 && sameFrames(frames, append(slices.Clone(want), f.b))
			if !whole && (r.End != 2 || !sameFrames(frames, want)) {
				t.Errorf("%s: record %d is the last of %d frames", fate.Name, r.End, len(frames))
			}
			l, r, _ := opened(t, disk, Start{})
			if r.Torn {
				t.Errorf("%s: the torn tail is still there when opened again: %+v", fate.Name, r)
			}
			grow(t, l, 1)
		}
	}
}

// TestDurableRecordLostIsCorruptionNotATornTail breaks each frame but the last, in the header area or in the payload (W7).
func TestDurableRecordLostIsCorruptionNotATornTail(t *testing.T) {
	for blocks, n := range map[int]int{1: 14, 2: 7, 5: 4} { // also frames that leave a gap, or have a segment each
		for lost := range n - 1 {
			for _, byteOf := range []int64{0, offCommit, fixedBytes + 40} {
				lose(t, blocks, n, lost, byteOf)
			}
			rotPayload(t, blocks, n, lost)
		}
	}
}

// rotPayload writes n frames and flips a bit in the payload of one of them: every frame is visited, the bad one as well, and
// nothing is cut; without proof it would be a torn tail.
func rotPayload(t *testing.T, blocks, n, lost int) {
	name := fmt.Sprintf("%d blocks, payload of frame %d", blocks, lost)
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	var positions []Pos
	for i := range uint64(n) {
		positions = append(positions, must1(l.Append(nextFrame(l, i, blocks, 0)))(t))
		must1(l.Sync())(t)
	}
	must(t, l.Close())
	at := positions[lost]
	must(t, m.Flip(path.Join("/v/wal", segmentName(int(at/8))), int64(at%8+1)*BlockSize+3000, 1))
	for range 2 {
		l, r, frames := opened(t, o, Start{})
		if r.End != LSN(n) || r.Frames != n || len(frames) != n || r.Torn || r.Rotten == nil || r.Rotten.LSN != LSN(lost+1) {
			t.Errorf("%s: %+v", name, r)
		}
		must(t, l.Close())
	}
}

// lose writes n frames and flips a bit in one of them.
func lose(t *testing.T, blocks, n, lost int, byteOf int64) {
	name := fmt.Sprintf("%d blocks, frame %d, byte %d", blocks, lost, byteOf)
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	var positions []Pos
	for i := range uint64(n) {
		positions = append(positions, must1(l.Append(nextFrame(l, i, blocks, 0)))(t))
		must1(l.Sync())(t)
	}
	must(t, l.Close())
	at := positions[lost]
	segment, offset := path.Join("/v/wal", segmentName(int(at/8))), int64(at%8)*BlockSize
	must(t, m.Flip(segment, offset+byteOf, 1))

	before := m.Ops()
	_, _, frames, err := open(o, Start{})
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) || corrupt.LSN != LSN(lost+1) || len(frames) != lost {
		t.Errorf("%s: %v", name, err)
	} else if byteOf > 0 && (corrupt.Segment != segment || corrupt.Offset != offset) {
		t.Errorf("%s: blames %s at %d: %v", name, corrupt.Segment, corrupt.Offset, err)
	}
	if wrote := m.Ops() - before; wrote != 4 {
		t.Errorf("%s: refused, but %d operations beside 4 syncs", name, wrote-4)
	}

	mutant := o.on(m.Crash(memfs.None))
	mutant.broken = callItTorn
	if _, _, _, err := open(mutant, Start{}); err != nil {
		t.Errorf("%s: the mutant does not live: %v", name, err)
	}

}

// A learner is sent what the others have had on stable storage for long, and writes many frames before it syncs: after a power
// failure the first may be lost and the others be there, and none of them is proof of anything. A segment that was
// entered, and what the owner knows, are.
func TestLearnersHeadersProveNothing(t *testing.T) {
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	for i := range uint64(4) {
		var b Builder
		data := payload(i, 1)
		b.Add(Record{Kind: KindWrite, Block: i, Count: 1}, data, sumsOf(i, data))
		must1(l.Append(b.Seal(Header{Salt: testSalt, First: l.End() + 1, Chain: l.EndSum(), Stable: 100})))(t)
	}
	lost := m.Crash(memfs.Drop(1)) // the second of four
	var corrupt *CorruptError
	if _, _, _, err := open(o.on(lost), Start{}); !errors.As(err, &corrupt) || corrupt.LSN != 2 {
		t.Errorf("a member: %v", err)
	}
	if _, _, _, err := open(o.on(lost), Start{Learner: true, Durable: 2}); !errors.As(err, &corrupt) || corrupt.LSN != 2 {
		t.Errorf("a learner whose owner knows better: %v", err)
	}
	l, r, _ := opened(t, o.on(lost), Start{Learner: true})
	if r.End != 1 || !r.Torn || r.Erased != 2 {
		t.Errorf("a learner: %+v", r)
	}
	grow(t, l, 5) // into the next segment
	must(t, l.Close())
	must(t, lost.Flip("/v/wal/00.seg", 2*BlockSize+60, 1))
	if _, _, _, err := open(o.on(lost), Start{Learner: true}); !errors.As(err, &corrupt) || corrupt.LSN != 2 {
		t.Errorf("a learner that lost what it had synced: %v", err)
	}
}

// TestFrameInALaterSegmentProvesThatTheOnesBeforeWereDurable (W8), when no header says so.
func TestFrameInALaterSegmentProvesThatTheOnesBeforeWereDurable(t *testing.T) {
	for lost, refused := range map[int64]bool{1: true, 3: true, 8: false, 9: false} { // block of the pool; 8 begins segment 1
		m, o := created(t)
		l, _, _ := opened(t, o, Start{})
		for range 14 {
			var b Builder
			b.Add(Record{Kind: KindView}, nil, nil)
			must1(l.Append(b.Seal(Header{Salt: testSalt, First: l.End() + 1, Chain: l.EndSum()})))(t)
		}
		must1(l.Sync())(t)
		must(t, l.Close())
		must(t, m.Flip(path.Join("/v/wal", segmentName(int(lost/8))), lost%8*BlockSize+100, 1))
		var corrupt *CorruptError
		_, r, _, err := open(o, Start{})
		if errors.As(err, &corrupt) != refused || !refused && (err != nil || r.End != LSN(lost)) {
			t.Errorf("frame at block %d lost: %+v, %v", lost, r, err)
		}
	}
}

func TestLastFrameIsMissedIfTheOwnerKnowsThatItWasDurable(t *testing.T) {
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 3)
	must(t, l.Close())
	must(t, m.Flip("/v/wal/00.seg", 5*BlockSize, 1))
	if _, r, _ := opened(t, o, Start{Durable: 3}); r.End != 3 || r.Rotten == nil || r.Rotten.LSN != 3 {
		t.Errorf("%+v", r)
	}
	if _, r, _ := opened(t, o, Start{Durable: 2}); r.End != 2 {
		t.Errorf("%+v", r)
	}
}

func TestDamagedPoolIsRefusedByName(t *testing.T) {
	m, o := created(t)
	const name = "/v/wal/02.seg"
	for what, damage := range map[string]func(m *memfs.FS) error{
		"missing": func(m *memfs.FS) error { return m.RemoveAll(name) },
		"cut short": func(m *memfs.FS) error {
			f := must1(m.Open(name))(t)
			return f.Truncate(8*BlockSize - 1)
		},
		"too long": func(m *memfs.FS) error {
			f := must1(m.Open(name))(t)
			return f.Truncate(9 * BlockSize)
		},
	} {
		copied := m.Crash(memfs.None)
		must(t, damage(copied))
		var damaged *SegmentError
		if _, _, _, err := open(o.on(copied), Start{}); !errors.As(err, &damaged) || damaged.Name != name {
			t.Errorf("%s: %v", what, err)
		} else if what == "missing" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v does not wrap fs.ErrNotExist", what, err)
		}
	}
	must1(m.Create("/v/wal/04.seg"))(t)
	if _, _, _, err := open(o, Start{}); err == nil || !strings.Contains(err.Error(), "5 files") {
		t.Errorf("one segment too many: %v", err)
	}
	o.Dir = "/v/none"
	if _, _, _, err := open(o, Start{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no log at all: %v", err)
	}
}

func TestFramesOfAnotherVolumeAreNotThere(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 5)
	must(t, l.Close())
	o.Salt++
	if _, r, _ := opened(t, o, Start{}); r.End != 0 || r.Torn {
		t.Errorf("%+v", r)
	}
}

// TestFramesOfAnOlderLapAreNotThere opens a log right behind its checkpoint, where the last lap left valid frames.
func TestFramesOfAnOlderLapAreNotThere(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	for range 3 * 16 { // frames of two blocks, 16 to a lap
		grow(t, l, 1)
		start := must1(l.StartAfter(l.End()))(t)
		l.Checkpointed(start)
		other, r, frames := opened(t, o, start)
		if r.End != start.LSN || r.Torn || len(frames) != 0 {
			t.Fatalf("behind record %d: %+v, %d frames", start.LSN, r, len(frames))
		}
		must(t, other.Close())
	}
}

// TestFrameThatDoesNotChainIsNotThere puts a frame with the right LSN and salt behind the end: a ghost that escaped
// every eraser.
func TestFrameThatDoesNotChainIsNotThere(t *testing.T) {
	recovered := func(broken mutation) LSN {
		m, o := created(t)
		l, _, _ := opened(t, o, Start{})
		grow(t, l, 2)
		must(t, l.Close())
		var b Builder
		b.Add(Record{Kind: KindView}, nil, nil)
		edit(t, m, 0, 4*BlockSize, b.Seal(Header{Salt: testSalt, First: 3, Chain: l.EndSum() + 1}).Bytes())
		o.broken = broken
		_, r, _ := opened(t, o, Start{})
		return r.End
	}
	if end := recovered(0); end != 2 {
		t.Errorf("recovered up to %d", end)
	}
	if end := recovered(ignoreChain); end != 3 {
		t.Errorf("the mutant does not live: %d", end)
	}
}

func TestNewerFrameIsNeitherReadNorCut(t *testing.T) {
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 1)
	b := bytes.Clone(nextFrame(l, 1, 1, 0).b)
	le.PutUint16(b[offVersion:], 2)
	le.PutUint32(b[offSum:], crc(b[offVersion:BlockSize]))
	edit(t, m, 0, 2*BlockSize, b)
	var newer *VersionError
	for _, learner := range []bool{false, true} {
		if _, _, _, err := open(o, Start{Learner: learner}); !errors.As(err, &newer) {
			t.Errorf("learner %v: %v", learner, err)
		}
	}
}

func TestCommitIsTheLargestSeenButNotBeyondTheEnd(t *testing.T) {
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 5) // each says that those before it are committed
	_, r, _ := opened(t, o.on(m.Crash(memfs.None)), Start{})
	if r.Commit != 4 || r.Frames != 5 {
		t.Errorf("%+v", r)
	}
	start := must1(l.StartAfter(5))(t)
	if _, r, _ := opened(t, o.on(m.Crash(memfs.None)), start); r.Commit != 5 {
		t.Errorf("behind a checkpoint: %+v", r)
	}
	var b Builder
	b.Add(Record{Kind: KindView}, nil, nil)
	must1(l.Append(b.Seal(Header{Salt: testSalt, First: 6, Chain: l.EndSum(), Commit: 99})))(t)
	if _, r, _ := opened(t, o.on(m.Crash(memfs.All)), Start{}); r.Commit != 6 {
		t.Errorf("with a frame that promises more: %+v", r)
	}
}

func TestVisitorsErrorEndsTheRecovery(t *testing.T) {
	_, o := created(t)
	l, _, _ := opened(t, o, Start{})
	grow(t, l, 3)
	stop := errors.New("stop")
	if _, _, err := Open(o, Start{}, func(Frame, Pos) error { return stop }); err != stop {
		t.Errorf("%v", err)
	}
}

// TestRecoveryTellsALogThatIsFullToTheLastBlock: behind its end comes the checkpoint's segment, which is alive.
func TestRecoveryTellsALogThatIsFullToTheLastBlock(t *testing.T) {
	m, o := created(t)
	l, _, _ := opened(t, o, Start{})
	var want [][]byte
	for l.Fits(2 * BlockSize) {
		want = append(want, grow(t, l, 1)...)
	}
	if l.Fill() != 1 {
		t.Fatalf("fill %v", l.Fill())
	}
	for range 2 {
		l, r, frames := opened(t, o.on(m.Crash(memfs.None)), Start{})
		if !sameFrames(frames, want) || r.Torn {
			t.Fatalf("%d frames of %d, %+v", len(frames), len(want), r)
		}
		if _, err := l.Append(nextFrame(l, 1, 0, 1)); err != ErrFull {
			t.Fatalf("append: %v", err)
		}
		// A cut of the last frame must leave the live one alone, and the other way round.
		must(t, l.Cut(l.End()-1))
		_, r, _ = opened(t, l.o, Start{})
		if r.End != l.End() || r.Torn {
			t.Fatalf("after a cut: %+v", r)
		}
		grow(t, l, 1)
	}
}

// FuzzOpen opens a log with bytes changed anywhere. Whatever they are it does not panic, and what it finds was once
// written. With fix the checksums of headers and marks are made right again, as a hostile writer would: then it only
// must not panic, and must leave a log that can go on.
func FuzzOpen(f *testing.F) {
	m, o := created(f)
	l, _, _ := opened(f, o, Start{})
	var written [][]byte
	start := Start{}
	for i := range uint64(23) { // more than a lap
		frame := nextFrame(l, i, int(i%4), int(i%3))
		must1(l.Append(frame))(f)
		written = append(written, frame.b)
		if i < 20 {
			must1(l.Sync())(f)
		}
		if i%5 == 4 {
			start = must1(l.StartAfter(l.Durable()))(f)
			l.Checkpointed(start)
		}
	}
	var mark [markBytes]byte
	endMark{l.End(), l.EndSum(), 1 << 40}.encode(mark[:], testSalt)
	for _, learner := range []bool{false, true} {
		for _, fix := range []bool{false, true} {
			f.Add(uint32(0), []byte{}, learner, fix)
			f.Add(uint32(l.EndPos()%32)*BlockSize, mark[:], learner, fix)
			f.Add(uint32(l.EndPos()%32)*BlockSize, written[0][:BlockSize], learner, fix)
			f.Add(uint32(start.Pos%32)*BlockSize+offRecords, []byte{255, 255, 255, 255}, learner, fix)
			f.Add(uint32(start.Pos%32)*BlockSize+offPayload, []byte{255, 30, 0, 0}, learner, fix)
			f.Add(uint32(start.Pos%32)*BlockSize+offStable, []byte{255, 30, 0, 0}, learner, fix)
		}
	}
	f.Fuzz(func(t *testing.T, off uint32, b []byte, learner, fix bool) {
		disk := m.Crash(memfs.All)
		for i := 0; i < len(b) && i < 64<<10; {
			at := (int(off) + i) % (32 * BlockSize)
			n := min(len(b)-i, 8*BlockSize-at%(8*BlockSize))
			edit(t, disk, at/(8*BlockSize), int64(at%(8*BlockSize)), b[i:i+n])
			i += n
		}
		if fix {
			fixSums(t, disk)
		}
		start := start
		start.Learner = learner
		l, r, frames, err := open(o.on(disk), start)
		if err != nil {
			return
		}
		defer l.Close()
		for _, frame := range frames {
			if !fix && !slices.ContainsFunc(written, func(w []byte) bool { return bytes.Equal(w, frame) }) {
				t.Fatal("found a frame that was never written")
			}
		}
		if r.End < start.LSN || len(frames) > 0 && r.End == start.LSN || len(frames) != r.Frames {
			t.Fatalf("%+v", r)
		}
		must1(l.ReadFrames(start.LSN+1, make([]byte, 32*BlockSize)))(t)
		if !l.Fits(2 * BlockSize) {
			return
		}
		frames = append(frames, grow(t, l, 1)...)
		if _, r2, again, err := open(o.on(disk), start); err != nil || r2.End != r.End+1 || !sameFrames(again, frames) {
			t.Fatalf("%+v, then %+v: %v", r, r2, err)
		}
	})
}

// fixSums gives every block that looks like a header or a mark the checksum that it should have.
func fixSums(t *testing.T, m *memfs.FS) {
	for seg := range 4 {
		file := must1(m.Open(path.Join("/v/wal", segmentName(seg))))(t)
		b := make([]byte, 8*BlockSize)
		must1(file.ReadAt(b, 0))(t)
		must(t, file.Close())
		for off := 0; off < len(b); off += BlockSize {
			head := b[off:]
			_, reason := frameSize(head)
			switch {
			case le.Uint32(head) == markMagic:
				le.PutUint32(head[offSum:], crc(head[8:markBytes]))
			case reason == "":
				if n := headBytes(int(le.Uint32(head[offRecords:])), int(le.Uint32(head[offPayload:]))); n <= len(head) {
					le.PutUint32(head[offSum:], crc(head[offVersion:n]))
				}
			}
		}
		edit(t, m, seg, 0, b)
	}
}

// TestRecoveryOfARealLog runs on the real file system, with frames larger than what a scan reads at a time.
func TestRecoveryOfARealLog(t *testing.T) {
	o := Options{FS: vfs.OS{}, Dir: t.TempDir() + "/wal", SegmentBytes: 8 << 20, Segments: 3, Salt: testSalt}
	must(t, Create(o))
	l, _, _ := opened(t, o, Start{})
	var want [][]byte
	for i, blocks := range []int{1, 700, 256, 3, 1500, 64, 0} {
		f := nextFrame(l, uint64(i), blocks, i)
		must1(l.Append(f))(t)
		want = append(want, f.b)
	}
	must1(l.Sync())(t)
	must(t, l.Close())
	l, r, frames := opened(t, o, Start{})
	if !sameFrames(frames, want) || r.Torn {
		t.Errorf("%d frames of %d, %+v", len(frames), len(want), r)
	}
	must(t, l.Cut(must1(l.FrameEnd(2))(t)))
	must(t, l.Close())
	l, r, _ = opened(t, o, Start{})
	if r.Frames != 2 || r.Torn {
		t.Errorf("after a cut: %+v", r)
	}
	must(t, l.Close())
}
