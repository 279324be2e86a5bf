package blockdev

import (
	"errors"
	"testing"

	"lockstep/wal/vfs"
	"lockstep/wal/vfs/memfs"
)

// A crash while a replica is formatted or removed leaves a replica that is whole, or something that can be formatted:
// never what would keep a node from starting.
func TestCrashInFormatOrRemoveLeavesAReplicaOrNone(t *testing.T) {
	format := func(fsys vfs.FS) error {
		return Format(fsys, "r", FormatOptions{Identity: testIdentity(), LogBytes: 3 * 32768, SegmentBytes: 32768})
	}
	whole, half := 0, 0
	check := func(disk *memfs.FS) error {
		s, err := OpenStore(StoreOptions{FS: disk, Dir: "r", BootID: "boot", Manual: true})
		if err == nil {
			whole++
			return s.Close()
		}
		if _, missing := disk.List("r"); missing != nil {
			return nil
		}
		if !errors.Is(err, ErrHalfFormatted) {
			return err
		}
		half++
		return format(disk)
	}
	for stop := 1; ; stop++ {
		fsys := memfs.New()
		fsys.StopAt(stop)
		err := format(fsys)
		if err == nil {
			err = Remove(fsys, "r")
		}
		for i, fate := range memfs.Fates(fsys.Pending(), uint64(stop)) {
			if err := check(fsys.Crash(fate)); err != nil {
				t.Fatalf("crash at operation %d, fate %d: %v", stop, i, err)
			}
		}
		if err == nil {
			break
		}
	}
	if whole == 0 || half == 0 {
		t.Errorf("%d crashes left a replica, %d a half-formatted one: want some of both", whole, half)
	}
	if err := Remove(memfs.New(), "r"); err != nil {
		t.Errorf("remove of nothing: %v", err)
	}
}

func TestRemoveLeavesForeignFilesAlone(t *testing.T) {
	fsys := memfs.New()
	if err := fsys.MkdirAll("r"); err != nil {
		t.Fatal(err)
	}
	f, err := fsys.Create("r/precious")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := Remove(fsys, "r"); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("got %v, want ErrNotEmpty", err)
	}
	if _, err := fsys.Open("r/precious"); err != nil {
		t.Error(err)
	}
}
