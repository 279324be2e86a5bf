package blockdev

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs/memfs"
)

// outcome is what a fault on a disk may come to.
type outcome string

const (
	harmless outcome = "harmless"  // everything reads as it should
	blockBad outcome = "block bad" // that block is reported, every other reads, and a repair brings it back
	refused  outcome = "refused"   // the replica does not open: it is to be copied from another member
	cutTail  outcome = "cut"       // taken for a torn tail: the last frame, of which nothing else knows
)

// rot is the table of what a flipped bit comes to, by the part of the file that it is in.
//
//	file      part                                        outcome
//	meta      one of the two slots                        harmless: there are two
//	meta      both, at the same place                     refused
//	data.img  a block that was written                    block bad
//	data.img  a hole, or kept space, in a region that was
//	          ever written                                block bad (B9)
//	data.crc  the sum of any block                        block bad
//	data.crc  the lowest bit of a hole's sum              harmless: zeroes all the same
//	regions   any entry                                   harmless: it counts as changed
//	sessions  one of the two slots                        harmless: there are two
//	sessions  both                                        refused
//	wal       below the checkpoint, behind the end        harmless
//	wal       a committed frame, its header or sums       refused (W7)
//	wal       a committed frame, its payload              block bad (W7)
//	wal       the last frame, that nobody says was stable  cut
type rot struct {
	part string
	file string
	offs []int64 // bytes whose bits are flipped, one at a time
	also int64   // and, if not 0, in the byte so much further on
	want outcome
	bad  int // the block that goes bad, or -1
}

// aged is a replica with something everywhere: blocks in the image under the checkpoint, a hole, a trimmed block, committed
// frames that are not applied, and a last frame of which nobody else knows.
func aged(t testing.TB) (w *survivor, m *memfs.FS, table []rot) {
	m = memfs.New()
	w = newSurvivor(t, m, 0)
	w.format()
	w.open()
	w.put(by(1, 1, write(0, 8)), write(RegionBlocks, 1))
	w.put(trim(5, 1), zero(6, 1), write(7, 1))
	w.view(1)
	w.steps()
	w.put(write(1, 1), zero(RegionBlocks, 1))
	w.put(write(2, 2))
	w.append(write(9, 1))
	w.sync()
	if w.err != nil {
		t.Fatal(w.err)
	}
	var frames []int64 // where the frames behind the checkpoint begin, in the only segment in use
	for i := range w.s.pending.frames.len() {
		frames = append(frames, int64(w.s.pending.frames.at(i).at)*BlockSize)
	}
	end := int64(w.s.log.EndPos()) * BlockSize
	w.die()

	const seg = walName + "/00.seg"
	slot := append(span8(0, metaTextOff+300, 1), span8(metaTextOff+300, metaSlotSize, 61)...)
	head := func(at int64) []int64 { return append(span8(at, at+96+64+16, 1), span8(at+176, at+BlockSize, 301)...) }
	table = []rot{
		{"first slot", metaName, slot, 0, harmless, -1},
		{"second slot", metaName, moved(slot, metaSlotSize), 0, harmless, -1},
		{"both slots", metaName, slot, metaSlotSize, refused, -1},
		{"block 0", imageName, span8(0, BlockSize, 97), 0, blockBad, 0},
		{"a trimmed block", imageName, span8(5*BlockSize, 6*BlockSize, 997), 0, blockBad, 5},
		{"a block whose space is kept", imageName, span8(6*BlockSize, 7*BlockSize, 997), 0, blockBad, 6},
		{"a hole", imageName, span8(100*BlockSize, 101*BlockSize, 997), 0, blockBad, 100},
		{"a hole in a region without data", imageName, span8(600*BlockSize, 601*BlockSize, 997), 0, harmless, -1},
		{"a block that waits in the log", imageName, span8(1*BlockSize, 2*BlockSize, 997), 0, harmless, -1},
		{"sum of block 7", sumsName, span8(7*4, 8*4, 1), 0, blockBad, 7},
		{"sum of a hole", sumsName, span8(100*4+1, 101*4, 1), 0, blockBad, 100},
		{"lowest bit of a hole's sum", sumsName, []int64{100 * 4}, 0, harmless, -1},
		{"sums behind the volume", sumsName, span8(crashBlocks*4, 2*pageSize, 511), 0, harmless, -1},
		{"regions", regionsName, span8(0, 8*5, 1), 0, harmless, -1},
		{"regions behind the volume", regionsName, span8(8*5, pageSize, 211), 0, harmless, -1},
		{"first slot", sessionsName, span8(0, 100, 1), 0, harmless, -1},
		{"second slot", sessionsName, span8(sessionsSlotBytes, sessionsSlotBytes+100, 1), 0, harmless, -1},
		{"both slots", sessionsName, span8(0, sessionsHead+sessionHead, 1), sessionsSlotBytes, refused, -1},
		{"frames below the checkpoint", seg, span8(0, frames[0], 1021), 0, harmless, -1},
		{"header area of a committed frame", seg, head(frames[0]), 0, refused, -1},
		{"payload of a committed frame", seg, span8(frames[0]+BlockSize, frames[1], 97), 0, blockBad, 1},
		{"header area of the last frame but one", seg, head(frames[1]), 0, refused, -1},
		{"header area of the last frame", seg, head(frames[2]), 0, cutTail, -1},
		{"payload of the last frame", seg, span8(frames[2]+BlockSize, end, 97), 0, cutTail, -1},
		{"behind the last frame", seg, span8(end, crashSegment, 997), 0, harmless, -1},
		{"another segment", walName + "/02.seg", span8(0, crashSegment, 3001), 0, harmless, -1},
	}
	return w, m, table
}

// span8 lists offsets from one to another.
func span8(from, to, step int64) (list []int64) {
	for off := from; off < to; off += step {
		list = append(list, off)
	}
	return list
}

func moved(offs []int64, by int64) (list []int64) {
	for _, o := range offs {
		list = append(list, o+by)
	}
	return list
}

// P6, W7: whatever bit rots on a disk that is at rest, the table says what the next start makes of it, and no read ever
// gives anything but what was written.
func TestRotFaultsComeToWhatTheTableSays(t *testing.T) {
	w, m, table := aged(t)
	flips := 0
	for _, c := range table {
		for i, off := range c.offs {
			if (testing.Short() || raceEnabled) && i%20 != 0 {
				continue
			}
			flips++
			disk := m.Crash(memfs.All)
			at := []int64{off}
			if c.also != 0 {
				at = append(at, off+c.also)
			}
			for _, at := range at {
				w.check(disk.Flip(w.dir+"/"+c.file, at, 1<<(off%8)))
			}
			if err := w.comesTo(disk, c.want, c.bad); err != nil {
				t.Errorf("%s, %s, byte %d: %v", c.file, c.part, off, err)
				break
			}
		}
	}
	t.Logf("%d flips", flips)
}

// comesTo opens a disk with a fault and tells in what the outcome differs from the one that is due.
func (w *survivor) comesTo(disk *memfs.FS, want outcome, bad int) error {
	r := *w.rig
	r.fs, r.o.FS = disk, disk
	s, err := OpenStore(r.o)
	if err != nil {
		var log *wal.CorruptError
		var other *DamagedError
		if want == refused && (errors.As(err, &log) || errors.As(err, &other)) {
			return nil
		}
		return fmt.Errorf("%s is due, it does not open: %w", want, err)
	}
	defer s.Abandon()
	r.s = s
	end := w.end()
	if want == cutTail {
		end = w.ends[len(w.ends)-2]
	}
	if m := s.Marks(); m.End != end {
		return fmt.Errorf("%s is due, the log ends with %d", want, m.End)
	}
	if p := string(s.Protocol()); p != state(w.saved) {
		return fmt.Errorf("%s is due, protocol state is %q", want, p)
	}
	s.Commit(end)
	if err := errors.Join(regionsKnow(&r), r.checkMemory(crashSessions)); err != nil {
		return err
	}
	found, err := badBlocks(&r)
	if err != nil {
		return err
	}
	var due []uint64
	if want == blockBad {
		due = []uint64{uint64(bad)}
	}
	if !slices.Equal(found, due) {
		return fmt.Errorf("%s is due, bad blocks are %v", want, found)
	}
	for _, b := range found { // another member has it
		data := make([]byte, BlockSize)
		stampBlock(data, b, r.content(end)[b])
		if err := s.Repair(b, data, end); err != nil {
			return fmt.Errorf("repair: %w", err)
		}
	}
	// All is well again, and goes on.
	if err := holds(&r, end); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	again, err := reopen(&r, disk.Crash(memfs.None), end)
	if err != nil {
		return err
	}
	return again.s.Abandon()
}

// badBlocks reads every block by itself, lists those that are corrupt, and compares the others.
func badBlocks(r *rig) (bad []uint64, err error) {
	got := make([]byte, BlockSize)
	var corrupt *CorruptBlockError
	for i, stamp := range r.content(r.s.Marks().Committed) {
		b := uint64(i)
		switch err := r.s.Read(b, got); {
		case errors.As(err, &corrupt) && corrupt.Block == b:
			bad = append(bad, b)
		case err != nil:
			return nil, err
		default:
			if err := differs(got, b, []uint64{stamp}); err != nil {
				return nil, err
			}
		}
	}
	return bad, nil
}
