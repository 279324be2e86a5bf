package blockdev

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs"
	"lockstep/wal/vfs/memfs"
)

// limited is a file that takes so many writes and holes more, and then has no space: a hole can need some, too, where it
// splits an extent.
type limited struct {
	vfs.File
	left *int
}

func (f limited) WriteAt(b []byte, off int64) (int, error) {
	if *f.left--; *f.left < 0 {
		return 0, fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	return f.File.WriteAt(b, off)
}

func (f limited) PunchHole(off, n int64) error {
	if *f.left--; *f.left < 0 {
		return fmt.Errorf("punch: %w", syscall.ENOSPC)
	}
	return f.File.PunchHole(off, n)
}

func (r *rig) limit(left *int) {
	for _, f := range []*pacedFile{r.s.image, r.s.sums.f, r.s.regions.f} {
		f.File = limited{f.File, left}
	}
	r.s.sessionsAt.f = limited{r.s.sessionsAt.f, left}
}

// Wherever the data files run out of space: what was written is readable and is applied when there is space again; nothing is
// poisoned while the log has room, and nothing is lost over a crash.
func TestFullDiskIsWaitedFor(t *testing.T) {
	for n := range 16 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			told := 0
			r := osRig(t, StoreOptions{Manual: true, OnEvent: func(e Event) {
				if _, ok := e.(EventDiskFull); ok {
					told++
				}
			}})
			left := n
			r.limit(&left)
			r.put(attach(1, 1), by(1, 1, write(3, 4)), write(900, 2), write(1500, 1), trim(4, 1))
			r.put(by(1, 2, write(5, 40)), write(1500, 1))
			r.put(write(1200, 1), write(100, 1))
			r.steps()
			if !r.s.DiskFull() && left < 0 {
				t.Errorf("after %d writes the disk is full, but nobody says so", n)
			}
			if err := r.s.Checkpoint(); left < 0 && (!errors.Is(err, syscall.ENOSPC) || told != 1) || r.s.Err() != nil {
				t.Fatalf("checkpoint: %v, told %d times, store: %v", err, told, r.s.Err())
			}
			r.verify()
			r.put(write(6, 2))
			if n%2 == 0 {
				r.check(r.s.Abandon())
				r.open()
				r.verify()
			}
			left = 1000
			r.steps()
			r.check(r.s.Checkpoint())
			if r.s.DiskFull() {
				t.Error("there is space again")
			}
			r.verify()
			r.check(r.s.Close())
			r.open()
			r.verify()
			r.check(r.checkMemory(1))
		})
	}
}

// A batch that was refused halfway is tried again, and may be refused earlier then: what it had brought into the image is
// not overwritten with older versions, which nothing but the image would tell from the newest.
func TestRefusedBatchGoesOnWhereItWas(t *testing.T) {
	const long = maxZeroEntries + 1 // blocks of a TRIM that is applied by itself
	for first := range 12 {
		for second := range first {
			t.Run(fmt.Sprint(first, second), func(t *testing.T) {
				r := newRig(t, memfs.New(), "replica", StoreOptions{Manual: true})
				left := first
				r.limit(&left)
				r.put(write(3, 1), write(600, 1), trim(500, long), write(3, 1), trim(800, long), write(900, 1))
				r.put(write(3, 2), write(7, 1))
				r.put(trim(sumsPerPage, sumsPerPage), write(901, 1)) // a page of sums is punched
				r.put(write(902, 1))                                 // it carries the commit point of all before
				for _, left = range []int{first, second, 1000} {
					r.steps()
					r.verify()
				}
				r.check(r.s.Close())
				r.open()
				r.verify()
			})
		}
	}
}

// Everything is applied, and the checkpoint was refused: when that succeeds there is nothing more to wait for space.
func TestDiskIsNotFullAfterACheckpoint(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	left := 1 // for the image, and none for the sums
	r.limit(&left)
	r.put(write(3, 1))
	r.steps()
	if !r.s.DiskFull() || r.s.Marks().Applied != r.end() {
		t.Fatalf("not what is to be tested: %+v", r.s.Marks())
	}
	left = 1000
	r.steps()
	if r.s.DiskFull() {
		t.Error("there is space again, and nobody says so")
	}
}

// A repair that is refused for want of space leaves the block as bad as it was, and the store as good.
func TestRefusedRepairMayBeTriedAgain(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.put(write(3, 1))
	r.check(r.s.Checkpoint())
	good := make([]byte, BlockSize)
	r.check(r.s.Read(3, good))
	r.check(r.s.image.write(make([]byte, BlockSize), 3*BlockSize))
	left := 0
	r.limit(&left)
	if err := r.s.Repair(3, good, r.end()); !errors.Is(err, syscall.ENOSPC) || r.s.Err() != nil {
		t.Fatalf("repair: %v, store: %v", err, r.s.Err())
	}
	left = 1000
	r.check(r.s.Repair(3, good, r.end()))
	r.verify()
}

// When the log is as good as full, too, the replica says so, with some of the log to spare. It takes no harm, and goes on when
// there is space.
func TestReplicaIsFullWhenTheLogIs(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	left := 0
	r.limit(&left)
	for !r.s.Full() {
		if !r.s.RoomFor(60 * BlockSize) {
			t.Fatal("the log is full, and the replica does not say so")
		}
		r.put(write(r.s.Blocks()-50, 50))
		r.s.Step()
	}
	if !r.s.RoomFor(2 * BlockSize) {
		t.Error("nothing of the log is left for a new view")
	}
	r.check(r.s.Err())
	r.verify()
	left = 1 << 30
	r.steps()
	if r.s.Full() || !r.s.RoomFor(60*BlockSize) {
		t.Error("there is space again, and the replica is full")
	}
	r.verify()
}

// written counts what goes to files.
type written struct {
	vfs.File
	n *int64
}

func (f written) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(b, off)
	*f.n += int64(n)
	return n, err
}

type writtenFS struct {
	vfs.FS
	n *int64
}

func (w writtenFS) Open(name string) (vfs.File, error) {
	f, err := w.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return written{f, w.n}, nil
}

// Random writes of 4 KiB, 16 in a frame as at queue depth 32, over a volume much larger than the log: everything that is written,
// log, image, checksums, regions and meta, is at most 2.2 times what the user wrote.
func TestBytesWrittenForRandomWrites(t *testing.T) {
	var n int64
	id := testIdentity()
	id.Size = 1 << 30
	fsys := memfs.New()
	must(t, Format(fsys, "r", FormatOptions{Identity: id, LogBytes: 64 << 20, SegmentBytes: 4 << 20}))
	s, err := OpenStore(StoreOptions{FS: writtenFS{fsys, &n}, Dir: "r", Manual: true})
	must(t, err)
	defer s.Abandon()
	var b wal.Builder
	data, sums := wal.AlignedBuffer(BlockSize), make([]uint32, 1)
	rnd := rand.New(rand.NewPCG(1, 1))
	const frames, writes = 1000, 16
	began := n
	for range frames {
		f := frameOf(s, &b, writes, 1, func() uint64 { return rnd.Uint64N(s.Blocks()) }, data, sums)
		must(t, s.Append(f))
		must(t, s.log.Err())
		s.Commit(f.Last())
		if s.pressed() {
			must(t, s.Sync())
			for s.pressed() { // as drive does
				if did, err := s.step(false); err != nil || !did {
					must(t, err)
					break
				}
			}
		}
	}
	must(t, s.Checkpoint())
	per := float64(n-began) / (frames * writes * BlockSize)
	t.Logf("%.3f bytes written for a byte", per)
	if per > 2.2 || per < 1.5 {
		t.Errorf("%.3f bytes written for a byte, at most 2.2 are wanted", per)
	}
}
