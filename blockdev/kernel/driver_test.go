package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hangGuard ends a test that waits for something that does not come.
const hangGuard = 30 * time.Second

// pairFor is a socket pair that goes with the test.
func pairFor(t *testing.T) *os.File {
	t.Helper()
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return theirs
}

func TestMissingDriverIsSaid(t *testing.T) {
	k := newFakeKernel(t)
	k.noDriver = true
	if _, err := openNetlink(k.dial); !errors.Is(err, ErrNoDriver) {
		t.Errorf("got %v", err)
	}
}

func TestDriverRefusesWhatIsInUse(t *testing.T) {
	d := newFakeKernel(t).open(t)
	for want := range fakeDevices {
		index, err := d.Connect(AnyIndex, exampleConfig, pairFor(t))
		if err != nil || index != want {
			t.Fatalf("device %d, %v; want %d", index, err, want)
		}
	}
	if _, err := d.Connect(AnyIndex, exampleConfig, pairFor(t)); !errors.Is(err, ErrBusy) {
		t.Errorf("one too many: %v", err)
	}
	if _, err := d.Connect(1, exampleConfig, pairFor(t)); !errors.Is(err, ErrBusy) {
		t.Errorf("a device in use: %v", err)
	}
	if err := d.Reconfigure(1, "somebody else", exampleConfig.Size, pairFor(t)); !errors.Is(err, ErrNotConfigured) {
		t.Errorf("another's device: %v", err)
	}
	if err := d.Disconnect(1); err != nil {
		t.Error(err)
	}
	if err := d.Reconfigure(1, exampleConfig.Identifier, exampleConfig.Size, pairFor(t)); !errors.Is(err, ErrNotConfigured) {
		t.Errorf("a device that is not attached: %v", err)
	}
}

// K2, K3: what the kernel is told of time.
func TestKernelIsToldToWait(t *testing.T) {
	k := newFakeKernel(t)
	if _, err := k.open(t).Connect(0, exampleConfig, pairFor(t)); err != nil {
		t.Fatal(err)
	}
	got := k.device(0)
	if got.timeout != 0 || got.deadConn != 3600 || got.sectors != 4096 || got.config.Size != 1<<30 {
		t.Errorf("%+v", got)
	}
}

func TestDeviceNames(t *testing.T) {
	for s, index := range map[string]int{"/dev/nbd0": 0, "nbd15": 15, "/dev/nbd1000": 1000} {
		if d, err := ParseDevice(s); err != nil || d.Index != index {
			t.Errorf("%q: %v, %v", s, d, err)
		}
	}
	for _, s := range []string{"", "/dev/sda", "nbd", "nbd-1", "nbd01", "/dev/nbd0p1", "/dev/../nbd0", "nbd99999999"} {
		if d, err := ParseDevice(s); err == nil {
			t.Errorf("%q: accepted as %v", s, d)
		}
	}
}

func TestDeviceIsReadFromSys(t *testing.T) {
	root := t.TempDir()
	write := func(name, s string) {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("nbd0/size", "0\n")
	write("nbd1/size", "2097152\n")
	write("nbd1/pid", "77\n")
	write("nbd1/backend", "lockstep vol0\n")
	write("nbd1/queue/io_timeout", "30000\n")
	write("sda/size", "1\n")
	free, used := Device{0, root, root}, Device{1, root, root}
	if free.Attached() || free.Size() != 0 || free.Identifier() != "" || !free.Exists() || (Device{2, root, root}).Exists() {
		t.Error("nbd0 is free")
	}
	if !used.Attached() || used.Size() != 1<<30 || used.Identifier() != "lockstep vol0" {
		t.Errorf("nbd1: %v %d %q", used.Attached(), used.Size(), used.Identifier())
	}
	if err := errors.Join(used.SetReplay(), free.SetReplay()); err != nil {
		t.Error(err)
	}
	if s, _ := used.attr("queue/io_timeout"); s != "5000" {
		t.Errorf("io_timeout %q", s)
	}
	if list, err := devicesIn(free); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
}

// The ioctl numbers are made by _IO of the kernel's headers.
func TestIoctlNumbers(t *testing.T) {
	for want, got := range map[int]int{0xab00: ioctlSetSock, 0xab03: ioctlDoIt, 0xab0a: ioctlSetFlags} {
		if got != want {
			t.Errorf("%#x, want %#x", got, want)
		}
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := ioctl(f, ioctlDoIt, 0); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("an ioctl of what is no nbd device: %v", err)
	}
}

// Against the kernel that this runs on, whatever it has.
func TestRealKernelAnswers(t *testing.T) {
	d, err := OpenNetlink()
	if errors.Is(err, ErrNoDriver) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EPERM) {
		if !strings.Contains(err.Error(), "nbd driver") {
			t.Errorf("the error does not say what is missing: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Status(AnyIndex); err != nil {
		t.Error(err)
	}
}
