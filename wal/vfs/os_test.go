package vfs

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func realFile(t *testing.T, content []byte) *osFile {
	t.Helper()
	f, err := OS{}.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return f.(*osFile)
}

func TestPunchHoleGivesSpaceBack(t *testing.T) {
	f := realFile(t, bytes.Repeat([]byte{1}, 1<<20))
	used := func() int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(f.Name(), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	before := used()
	if err := f.PunchHole(0, 512<<10); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if after := used(); after >= before {
		t.Skipf("this file system keeps the space: %d bytes before, %d after", before, after)
	}
}

// TestHoleThatCannotBePunchedIsZeroed calls what PunchHole falls back on.
func TestHoleThatCannotBePunchedIsZeroed(t *testing.T) {
	content := bytes.Repeat([]byte{1}, 3<<20)
	f := realFile(t, content)
	if err := f.writeZeroes(1000, 2<<20+7); err != nil {
		t.Fatal(err)
	}
	clear(content[1000 : 1000+2<<20+7])
	if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v; equal: %v", len(got), err, bytes.Equal(got, content))
	}
}

func TestDropCacheLosesNothing(t *testing.T) {
	content := bytes.Repeat([]byte{7}, 64<<10)
	f := realFile(t, content)
	if _, err := f.WriteAt([]byte{8}, 5); err != nil {
		t.Fatal(err)
	}
	content[5] = 8
	f.DropCache()
	got := make([]byte, len(content))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%v; equal: %v", err, bytes.Equal(got, content))
	}
}

func TestSyncDoesNotAllocate(t *testing.T) {
	f := realFile(t, make([]byte, 4096))
	if n := testing.AllocsPerRun(20, func() { f.Sync() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLockIsFreeWhenItsHolderIsGone(t *testing.T) {
	name := filepath.Join(t.TempDir(), "LOCK")
	lock, err := OS{}.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (OS{}).Lock(name); err == nil {
		t.Fatal("two hold the lock")
	}
	lock.Close()
	again, err := OS{}.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// TestPrefetchBringsAllOfARangeIntoMemory: Linux reads a read-ahead window for one call, whatever it is asked for.
func TestPrefetchBringsAllOfARangeIntoMemory(t *testing.T) {
	const size = 4 << 20
	f := realFile(t, make([]byte, size))
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	page := make([]byte, 4096)
	cached := func() (n int) {
		for off := int64(0); off < size; off += 4096 {
			if f.ReadCachedAt(page, off) {
				n++
			}
		}
		return n
	}
	if cached() != size/4096 {
		t.Skip("the file system of the temporary directory cannot tell what is in memory")
	}
	f.DropCache()
	if n := cached(); n > size/4096/8 {
		t.Skipf("the system keeps %d of %d pages in memory", n, size/4096)
	}
	f.Prefetch(0, size)
	for deadline := time.Now().Add(time.Minute); cached() < size/4096*7/8; {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d pages are in memory", cached(), size/4096)
		}
		time.Sleep(time.Millisecond)
	}
}
