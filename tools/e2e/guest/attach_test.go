package guest

import (
	"context"
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
	// views are the nodes' ways to the view server.
	views map[string]*cluster.Relay
}

func start(t *testing.T) *rig {
	t.Helper()
	dir := inside(t)
	began := time.Now()
	r := &rig{t: t, views: make(map[string]*cluster.Relay)}
	c, err := cluster.Start(t.Context(), cluster.Options{
		Binary: filepath.Join(dir, "lockstep"), Dir: t.TempDir(), Host: hostAddr, Size: "384M",
		NodeArgs: []string{"--log-size", "192M"},
		ViewOf: func(node, view string) string {
			relay, err := cluster.NewRelay(view)
			r.must(err)
			t.Cleanup(relay.Close)
			r.views[node] = relay
			return relay.Addr()
		},
	})
	r.c = c
	t.Cleanup(func() {
		if t.Failed() {
			if r.m != nil {
				if res, err := r.m.run(context.Background(), commandLimit, "tail -n 15 /var/lib/lockstep/attach/*.log"); err == nil {
					t.Logf("--- the agents' logs ---\n%s", res.Output)
				}
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

// One guest is for all, since booting it takes longer than most of what is looked at.
func TestKernelDevice(t *testing.T) {
	r := start(t)
	for _, test := range []struct {
		name string
		run  func(*rig)
	}{
		{"ext4 survives failovers and kills of the agent", survives},
		{"xfs survives a failover", survivesXFS},
		{"a volume is attached once", attachedOnce},
		{"a device that waited is given up if others had the volume", givenUp},
		{"a device nobody serves can be detached", detachedWithoutAgent},
		{"a read-only device cannot be written", readOnly},
		{"an agent that is asked to stop detaches what is not in use", stops},
		{"the ioctl interface", ioctl},
		{"udev names a volume and its partitions", named},
	} {
		if !t.Run(test.name, func(t *testing.T) { test.run(&rig{t: t, c: r.c, m: r.m, views: r.views}) }) {
			break // whatever is left in the guest would confuse the next
		}
	}
}

// A file system on /dev/nbd0 sees no error, loses nothing and stays consistent while primaries are killed, stopped and cut
// off from the view server, and the agent is killed and started again; also when all of that happens at once.
func survives(r *rig) {
	device := r.attach("")
	r.sh("test -b " + device + " && test $(readlink -f /dev/lockstep/vol0) = " + device)
	r.sh("mkfs.ext4 -q " + device + " && mount -t ext4 -o errors=remount-ro " + device + " /mnt")
	r.write()
	r.goesOn("undisturbed", 50)

	r.killPrimary(50)

	paused := r.primary()
	r.must(paused.Pause())
	r.goesOn("the primary was stopped", 50)
	r.must(paused.Resume())
	r.goesOn("it goes on, and is not primary any more", 50)
	r.must(r.c.AwaitSafe(r.t.Context()))

	// It reaches its backup and its clients; only the view server takes it for dead.
	cut, err := r.c.Primary(r.t.Context())
	r.must(err)
	r.views[cut].Cut()
	r.must(cluster.Await(r.t.Context(), slowLimit, "another primary", func() error {
		if now, err := r.c.Primary(r.t.Context()); err != nil || now == cut {
			return fmt.Errorf("the primary is %s (%v)", now, err)
		}
		return nil
	}))
	r.goesOn("the primary was cut off from the view server", 50)
	r.views[cut].Mend()
	r.must(r.c.AwaitSafe(r.t.Context()))

	old := r.agent()
	r.sh("kill -9 " + old)
	if list := r.sh("lockstep attach --list"); !strings.Contains(list, "waiting") {
		r.t.Errorf("without an agent:\n%s", list)
	}
	if again := r.attach(""); again != device {
		r.t.Errorf("attached again as %s, was %s", again, device)
	}
	if now := r.agent(); now == old || now == "0" {
		r.t.Errorf("the agent is process %s", now)
	}
	r.goesOn("the agent was killed and started again", 50)

	agent := r.agent()
	r.grow(device, 512<<20)
	r.sh("resize2fs " + device)
	r.goesOn("the volume and the file system have grown", 50)
	// A volume that grows while the device waits for an agent.
	r.sh("kill -9 " + agent)
	r.resize(520 << 20)
	r.attach("")
	r.hasSize(device, 520<<20)

	// What the first agent has sent lies in the stopped primary's socket when the kernel repeats it through the second.
	paused = r.primary()
	r.must(paused.Pause())
	r.sh("sleep 0.3; kill -9 " + r.agent())
	r.attach("")
	r.goesOn("both at once", 50)
	r.must(paused.Resume())
	r.goesOn("the late originals have arrived", 50)
	r.must(r.c.AwaitSafe(r.t.Context()))

	r.stop()
	if res := r.try("lockstep detach vol0"); res.Code == 0 || !strings.Contains(res.Output, "in use") {
		r.t.Errorf("a mounted device was detached: exit code %d: %s", res.Code, res.Output)
	}
	r.sh("umount /mnt && e2fsck -fn " + device)
	r.sh("echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 -o ro " + device + " /mnt")
	r.t.Log(r.sh("scribe check"))
	r.sh("umount /mnt && dumpe2fs -h " + device + " 2>/dev/null | grep 'Filesystem state: *clean'")
	r.detached(device)
	r.noErrors()
}

// resize makes the volume larger.
func (r *rig) resize(bytes uint64) {
	r.t.Helper()
	res, err := r.c.Command(r.t.Context(), "volume", "resize", "vol0", "--size", fmt.Sprint(bytes))
	r.must(err)
	if res.Code != 0 {
		r.t.Fatalf("resize: %s", res.Line())
	}
}

// grow makes the volume larger, and the device with it, whose agent runs on.
func (r *rig) grow(device string, bytes uint64) {
	r.t.Helper()
	agent := r.agent()
	r.resize(bytes)
	r.hasSize(device, bytes)
	if now := r.agent(); now != agent {
		r.t.Errorf("the agent is process %s, was %s", now, agent)
	}
}

// hasSize waits for the kernel's, and for what is noted.
func (r *rig) hasSize(device string, bytes uint64) {
	r.t.Helper()
	r.sh(fmt.Sprintf("until test $(cat /sys/block/%s/size) = %d; do sleep 0.1; done", filepath.Base(device), bytes/512))
	r.sh(fmt.Sprintf("until lockstep attach --list --json | grep -q '\"size\":%d,'; do sleep 0.1; done", bytes))
}

// killPrimary kills the primary while the file system is written to, and starts it again.
func (r *rig) killPrimary(files int) {
	r.t.Helper()
	killed := r.primary()
	killed.Kill()
	r.goesOn("the primary was killed", files)
	r.must(killed.Start())
	r.must(r.c.AwaitSafe(r.t.Context()))
}

func survivesXFS(r *rig) {
	device := r.attach("")
	r.sh("mkfs.xfs -q -f " + device + " && mount -t xfs " + device + " /mnt")
	r.write()
	r.goesOn("undisturbed", 30)
	r.killPrimary(30)
	r.sh("kill -9 " + r.agent())
	r.attach("")
	r.goesOn("the agent was killed and started again", 30)
	r.stop()
	r.sh("umount /mnt && xfs_repair -n " + device)
	r.sh("echo 3 >/proc/sys/vm/drop_caches; mount -t xfs -o ro " + device + " /mnt")
	r.t.Log(r.sh("scribe check"))
	r.sh("umount /mnt")
	r.detached(device)
	r.noErrors()
}

// elsewhere is another machine's notes, so to speak.
const elsewhere = " --state-dir /run/elsewhere"

// The second client is refused, gets no device, and is told who has the volume and what to do. It can take it over.
func attachedOnce(r *rig) {
	r.attach("")
	holder := r.agent()
	res := r.try("lockstep attach vol0 --view " + r.c.View + elsewhere)
	if res.Code != 4 || !strings.Contains(res.Output, "host guest, pid "+holder) || !strings.Contains(res.Output, "--take-over") {
		r.t.Errorf("exit code %d: %s", res.Code, res.Output)
	}
	r.sh("test ! -e /sys/block/nbd1/pid")

	other := r.attach("--take-over" + elsewhere)
	// The first one's agent ends, and takes its device along; the second may even have got the same.
	r.sh("while kill -0 " + holder + " 2>/dev/null; do sleep 0.1; done")
	if list := r.sh("lockstep attach --list"); !strings.Contains(list, "nothing is attached") {
		r.t.Errorf("after the take-over:\n%s", list)
	}
	r.sh("echo taken over >/tmp/in; dd if=/tmp/in of=" + other + " bs=4096 conv=sync,fsync count=1; lockstep detach vol0" + elsewhere)
	device := r.attach("")
	r.sh("dd if=" + device + " bs=10 count=1 2>/dev/null | grep 'taken over'")
	r.detached(device)
}

// What a device that waits for its agent knows of the disk is out of date once another client has had it.
func givenUp(r *rig) {
	device := r.attach("")
	r.sh("kill -9 " + r.agent())
	other := r.attach("--take-over" + elsewhere)
	r.sh("lockstep detach " + other + elsewhere)
	res := r.try("lockstep attach vol0 --view " + r.c.View)
	if res.Code != 4 || !strings.Contains(res.Output, "out of date") {
		r.t.Errorf("exit code %d: %s", res.Code, res.Output)
	}
	r.sh("test ! -e /sys/block/" + filepath.Base(device) + "/pid")
	r.detached(r.attach("")) // as a new client
}

func detachedWithoutAgent(r *rig) {
	device := r.attach("/dev/nbd3")
	if device != "/dev/nbd3" {
		r.t.Errorf("attached as %s", device)
	}
	r.sh("kill -9 " + r.agent())
	r.detached(device)
}

func readOnly(r *rig) {
	device := r.attach("--read-only --shared --block-size 512")
	if res := r.try("dd if=/dev/zero of=" + device + " bs=4096 count=1 conv=fsync"); res.Code == 0 {
		r.t.Error("it was written")
	}
	if n := r.sh("cat /sys/block/" + filepath.Base(device) + "/queue/logical_block_size"); n != "512" {
		r.t.Errorf("sectors of %s bytes", n)
	}
	r.detached(device)
}

func stops(r *rig) {
	device := r.attach("")
	r.sh("exec 5<" + device + "; kill " + r.agent() + "; while kill -0 " + r.agent() + "; do sleep 0.1; done; test -e /sys/block/" + filepath.Base(device) + "/pid")
	if list := r.sh("lockstep attach --list"); !strings.Contains(list, "waiting") {
		r.t.Errorf("an agent that was asked to stop while its device was open:\n%s", list)
	}
	r.attach("")
	agent := r.agent()
	r.sh("kill " + agent + "; while kill -0 " + agent + " 2>/dev/null; do sleep 0.1; done; test ! -e /sys/block/" + filepath.Base(device) + "/pid")
	if list := r.sh("lockstep attach --list"); !strings.Contains(list, "nothing is attached") {
		r.t.Errorf("an agent that was asked to stop while nobody used its device:\n%s", list)
	}
}

func ioctl(r *rig) {
	device := r.attach("--driver ioctl")
	r.grow(device, 524<<20)
	r.sh("dd if=/dev/zero of=" + device + " bs=1M seek=523 count=1 conv=fsync")
	r.sh("echo by ioctl >/tmp/in; dd if=/tmp/in of=" + device + " bs=4096 conv=sync,fsync count=1")
	r.detached(device)
	device = r.attach("")
	r.sh("dd if=" + device + " bs=8 count=1 2>/dev/null | grep 'by ioctl'")
	r.detached(device)
}

// The rule that a package installs is understood by udev, and does what it says.
func named(r *rig) {
	r.sh("ln -s udevadm /bin/systemd-udevd && systemd-udevd --daemon")
	device := r.attach("")
	r.sh("udevadm settle")
	name := filepath.Base(device)
	if links := r.sh("udevadm info --query=symlink --name=" + name); links != "lockstep/vol0" {
		r.t.Errorf("udev knows %s as %q", device, links)
	}
	r.sh("printf 'n\np\n1\n\n\nw\n' | fdisk " + device + "; udevadm settle")
	r.sh("test $(readlink -f /dev/lockstep/vol0-part1) = " + device + "p1")
	if scheduler := r.sh("cat /sys/block/" + name + "/queue/scheduler"); !strings.Contains(scheduler, "[none]") {
		r.t.Errorf("the kernel reorders requests: %s", scheduler)
	}
	r.detached(device)
	r.sh("udevadm settle; test ! -e /dev/lockstep/vol0-part1 && udevadm control --exit")
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
