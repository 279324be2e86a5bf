package memfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"lockstep/wal/vfs"
	"lockstep/wal/vfs/memfs"
)

// A disk that shares its content with others is still its own: whatever is done to one shows on no other.
func TestCrashedDisksAreIndependent(t *testing.T) {
	type disk struct {
		fs   *memfs.FS
		want []byte
	}
	rng := rand.New(rand.NewPCG(1, 1))
	const size = 300 * 4096 // some chunks of pages
	first := memfs.New()
	f, err := first.Create("f")
	must(t, err)
	must(t, f.Truncate(size))
	must(t, f.Sync())
	must(t, first.SyncDir("/"))
	disks := []disk{{first, make([]byte, size)}}
	for range 300 {
		d := &disks[rng.IntN(len(disks))]
		f, err := d.fs.Open("f")
		must(t, err)
		off, n := rng.IntN(size-20000), 1+rng.IntN(20000)
		b := make([]byte, n)
		if rng.IntN(3) == 0 {
			must(t, f.PunchHole(int64(off), int64(n)))
		} else {
			if rng.IntN(3) > 0 {
				b = bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, n)
			}
			must1(f.WriteAt(b, int64(off)))(t)
		}
		copy(d.want[off:], b)
		must(t, f.Sync())
		if len(disks) < 12 {
			disks = append(disks, disk{d.fs.Crash(memfs.None), bytes.Clone(d.want)})
		}
	}
	for i, d := range disks {
		got := make([]byte, size)
		f, err := d.fs.Open("f")
		must(t, err)
		must1(f.ReadAt(got, 0))(t)
		if !bytes.Equal(got, d.want) {
			t.Errorf("disk %d has another content than what was written to it", i)
		}
	}
}

// Of two writes to neighbouring sectors, and a sync, every combination is found, once.
func TestCrasherFindsEveryDiskOnce(t *testing.T) {
	m := memfs.New()
	f := file(t, m, 1)
	found := map[string]int{}
	c := memfs.Crasher{Check: func(disk *memfs.FS) error {
		kind := "power"
		if len(disk.Pending()) > 0 {
			kind = "killed"
		}
		found[fmt.Sprint(kind, content(t, disk))]++
		return nil
	}}
	c.Watch(m)
	must1(f.WriteAt(bytes.Repeat([]byte{2}, 1024), 0))(t)
	must1(f.WriteAt(bytes.Repeat([]byte{3}, 1024), 512))(t)
	must(t, f.Sync())
	c.Crash(m)
	for _, want := range []string{
		"power[1 1 1 1]", "power[2 2 1 1]", "power[1 3 3 1]", "power[2 3 3 1]", // none, one, the other, both
		"power[2 2 3 1]", "power[1 2 1 1]", "power[2 1 1 1]", "power[2 3 1 1]", // in the other order, torn
		"killed[2 2 1 1]", "killed[2 3 3 1]",
	} {
		if found[want] != 1 {
			t.Errorf("%s was found %d times", want, found[want])
		}
	}
	if c.Points != 4 || c.Images != len(found) || c.Checked != len(found) || c.Err != nil {
		t.Errorf("%d points, %d images, %d checked, %d found, %v", c.Points, c.Images, c.Checked, len(found), c.Err)
	}
}

// The number in the error brings the same image back.
func TestImageIsFoundAgainByItsNumber(t *testing.T) {
	broken := errors.New("broken")
	run := func(only int) *memfs.Crasher {
		m := memfs.New()
		f := file(t, m, 1)
		c := &memfs.Crasher{Seed: 5, Only: only, Check: func(disk *memfs.FS) error {
			if bytes.Equal(content(t, disk), []byte{1, 1, 2, 2}) {
				return broken
			}
			return nil
		}}
		c.Watch(m)
		must1(f.WriteAt(bytes.Repeat([]byte{2}, 2048), 0))(t)
		if err := f.Sync(); err == nil {
			t.Error("the workload goes on though a promise is broken")
		}
		c.Crash(m)
		return c
	}
	all := run(0)
	again := run(all.Images)
	if !errors.Is(all.Err, broken) || again.Err == nil || again.Err.Error() != all.Err.Error() || again.Checked != 1 {
		t.Errorf("%v, then %v after %d", all.Err, again.Err, again.Checked)
	}
}

func TestBadDisks(t *testing.T) {
	for _, c := range []struct {
		name       string
		effect     memfs.Effect
		err        error // of the write, or else of the sync
		seen, disk []byte
	}{
		{"short write", memfs.Effect{Err: syscall.ENOSPC, Sectors: 1}, syscall.ENOSPC, []byte{2, 1, 1, 1}, []byte{2, 1, 1, 1}},
		{"lost write", memfs.Effect{Lost: true}, nil, []byte{1, 1, 1, 1}, []byte{1, 1, 1, 1}},
		{"misdirected write", memfs.Effect{Shift: 1024}, nil, []byte{1, 1, 2, 2}, []byte{1, 1, 2, 2}},
		{"failed sync", memfs.Effect{Err: syscall.EIO}, syscall.EIO, []byte{2, 2, 1, 1}, []byte{1, 1, 1, 1}},
		{"failed sync, dropped", memfs.Effect{Err: syscall.EIO, Drop: true}, syscall.EIO, []byte{1, 1, 1, 1}, []byte{1, 1, 1, 1}},
	} {
		m := memfs.New()
		f := file(t, m, 1)
		m.Inject(func(op memfs.Op) memfs.Effect {
			if sync := c.effect.Err == syscall.EIO; sync == (op.Kind == "sync") && op.Kind != "read" {
				return c.effect
			}
			return memfs.Effect{}
		})
		_, err := f.WriteAt(bytes.Repeat([]byte{2}, 1024), 0)
		if err == nil {
			err = f.Sync()
		} else if err := f.Sync(); err != nil {
			t.Error(err)
		}
		m.Inject(nil)
		must(t, f.Sync())
		dropped := m.Kill()
		g, err2 := dropped.Open("f")
		must(t, err2)
		g.(vfs.CacheDropper).DropCache()
		if got := content(t, dropped); !bytes.Equal(got, c.disk) {
			t.Errorf("%s: without a cache readers see %v", c.name, got)
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := content(t, m); !bytes.Equal(got, c.seen) {
			t.Errorf("%s: readers see %v", c.name, got)
		}
		if got := content(t, m.Crash(memfs.None)); !bytes.Equal(got, c.disk) {
			t.Errorf("%s: on the disk is %v", c.name, got)
		}
	}
}

func TestHangingDiskHoldsUpNobodyElse(t *testing.T) {
	m := memfs.New()
	f := file(t, m, 1)
	release, began, done := make(chan struct{}), make(chan struct{}), make(chan error)
	m.Inject(func(op memfs.Op) memfs.Effect {
		if op.Kind != "sync" {
			return memfs.Effect{}
		}
		close(began)
		return memfs.Effect{Hang: release}
	})
	go func() { done <- f.Sync() }() // ends when released
	<-began
	must1(f.WriteAt([]byte{9}, 0))(t)
	if got := content(t, m); got[0] != 9 {
		t.Errorf("read beside it: %v", got)
	}
	close(release)
	must(t, <-done)
}
