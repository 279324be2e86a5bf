package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
)

const (
	// commandLimit and slowLimit are how long a command in the guest may take, on a busy machine, with a failover.
	commandLimit = 60 * time.Second
	slowLimit    = 120 * time.Second
)

// rig is a cluster on the host and a guest that uses it.
type rig struct {
	t *testing.T
	c *cluster.Cluster
	m *machine
}

func start(t *testing.T) *rig {
	t.Helper()
	dir := inside(t)
	began := time.Now()
	c, err := cluster.Start(t.Context(), cluster.Options{
		Binary: filepath.Join(dir, "lockstep"), Dir: t.TempDir(), Host: hostAddr, Size: "384M",
		NodeArgs: []string{"--log-size", "192M"},
	})
	r := &rig{t: t, c: c}
	t.Cleanup(func() {
		if t.Failed() {
			if r.m != nil {
				t.Logf("--- the guest's console ---\n%s", r.m.tail(6000))
			}
			t.Log(c.Logs(3000))
		}
		c.KillAll()
	})
	r.must(err)
	r.m, err = boot(t.Context(), filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initramfs"), t.TempDir())
	if r.m != nil {
		t.Cleanup(r.m.kill)
	}
	r.must(err)
	t.Logf("cluster and guest are up after %v", time.Since(began).Round(time.Millisecond))
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// try runs a script in the guest.
func (r *rig) try(script string) result {
	r.t.Helper()
	res, err := r.m.run(r.t.Context(), commandLimit, script)
	r.must(err)
	return res
}

// sh runs a script that has to succeed, and gives its output.
func (r *rig) sh(script string) string {
	r.t.Helper()
	res := r.try(script)
	if res.Code != 0 {
		r.t.Fatalf("in the guest: %s: exit code %d: %s", script, res.Code, res.Output)
	}
	return strings.TrimSpace(res.Output)
}

// attach starts an agent in the guest and gives the device.
func (r *rig) attach(flags string) string {
	r.t.Helper()
	device := r.sh("lockstep attach vol0 --daemon --view " + r.c.View + " " + flags)
	if !strings.HasPrefix(device, "/dev/nbd") {
		r.t.Fatalf("attached as %q", device)
	}
	return device
}

// agent is the pid of the agent, as the list of attachments has it.
func (r *rig) agent() string {
	r.t.Helper()
	return r.sh(`lockstep attach --list --json | sed 's/.*"pid":\([0-9]*\).*/\1/'`)
}

// progress is how many writes of scribe's were acknowledged.
func (r *rig) progress() int {
	r.t.Helper()
	out := r.sh("cat /run/scribe/progress; cat /run/scribe/error 2>/dev/null; true")
	n, err := strconv.Atoi(out)
	if err != nil {
		r.t.Fatalf("scribe: %s", out)
	}
	return n
}

// goesOn waits until n more writes were acknowledged.
func (r *rig) goesOn(what string, n int) {
	r.t.Helper()
	began := time.Now()
	until := r.progress() + n
	r.must(cluster.Await(r.t.Context(), slowLimit, what, func() error {
		if have := r.progress(); have < until {
			return fmt.Errorf("%d writes, want %d", have, until)
		}
		return nil
	}))
	r.t.Logf("%s: %d writes in %v", what, n, time.Since(began).Round(time.Millisecond))
}

// write starts scribe on a file system.
func (r *rig) write() {
	r.t.Helper()
	r.sh("rm -rf /run/scribe; mkdir /run/scribe; echo 0 >/run/scribe/progress; scribe write >/run/scribe/log 2>&1 & echo $! >/run/scribe.pid")
}

// stop ends scribe, in good order.
func (r *rig) stop() {
	r.t.Helper()
	r.sh("touch /run/scribe/stop; while kill -0 $(cat /run/scribe.pid) 2>/dev/null; do sleep 0.1; done; cat /run/scribe/log; test ! -e /run/scribe/error")
}

// primary is the node that is primary now.
func (r *rig) primary() *cluster.Process {
	r.t.Helper()
	id, err := r.c.Primary(r.t.Context())
	r.must(err)
	return r.c.Node(id)
}

// A file system on /dev/nbd0 sees no error, loses nothing and stays consistent while primaries are killed and stopped and
// the agent is killed and started again; also when all of that happens at once.
func TestKernelDeviceSurvivesFailovers(t *testing.T) {
	r := start(t)
	device := r.attach("")
	r.sh("test -b " + device + " && test $(readlink -f /dev/lockstep/vol0) = " + device)
	r.sh("mkfs.ext4 -q " + device + " && mount -t ext4 -o errors=remount-ro " + device + " /mnt")
	r.write()
	r.goesOn("undisturbed", 50)

	killed := r.primary()
	killed.Kill()
	r.goesOn("the primary was killed", 50)
	r.must(killed.Start())
	r.must(r.c.AwaitSafe(t.Context()))

	paused := r.primary()
	r.must(paused.Pause())
	r.goesOn("the primary was stopped", 50)
	r.must(paused.Resume())
	r.goesOn("it goes on, and is not primary any more", 50)
	r.must(r.c.AwaitSafe(t.Context()))

	old := r.agent()
	r.sh("kill -9 " + old)
	if again := r.attach(""); again != device {
		t.Errorf("attached again as %s, was %s", again, device)
	}
	if now := r.agent(); now == old || now == "0" {
		t.Errorf("the agent is process %s", now)
	}
	r.goesOn("the agent was killed and started again", 50)

	// What the first agent has sent lies in the stopped primary's socket when the kernel repeats it through the second.
	paused = r.primary()
	r.must(paused.Pause())
	r.sh("sleep 0.3; kill -9 " + r.agent())
	r.attach("")
	r.goesOn("both at once", 50)
	r.must(paused.Resume())
	r.goesOn("the late originals have arrived", 50)
	r.must(r.c.AwaitSafe(t.Context()))

	r.stop()
	if res := r.try("lockstep detach vol0"); res.Code == 0 || !strings.Contains(res.Output, "in use") {
		t.Errorf("a mounted device was detached: exit code %d: %s", res.Code, res.Output)
	}
	r.sh("umount /mnt && e2fsck -fn " + device)
	r.sh("echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 -o ro " + device + " /mnt")
	t.Log(r.sh("scribe check"))
	r.sh("umount /mnt && dumpe2fs -h " + device + " 2>/dev/null | grep 'Filesystem state: *clean'")
	r.detached(device)
	r.noErrors()
}

// detached detaches, and looks that nothing is left.
func (r *rig) detached(device string) {
	r.t.Helper()
	r.sh("lockstep detach vol0")
	r.sh("test ! -e /sys/block/" + filepath.Base(device) + "/pid && test ! -e /dev/lockstep/vol0")
	if list := r.sh("lockstep attach --list"); !strings.Contains(list, "nothing is attached") {
		r.t.Errorf("after detaching:\n%s", list)
	}
}

// noErrors looks for what the kernel says of failed requests and broken file systems.
func (r *rig) noErrors() {
	r.t.Helper()
	if bad := r.sh("dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|XFS.*(error|corrupt|shutdown)|Call Trace' || true"); bad != "" {
		r.t.Errorf("the guest's kernel complains:\n%s", bad)
	}
	if os.Getenv("LOCKSTEP_GUEST_DMESG") != "" {
		r.t.Log(r.sh("dmesg | tail -n 60"))
	}
}
