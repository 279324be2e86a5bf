package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"lockstep/wal/vfs/memfs"
)

// cachedRig holds blocks in the image, in the log, and zeroes over both.
func cachedRig(t *testing.T) *rig {
	r := osRig(t, StoreOptions{Manual: true})
	t.Cleanup(func() { r.s.Abandon() })
	r.put(write(0, 32))
	r.put(write(32, 32))
	r.put(trim(8, 4))
	r.check(r.s.Checkpoint())
	r.put(write(16, 8), trim(30, 3))
	r.append(write(40, 4)) // not committed: not visible
	return r
}

func TestReadCachedGivesWhatIsCommitted(t *testing.T) {
	r := cachedRig(t)
	want := r.content(r.s.Marks().Committed)
	buf := make([]byte, MaxCachedRead)
	for from := range uint64(64) {
		for _, n := range []uint64{1, 3, MaxCachedRead / BlockSize} {
			got := buf[:n*BlockSize]
			if !r.s.ReadCached(from, got) {
				t.Fatalf("%d blocks at %d were written just now and are not in memory", n, from)
			}
			if err := differs(got, from, want[from:from+n]); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestReadCachedLeavesBadBlocksToRead(t *testing.T) {
	r := cachedRig(t)
	image, err := os.OpenFile(filepath.Join(r.dir, "data.img"), os.O_RDWR, 0)
	r.check(err)
	defer image.Close()
	_, err = image.WriteAt([]byte("rot"), 2*BlockSize+100)
	r.check(err)
	buf := make([]byte, 4*BlockSize)
	if r.s.ReadCached(0, buf) {
		t.Error("a block that does not match its sum was returned")
	}
	var bad *CorruptBlockError
	if err := r.s.Read(0, buf); !errors.As(err, &bad) || bad.Block != 2 {
		t.Errorf("Read says %v, want block 2 corrupt", err)
	}
}

func TestReadCachedRefusesWhatItCannotDo(t *testing.T) {
	r := cachedRig(t)
	if r.s.ReadCached(r.s.Blocks()-1, make([]byte, 2*BlockSize)) {
		t.Error("a read past the end was answered")
	}
	if r.s.ReadCached(0, make([]byte, MaxCachedRead+BlockSize)) {
		t.Error("a read that is too long was answered")
	}
	mem := newRig(t, memfs.New(), "r", StoreOptions{Manual: true})
	mem.put(write(0, 1))
	if mem.s.ReadCached(0, make([]byte, BlockSize)) {
		t.Error("a file system that cannot tell what is in memory was believed")
	}
}
