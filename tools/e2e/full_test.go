package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"lockstep/blockdev"
	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// smallDisk puts a node on an empty disk of its own, all of whose space but some is taken until release is called.
func smallDisk(t *testing.T, c *cluster.Cluster, node string, size, left int64) (release func()) {
	t.Helper()
	c.Node(node).Kill()
	dir := c.DataDir(node)
	must(t, os.RemoveAll(dir))
	must(t, os.MkdirAll(dir, 0o755))
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)))
	t.Cleanup(func() {
		c.KillAll()
		must(t, syscall.Unmount(dir, 0))
	})
	must(t, c.Node(node).Start())
	must(t, c.AwaitSafe(t.Context()))
	return takeSpace(t, dir, left)
}

// takeSpace leaves so much of a file system.
func takeSpace(t *testing.T, dir string, left int64) (release func()) {
	t.Helper()
	name := filepath.Join(dir, "volumes", "filler")
	f, err := os.Create(name)
	must(t, err)
	defer f.Close()
	must(t, cluster.Await(t.Context(), serveLimit, "less space", func() error { // others take some meanwhile
		var s syscall.Statfs_t
		must(t, syscall.Statfs(dir, &s))
		return syscall.Fallocate(int(f.Fd()), 0, 0, int64(s.Bavail)*s.Bsize-left)
	}))
	return func() { must(t, os.Remove(name)) }
}

// fill writes MiB after MiB until done, or until a write fails, whose error it returns with where it was.
func fill(t *testing.T, d *stamped.NBD, at int, done func() bool) (int, error) {
	t.Helper()
	for n := at; !done(); n++ {
		if n-at > 1000 {
			t.Fatal("1000 MiB were written, and no disk is full")
		}
		if err := d.WriteAt(mib(n), uint64(n%200)<<20, false); err != nil {
			return n, err
		}
		at = min(at, n)
	}
	return at, nil
}

func mib(n int) []byte { return []byte(strings.Repeat(fmt.Sprintf("%07d\n", n), 1<<20/8)) }

// A backup's disk is full: it leaves the view, the status says why, and it is back when there is space. Then it is alone, and
// its disk is full again: the client is told ENOSPC, reads on, and writes when there is space.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "mounting needs root")
	}
	c := start(t, cluster.Options{})
	backup := ask(t, c.Backup)
	other := ask(t, c.Primary)
	release := smallDisk(t, c, backup, 800<<20, 30<<20)
	withDisk(t, c.URI, func(d *stamped.NBD) {
		n, err := fill(t, d, 0, func() bool { s, _, err := c.Status(t.Context()); return err == nil && s.Volumes[0].State == "degraded" })
		must(t, err)
		r, err := c.Command(t.Context(), "status")
		must(t, err)
		if text := r.Stdout + r.Stderr; !strings.Contains(text, "disk is full") {
			t.Errorf("the status does not tell of the full disk: %s", text)
		}
		release()
		must(t, c.AwaitSafe(t.Context()))

		c.Node(other).Kill()
		n, err = fill(t, d, n, func() bool { return ask(t, c.Primary) == backup })
		must(t, err)
		release = takeSpace(t, c.DataDir(backup), 10<<20)
		n, err = fill(t, d, n, func() bool { return false })
		if !errors.Is(err, blockdev.ErrNoSpace) {
			t.Fatalf("write %d to a full disk: %v", n, err)
		}
		got := make([]byte, 1<<20)
		must(t, d.ReadAt(got, uint64((n-1)%200)<<20))
		if string(got) != string(mib(n-1)) {
			t.Error("what was acknowledged last is not there")
		}
		release()
		must(t, cluster.Await(t.Context(), serveLimit, "space", func() error { return d.WriteAt(mib(n), uint64(n%200)<<20, false) }))
	})
	must(t, c.StartAll())
	must(t, c.AwaitSafe(t.Context()))
	sameImages(t, c)
}
