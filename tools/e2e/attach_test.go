package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lockstep/tools/e2e/cluster"
)

// Without the kernel's nbd driver, `attach --fuse` makes a loop device. A file system on it sees no failover, others are
// refused meanwhile, and detaching leaves nothing behind.
func TestAttachedWithoutTheDriver(t *testing.T) {
	need(t, "nbdfuse", "losetup", "fusermount3", "mkfs.ext4", "e2fsck", "mount", "umount")
	if os.Getuid() != 0 {
		missing(t, "attaching needs root")
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			missing(t, "there is no "+dev)
		}
	}
	c := start(t, cluster.Options{Size: "192M"})
	state, other := t.TempDir(), t.TempDir()
	attach := func(state string, args ...string) cluster.Result {
		t.Helper()
		args = append([]string{"attach", c.Volume(), "--state-dir", state, "--fuse", t.TempDir(), "--log-level", "warn"}, args...)
		r, err := c.Command(t.Context(), args...)
		must(t, err)
		return r
	}
	detach := func(args ...string) cluster.Result {
		t.Helper()
		r, err := cluster.Command(t.Context(), program, append([]string{"detach", c.Volume(), "--state-dir", state}, args...)...)
		must(t, err)
		return r
	}
	r := attach(state, "--daemon")
	device := strings.TrimSpace(r.Stdout)
	if r.Code != 0 || !strings.HasPrefix(device, "/dev/loop") {
		t.Fatalf("attach: exit code %d: %q %s", r.Code, r.Stdout, r.Line())
	}
	t.Cleanup(func() { // if the test has failed in between; it has detached otherwise
		if _, err := os.Stat(filepath.Join(state, "attach", c.Volume()+".json")); err == nil {
			detach("--force")
		}
	})
	if again := attach(state); again.Code != 1 || !strings.Contains(again.Line(), "attached here already") {
		t.Errorf("twice with the same notes: exit code %d: %s", again.Code, again.Line())
	}
	if second := attach(other); second.Code != 4 || !strings.Contains(second.Line(), "attached exclusively by host") {
		t.Errorf("as another client: exit code %d: %s", second.Code, second.Line())
	}
	list, err := cluster.Command(t.Context(), program, "attach", "--list", "--json", "--state-dir", state)
	must(t, err)
	var reports []struct{ Volume, Device, State string }
	if err := json.Unmarshal([]byte(list.Stdout), &reports); err != nil || len(reports) != 1 ||
		reports[0].Volume != c.Volume() || reports[0].Device != device || reports[0].State != "attached" {
		t.Errorf("list: %q, %v", list.Stdout, err)
	}

	m := &mounted{t: t, loop: device}
	t.Cleanup(func() { m.loop = ""; m.detach() })
	command(t, "mkfs.ext4", "-q", device)
	m.mount()
	data := []byte(strings.Repeat("lockstep", 10_000))
	must(t, writeSynced(filepath.Join(m.dir, "before"), data))
	if r := detach(); r.Code != 1 || !strings.Contains(r.Line(), "is mounted at "+m.dir) {
		t.Errorf("detached while mounted: exit code %d: %s", r.Code, r.Line())
	}
	victim := c.Node(ask(t, c.Primary))
	victim.Kill()
	must(t, writeSynced(filepath.Join(m.dir, "after"), data))
	must(t, victim.Start())
	m.umount()
	command(t, "e2fsck", "-fn", device)
	if r := detach(); r.Code != 0 {
		t.Fatalf("detach: exit code %d: %s", r.Code, r.Line())
	}
	if out := command(t, "losetup", "--all"); strings.Contains(out, device+":") {
		t.Errorf("the loop device is still there: %s", out)
	}
	must(t, c.AwaitSafe(t.Context()))
	sameImages(t, c)
}
