package blockdev

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockstep/wal"
	"lockstep/wal/vfs"
	"lockstep/wal/vfs/memfs"
)

func TestOpenSaysWhatIsWrong(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.put(write(1, 1))
	if _, err := OpenStore(r.o); !errors.Is(err, ErrInUse) {
		t.Errorf("second open: %v", err)
	}
	r.check(r.s.Close())
	if err := Format(r.fs, r.dir, FormatOptions{Identity: testIdentity(), LogBytes: testLog, SegmentBytes: testSegment}); !errors.Is(err, ErrExists) {
		t.Errorf("format again: %v", err)
	}

	truncate := func(name string, n int64) func(string) error {
		return func(dir string) error {
			st, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			return os.Truncate(filepath.Join(dir, name), st.Size()+n)
		}
	}
	remove := func(name string) func(string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	damaged := func(err error) bool { var e *DamagedError; return errors.As(err, &e) }
	segment := func(err error) bool { var e *wal.SegmentError; return errors.As(err, &e) }
	for _, c := range []struct {
		name  string
		spoil func(dir string) error
		is    func(error) bool
	}{
		{"directory is missing", os.RemoveAll, func(err error) bool { return errors.Is(err, ErrNotReplica) }},
		{"meta is missing", remove("meta"), damaged},
		{"foreign directory", func(dir string) error {
			return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600))
		}, func(err error) bool { return errors.Is(err, ErrNotReplica) && !errors.Is(err, ErrHalfFormatted) }},
		{"half-formatted", func(dir string) error {
			return os.Rename(filepath.Join(dir, "meta"), filepath.Join(dir, "meta.new"))
		}, func(err error) bool { return errors.Is(err, ErrHalfFormatted) }},
		{"log is missing", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "wal")) }, damaged},
		{"newer format", func(dir string) error {
			var b [metaSlotSize]byte
			m := sampleMeta()
			m.encode(&b)
			binary.LittleEndian.PutUint32(b[8:], metaVersion+1)
			resumSlot(&b)
			return os.WriteFile(filepath.Join(dir, "meta"), append(b[:], b[:]...), 0o600)
		}, func(err error) bool {
			var v *VersionError
			return errors.As(err, &v) && v.Found == metaVersion+1 && v.Known == metaVersion
		}},
		{"one slot of a newer format", func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, "meta"), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			var b [metaSlotSize]byte
			if _, err := f.ReadAt(b[:], 0); err != nil {
				return err
			}
			binary.LittleEndian.PutUint32(b[8:], metaVersion+1)
			resumSlot(&b)
			_, err = f.WriteAt(b[:], 0)
			return err
		}, func(err error) bool { var v *VersionError; return errors.As(err, &v) }},
		{"meta is short", truncate("meta", -1), damaged},
		{"meta is zeroes", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "meta"), make([]byte, 2*metaSlotSize), 0o644)
		}, damaged},
		{"image is missing", remove("data.img"), damaged},
		{"image is short", truncate("data.img", -4096), damaged},
		{"image is long", truncate("data.img", 4096), damaged},
		{"checksums are short", truncate("data.crc", -4096), damaged},
		{"regions are short", truncate("regions", -8), damaged},
		{"segment is missing", remove("wal/03.seg"), segment},
		{"segment is short", truncate("wal/03.seg", -4096), segment},
	} {
		dir := filepath.Join(t.TempDir(), "copy")
		r.check(os.CopyFS(dir, os.DirFS(r.dir)))
		r.check(c.spoil(dir))
		s, err := OpenStore(StoreOptions{FS: vfs.OS{}, Dir: dir, Manual: true})
		if err == nil {
			s.Abandon()
			t.Errorf("%s: opened", c.name)
			continue
		}
		if !c.is(err) || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// holeless is a file system without holes, and says so.
type holeless struct{ vfs.FS }

type holelessFile struct{ vfs.File }

func (h holeless) Open(name string) (vfs.File, error) {
	f, err := h.FS.Open(name)
	return holelessFile{f}, err
}

func (holelessFile) PunchesHoles() bool { return false }

func (f holelessFile) PunchHole(off, n int64) error {
	_, err := f.WriteAt(make([]byte, n), off)
	return err
}

// TestFileSystemWithoutHolesIsSaidOnce, and serves: what is trimmed reads as zeroes.
func TestFileSystemWithoutHolesIsSaidOnce(t *testing.T) {
	for _, c := range []struct {
		fs   vfs.FS
		want int
	}{{holeless{memfs.New()}, 1}, {memfs.New(), 0}} {
		said := 0
		r := newRig(t, c.fs, "r", StoreOptions{Manual: true, OnEvent: func(e Event) {
			if _, ok := e.(EventNoHoles); ok {
				said++
			}
		}})
		for range 3 {
			r.put(write(0, 40), trim(4, 30))
			r.steps()
		}
		r.verify()
		r.check(r.s.Close())
		if said != c.want {
			t.Errorf("said %d times, want %d", said, c.want)
		}
	}
}

// readOnlyFS is mounted read-only.
type readOnlyFS struct{ vfs.FS }

func (r readOnlyFS) erofs(op, name string) error {
	return &fs.PathError{Op: op, Path: name, Err: syscall.EROFS}
}
func (r readOnlyFS) Open(name string) (vfs.File, error)   { return nil, r.erofs("open", name) }
func (r readOnlyFS) Create(name string) (vfs.File, error) { return nil, r.erofs("open", name) }
func (r readOnlyFS) MkdirAll(name string) error           { return r.erofs("mkdir", name) }
func (r readOnlyFS) Lock(name string) (io.Closer, error)  { return nil, r.erofs("open", name) }

func TestReadOnlyFileSystemIsSaid(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.check(r.s.Close())
	_, err := OpenStore(StoreOptions{FS: readOnlyFS{vfs.OS{}}, Dir: r.dir, Manual: true})
	if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), r.dir) || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
	err = Format(readOnlyFS{vfs.OS{}}, r.dir+"2", FormatOptions{Identity: testIdentity(), LogBytes: testLog, SegmentBytes: testSegment})
	if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), r.dir+"2") {
		t.Error(err)
	}
}

func TestFormatLeavesForeignFilesAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	o := FormatOptions{Identity: testIdentity(), LogBytes: testLog, SegmentBytes: testSegment}
	if err := Format(vfs.OS{}, dir, o); !errors.Is(err, ErrNotEmpty) {
		t.Error(err)
	}
	for _, bad := range []func(*FormatOptions){
		func(o *FormatOptions) { o.Size = 0 },
		func(o *FormatOptions) { o.Size = 4097 },
		func(o *FormatOptions) { o.Size = 1 << 60 },
		func(o *FormatOptions) { o.LogBytes = 2 * testSegment },
		func(o *FormatOptions) { o.Replica = strings.Repeat("x", MaxTextBytes+1) },
	} {
		o := o
		bad(&o)
		if err := Format(vfs.OS{}, filepath.Join(dir, "new"), o); err == nil {
			t.Errorf("formatted %+v", o)
		}
	}
}

func TestHugeVolumeIsCheap(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	id := testIdentity()
	id.Size = 1 << 40
	if err := Format(vfs.OS{}, dir, FormatOptions{Identity: id, LogBytes: testLog, SegmentBytes: testSegment}); err != nil {
		t.Skipf("the file system takes no file of 1 TiB: %v", err)
	}
	began := time.Now()
	s, err := OpenStore(StoreOptions{FS: vfs.OS{}, Dir: dir, Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	t.Logf("opened in %v", time.Since(began))
	r := &rig{t: t, s: s, epoch: 1, next: 1}
	last := s.Blocks() - 1
	r.put(write(last, 1))
	r.put(histOp{kind: wal.KindTrim, block: 1, count: 1<<28 - 2})
	r.steps()
	r.check(s.Checkpoint())
	got := make([]byte, 2*BlockSize)
	r.check(s.Read(last-1, got))
	if err := differs(got, last-1, []uint64{0, 1}); err != nil {
		t.Error(err)
	}
	if n := s.table.entries(); n != 0 {
		t.Errorf("%d page-table entries are left", n)
	}
}

// P6: a bad block is found, named, and no other block is affected; and it can be repaired.
func TestBitFlipsAreFoundAndRepaired(t *testing.T) {
	fsys := memfs.New()
	r := newRig(t, fsys, "r", StoreOptions{Manual: true})
	r.put(write(0, 16))
	expect := func(bad uint64, inLog bool) {
		t.Helper()
		for b := range uint64(16) {
			buf := make([]byte, BlockSize)
			err := r.s.Read(b, buf)
			var c *CorruptBlockError
			switch {
			case b == bad:
				if !errors.As(err, &c) || c.Block != bad || c.InLog != inLog {
					t.Errorf("bad block %d: %v", b, err)
				}
			case err != nil:
				t.Errorf("block %d: %v", b, err)
			default:
				if err := differs(buf, b, []uint64{1 + b}); err != nil {
					t.Error(err)
				}
			}
		}
		if err := r.s.Read(0, make([]byte, 16*BlockSize)); bad < 16 && err == nil {
			t.Error("a read that covers the bad block succeeded")
		}
	}
	// In the log: frame 0 is at position 0, its payload behind one block of header.
	r.check(fsys.Flip("r/wal/00.seg", (1+5)*BlockSize+77, 0x10))
	expect(5, true)
	r.check(fsys.Flip("r/wal/00.seg", (1+5)*BlockSize+77, 0x10))
	r.steps()

	r.check(fsys.Flip("r/data.img", 7*BlockSize+4095, 0x01))
	expect(7, false)
	good := make([]byte, BlockSize)
	stampBlock(good, 7, 1+7)
	// Even if it is old: the stored sum says that it is right.
	r.check(r.s.Repair(7, good, 0))
	expect(99, false)

	r.check(r.s.Close())
	r.check(fsys.Flip("r/data.crc", 4*3, 0x80))
	r.open()
	expect(3, false)
	stampBlock(good, 3, 1+3)
	if err := r.s.Repair(3, good, 0); !errors.Is(err, ErrStale) {
		t.Errorf("repair with data that may be old: %v", err)
	}
	r.check(r.s.Repair(3, good, r.end()))
	expect(99, false)

	// Zeroes take no space again.
	r.check(r.s.Repair(3, make([]byte, BlockSize), r.end()))
	if n, state, err := r.s.Extent(3, 1); n != 1 || state&ExtentHole == 0 || err != nil {
		t.Errorf("a block that was made good with zeroes: state %v, error %v", state, err)
	}
	r.check(r.s.Close())
}

// A block that is right, in the wrong place, is not taken for the block of that place.
func TestMisdirectedWriteIsFound(t *testing.T) {
	fsys := memfs.New()
	r := newRig(t, fsys, "r", StoreOptions{Manual: true})
	r.put(write(0, 2))
	r.steps()
	r.check(r.s.Close())
	img, err := fsys.Open("r/data.img")
	r.check(err)
	crc, err := fsys.Open("r/data.crc")
	r.check(err)
	for f, n := range map[vfs.File]int64{img: BlockSize, crc: 4} {
		buf := make([]byte, n)
		_, err := f.ReadAt(buf, 0)
		r.check(err)
		_, err = f.WriteAt(buf, n)
		r.check(err)
	}
	r.open()
	if err := r.s.Read(1, make([]byte, BlockSize)); err == nil {
		t.Error("block 0 was taken for block 1")
	}
}

func TestStateSurvivesReopen(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	if r.s.CleanStart() || r.s.SameBoot() || r.s.Incarnation() != 1 {
		t.Error("fresh replica:", r.s.CleanStart(), r.s.SameBoot(), r.s.Incarnation())
	}
	r.check(r.s.SaveProtocol([]byte("view 7")))
	r.check(r.s.Close())
	r.open()
	if !r.s.CleanStart() || !r.s.SameBoot() || r.s.Incarnation() != 2 || string(r.s.Protocol()) != "view 7" || r.s.Identity() != testIdentity() {
		t.Error(r.s.CleanStart(), r.s.SameBoot(), r.s.Incarnation(), r.s.Protocol(), r.s.Identity())
	}
	r.check(r.s.Abandon())
	r.o.BootID = "another"
	r.open()
	if r.s.CleanStart() || r.s.SameBoot() || r.s.Incarnation() != 3 {
		t.Error(r.s.CleanStart(), r.s.SameBoot(), r.s.Incarnation())
	}
	r.check(r.s.Close())
}

// A sync that fails may take along what was written: that the machine still runs is no proof that nothing was lost.
func TestAFailedSyncIsRememberedByTheNextProcess(t *testing.T) {
	m := memfs.New()
	r := newRig(t, m, "r", StoreOptions{Manual: true})
	r.check(r.s.SaveProtocol(nil))
	r.append(write(0, 1))
	m.FailAt(m.Ops(), syscall.EIO)
	if err := r.s.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal("sync:", err)
	}
	r.o.FS = m.Kill()
	r.open()
	for range 2 { // the first time it is killed before it noted anything
		if r.s.SameBoot() {
			t.Error("what is in the page cache is taken for what is on the disk")
		}
		r.o.FS = r.o.FS.(*memfs.FS).Kill()
		r.open()
	}
	r.check(r.s.SaveProtocol(nil))
	r.o.FS = r.o.FS.(*memfs.FS).Kill()
	r.open()
	if !r.s.SameBoot() {
		t.Error("it is not forgotten by a run that has noted it")
	}
	r.check(r.s.Close())
}

func TestRefusalsChangeNothing(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	r.epoch = 5
	r.put(write(0, 4), write(4, 4))
	marks := r.s.Marks()
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"beyond the volume", r.try(write(r.s.Blocks()-1, 2)), ErrOutOfRange},
		{"far beyond the volume", r.try(histOp{kind: wal.KindTrim, block: 1 << 40, count: 1}), ErrOutOfRange},
		{"cut inside a frame", func() error { r.append(write(1, 1), write(2, 1)); return r.s.Cut(3) }(), ErrNotFrameEnd},
		{"cut below the commit point", r.s.Cut(0), ErrBelowCommit},
		{"read beyond the volume", r.s.Read(r.s.Blocks(), make([]byte, BlockSize)), ErrOutOfRange},
		{"read of half a block", r.s.Read(0, make([]byte, 100)), ErrOutOfRange},
		{"old epoch", func() error { r.epoch = 4; return r.try(write(1, 1)) }(), ErrOldEpoch},
		{"end of no copy", r.s.EndCopy(), ErrNotCopying},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v", c.name, c.err)
		}
	}
	r.check(r.s.Cut(2))
	if m := r.s.Marks(); m != marks || r.s.Err() != nil {
		t.Errorf("%+v, before %+v, %v", m, marks, r.s.Err())
	}
	r.check(r.s.Close())
	if err := r.s.Sync(); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// W7: a hole in what was stable is not cut.
func TestHoleInStableLogIsCorruption(t *testing.T) {
	fsys := memfs.New()
	r := newRig(t, fsys, "r", StoreOptions{Manual: true})
	for range 6 {
		r.put(write(0, 2))
	}
	r.check(r.s.Abandon())
	r.check(fsys.Flip("r/wal/00.seg", 3*3*BlockSize+40, 1)) // header of frame 4; each is 3 blocks long
	fsys.Restart()
	var corrupt *wal.CorruptError
	if _, err := OpenStore(r.o); !errors.As(err, &corrupt) {
		t.Fatal(err)
	}
}

// What is cut stays cut, though the frames that carried the commit point were cut with it: nothing that the image has
// can be cut after a crash.
func TestCommitPointSurvivesCutOfItsCarrier(t *testing.T) {
	fsys := memfs.New()
	r := newRig(t, fsys, "r", StoreOptions{Manual: true})
	r.put(write(0, 1))
	r.put(write(0, 1))
	r.append(write(0, 1)) // carries commit 2
	r.check(r.s.Sync())
	if did, err := r.s.Step(); !did || err != nil || r.s.Marks().Applied != 2 {
		t.Fatal(did, err, r.s.Marks())
	}
	r.check(r.s.Cut(2))
	r.forget(2)
	r.s.Abandon()
	r.o.FS = fsys.Crash(memfs.All)
	r.open()
	if m := r.s.Marks(); m.Committed != 2 || m.End != 2 {
		t.Errorf("%+v", m)
	}
	r.verify()
	r.check(r.s.Close())
}

func TestExtentTellsDataHolesAndKeptSpaceApart(t *testing.T) {
	r := osRig(t, StoreOptions{Manual: true})
	const hole = ExtentHole | ExtentZero
	r.put(write(10, 5), trim(12, 1), zero(14, 1), trim(600, 300), zero(600, 300))
	for range 2 {
		for _, c := range []struct {
			block, n uint64
			state    ExtentState
		}{{0, 10, hole}, {10, 2, 0}, {12, 1, hole}, {13, 1, 0}, {14, 1, ExtentZero}, {15, 585, hole}, {600, 300, ExtentZero}, {900, 1148, hole}} {
			if n, state, err := r.s.Extent(c.block, 1<<40); n != c.n || state != c.state || err != nil {
				t.Errorf("block %d: %d %v %v, want %+v", c.block, n, state, err, c)
			}
		}
		if n, _, _ := r.s.Extent(0, 7); n != 7 {
			t.Error(n)
		}
		r.steps()
	}
	if end, ok := r.s.FrameEnd(3); ok {
		t.Error("applied frame", end)
	}
	r.append(write(1, 1), write(2, 1))
	if end, ok := r.s.FrameEnd(6); !ok || end != 7 {
		t.Error(end, ok)
	}
	r.check(r.s.Close())
}

// The image alone is the disk after a clean stop, holes and all.
func TestImageIsTheDiskAfterCleanStop(t *testing.T) {
	fsys := memfs.New()
	r := newRig(t, fsys, "r", StoreOptions{Manual: true})
	for i := range uint64(12) {
		r.put(write(i*50, 50))
		r.steps()
	}
	r.put(trim(5, 1), zero(7, 2), write(8, 1))
	r.put(trim(20, 300), zero(330, 260))
	want := r.content(r.end())
	r.check(r.s.Close())
	f, err := fsys.Open("r/data.img")
	r.check(err)
	got := make([]byte, len(want)*BlockSize)
	_, err = f.ReadAt(got, 0)
	r.check(err)
	r.check(differs(got, 0, want))
}
