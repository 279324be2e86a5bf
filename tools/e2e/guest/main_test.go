package guest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
)

// hostAddr is where the cluster listens: an address for documentation (RFC 5737), which exists in the test's own
// network namespace only.
const hostAddr = "192.0.2.1"

// insideVariable has, inside the namespace, the directory of what was prepared outside; or missingVariable why not.
const (
	insideVariable  = "LOCKSTEP_GUEST_DIR"
	missingVariable = "LOCKSTEP_GUEST_MISSING"
)

// prepareLimit bounds the download of 70 MB and two builds.
const prepareLimit = 10 * time.Minute

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(insideVariable) != "" {
		os.Exit(m.Run())
	}
	code, err := outside()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

// outside prepares what needs the world (packages, modules of Go), and runs this program again in a network namespace.
func outside() (int, error) {
	dir, err := os.MkdirTemp("", "lockstep-guest-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	env := append(os.Environ(), insideVariable+"="+dir)
	ctx, cancel := context.WithTimeout(context.Background(), prepareLimit)
	defer cancel()
	if err := prepare(ctx, dir); err != nil {
		var lacking *missingError
		if !errors.As(err, &lacking) {
			return 0, err
		}
		env = append(env, missingVariable+"="+lacking.Error())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdin, os.Stdout, os.Stderr, env
	// It dies with this thread, which is this goroutine's until the end.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// missingError is something that this machine lacks.
type missingError struct{ what string }

func (e *missingError) Error() string { return e.what }

// tools are what the test runs on the host, or puts into the guest.
var tools = []string{
	"qemu-system-x86_64", "busybox", "mkfs.ext4", "e2fsck", "resize2fs", "dumpe2fs", "mkfs.xfs", "xfs_repair", "apt-get", "apt-cache",
	"dpkg-deb", "ip", "udevadm",
}

// udevRules is what a package of Lockstep installs for udev.
const udevRules = "60-lockstep.rules"

// prepare makes, in dir: lockstep, vmlinuz and initramfs.
func prepare(ctx context.Context, dir string) error {
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return &missingError{tool + " is not installed"}
		}
	}
	tree, err := kernel(ctx)
	if err != nil {
		return &missingError{err.Error()}
	}
	lockstep, err := cluster.Build(ctx, dir)
	if err != nil {
		return err
	}
	scribe := filepath.Join(dir, "scribe")
	build := exec.CommandContext(ctx, "go", "build", "-o", scribe, "./scribe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("guest: build scribe: %w\n%s", err, out)
	}
	modules, err := modulesFor(ctx, tree, "virtio_pci", "virtio_net", "nbd", "crc32c_generic", "ext4", "xfs")
	if err != nil {
		return err
	}
	a := newArchive()
	a.file("init", []byte(initScript))
	for i, m := range modules {
		a.file(fmt.Sprintf("modules/%02d-%s.ko", i, m.Name), m.ELF)
	}
	for _, tool := range []string{"busybox", "mkfs.ext4", "e2fsck", "resize2fs", "dumpe2fs", "mkfs.xfs", "xfs_repair", "udevadm"} {
		err = errors.Join(err, a.program(tool))
	}
	err = errors.Join(err, a.host("bin/lockstep", lockstep), a.host("bin/scribe", scribe),
		a.host("usr/lib/udev/rules.d/"+udevRules, filepath.Join("..", "..", "packaging", udevRules)))
	if err != nil {
		return fmt.Errorf("guest: initramfs: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "initramfs"), a.finish(), 0o644); err != nil {
		return err
	}
	return os.Symlink(tree.Image, filepath.Join(dir, "vmlinuz"))
}

// inside sets the namespace up, once, and gives the directory.
func inside(t *testing.T) string {
	t.Helper()
	if why := os.Getenv(missingVariable); why != "" {
		if os.Getenv("CI") == "true" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", hostAddr + "/32", "dev", "lo"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil && !strings.Contains(string(out), "File exists") {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	return os.Getenv(insideVariable)
}
