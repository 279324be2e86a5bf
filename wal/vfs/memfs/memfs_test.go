package memfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"syscall"
	"testing"

	"lockstep/wal/vfs"
	"lockstep/wal/vfs/memfs"
)

// TestConformance runs what the storage relies on against the real file system and this one.
func TestConformance(t *testing.T) {
	t.Run("OS", func(t *testing.T) { conformance(t, vfs.OS{}, t.TempDir()) })
	t.Run("memfs", func(t *testing.T) {
		m := memfs.New()
		must(t, m.MkdirAll("/tmp/x"))
		conformance(t, m, "/tmp/x")
	})
}

func conformance(t *testing.T, m vfs.FS, root string) {
	dir := path.Join(root, "a/b")
	must(t, m.MkdirAll(dir))
	must(t, m.MkdirAll(dir))
	name := path.Join(dir, "f")

	if _, err := m.Open(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of a missing file: %v", err)
	}
	if _, err := m.List(path.Join(root, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("list of a missing directory: %v", err)
	}
	must(t, m.RemoveAll(name))
	f, err := m.Create(name)
	must(t, err)
	if _, err := m.Create(name); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create of an existing file: %v", err)
	}

	data := bytes.Repeat([]byte{7}, 3*4096)
	must1(f.WriteAt(data, 1000))(t)
	size, err := f.Size()
	if err != nil || size != 1000+3*4096 {
		t.Errorf("size %d, %v", size, err)
	}
	must(t, f.Sync())
	must(t, f.Truncate(8*4096))
	must(t, f.PunchHole(4096, 5000))
	must(t, f.PunchHole(7*4096, 1<<20)) // the length stays
	f.StartWriteback(0, 8*4096)
	want := make([]byte, 8*4096)
	copy(want[1000:], data)
	clear(want[4096 : 4096+5000])
	got := make([]byte, 8*4096+1)
	if n, err := f.ReadAt(got, 0); n != 8*4096 || err != io.EOF || !bytes.Equal(got[:n], want) {
		t.Errorf("read %d bytes, %v; equal: %v", n, err, bytes.Equal(got[:n], want))
	}
	must(t, f.Truncate(10))
	must(t, f.Truncate(4096))
	if n, err := f.ReadAt(got[:4096], 0); n != 4096 || err != nil || !bytes.Equal(got[:n], make([]byte, n)) {
		t.Errorf("what was cut off came back: %d bytes, %v", n, err)
	}
	must(t, f.Close())
	if err := f.Sync(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("sync of a closed file: %v", err)
	}
	f.StartWriteback(0, 1)
	if err := f.PunchHole(0, 1); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("punch of a closed file: %v", err)
	}

	other := path.Join(root, "a/c")
	must(t, m.Rename(dir, other))
	must(t, m.SyncDir(path.Join(root, "a")))
	g, err := m.Create(path.Join(other, "e"))
	must(t, err)
	must(t, g.Close())
	if names, err := m.List(other); err != nil || !slices.Equal(names, []string{"e", "f"}) {
		t.Errorf("after the rename: %v, %v", names, err)
	}

	lock, err := m.Lock(path.Join(root, "LOCK"))
	must(t, err)
	if _, err := m.Lock(path.Join(root, "LOCK")); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	must(t, lock.Close())
	lock, err = m.Lock(path.Join(root, "LOCK"))
	must(t, err)
	must(t, lock.Close())
	must(t, m.RemoveAll(path.Join(root, "a")))
}

// file makes a stable file of 4 sectors.
func file(t *testing.T, m *memfs.FS, fill byte) vfs.File {
	t.Helper()
	f, err := m.Create("f")
	must(t, err)
	must1(f.WriteAt(bytes.Repeat([]byte{fill}, 2048), 0))(t)
	must(t, f.Sync())
	must(t, m.SyncDir("."))
	return f
}

// content is the first byte of each sector.
func content(t *testing.T, m *memfs.FS) []byte {
	t.Helper()
	f, err := m.Open("f")
	must(t, err)
	b := make([]byte, 2048)
	must1(f.ReadAt(b, 0))(t)
	return []byte{b[0], b[512], b[1024], b[1536]}
}

func TestCrashKeepsWhatWasSyncedAndTheFateOfTheRest(t *testing.T) {
	m := memfs.New()
	f := file(t, m, 1)
	must1(f.WriteAt(bytes.Repeat([]byte{2}, 1024), 512))(t)
	must1(f.WriteAt(bytes.Repeat([]byte{3}, 512), 1024))(t)
	for _, c := range []struct {
		fate memfs.Fate
		want []byte
	}{
		{memfs.None, []byte{1, 1, 1, 1}},
		{memfs.All, []byte{1, 2, 3, 1}},
		{memfs.Drop(0), []byte{1, 1, 3, 1}},
		{memfs.Drop(1), []byte{1, 2, 2, 1}},
		{memfs.Torn(0, 1, 2), []byte{1, 1, 3, 1}},
		{memfs.Torn(0, 0, 1), []byte{1, 2, 3, 1}},
	} {
		if got := content(t, m.Crash(c.fate)); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.fate.Name, got, c.want)
		}
	}
	if got := content(t, m); !bytes.Equal(got, []byte{1, 2, 3, 1}) {
		t.Errorf("the original has changed: %v", got)
	}
}

func TestNamesNeedTheDirectorySynced(t *testing.T) {
	m := memfs.New()
	f, err := m.Create("f")
	must(t, err)
	must1(f.WriteAt(make([]byte, 2048), 0))(t)
	must(t, f.Sync())
	if _, err := m.Crash(memfs.None).Open("f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an entry that was not synced survived: %v", err)
	}
	must(t, m.SyncDir("/"))
	must(t, m.Rename("f", "g"))
	for fate, want := range map[*memfs.Fate]string{&memfs.None: "f", &memfs.All: "g"} {
		if names, _ := m.Crash(*fate).List("/"); !slices.Equal(names, []string{want}) {
			t.Errorf("%s: %v, want %s", fate.Name, names, want)
		}
	}
}

func TestFailedSyncIsNeverMadeUpFor(t *testing.T) {
	m := memfs.New()
	f := file(t, m, 1)
	must1(f.WriteAt(bytes.Repeat([]byte{2}, 512), 0))(t)
	m.FailAt(m.Ops(), syscall.EIO)
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync: %v", err)
	}
	must1(f.WriteAt(bytes.Repeat([]byte{3}, 512), 1024))(t)
	must(t, f.Sync())
	if got := content(t, m); !bytes.Equal(got, []byte{2, 1, 3, 1}) {
		t.Errorf("readers see %v", got)
	}
	f.(vfs.CacheDropper).DropCache()
	if got := content(t, m); !bytes.Equal(got, []byte{1, 1, 3, 1}) {
		t.Errorf("without the cache readers see %v", got)
	}
	if got := content(t, m.Crash(memfs.None)); !bytes.Equal(got, []byte{1, 1, 3, 1}) {
		t.Errorf("on the disk is %v", got)
	}
}

func TestNothingHappensAfterTheStop(t *testing.T) {
	m := memfs.New()
	f := file(t, m, 1)
	n := m.Ops()
	m.StopAt(n + 1)
	must1(f.WriteAt(bytes.Repeat([]byte{2}, 512), 0))(t)
	if err := f.Sync(); !errors.Is(err, memfs.ErrStopped) {
		t.Errorf("sync after the stop: %v", err)
	}
	if _, err := f.WriteAt([]byte{9}, 0); !errors.Is(err, memfs.ErrStopped) {
		t.Errorf("write after the stop: %v", err)
	}
	if m.Ops() != n+1 || len(m.Pending()) != 1 {
		t.Errorf("%d operations, pending %v", m.Ops()-n, m.Pending())
	}
	m.Restart()
	if got := content(t, m); !bytes.Equal(got, []byte{2, 1, 1, 1}) {
		t.Errorf("a restarted process sees %v", got)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must1[T any](_ T, err error) func(testing.TB) {
	return func(t testing.TB) { t.Helper(); must(t, err) }
}
