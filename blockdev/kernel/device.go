package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ReplayAfter is how often the kernel looks at requests that wait, and so how soon it repeats to a new agent what the
// former one had not answered (K2). Each look writes a line about each waiting request to the kernel's log, which is
// why it is not less.
const ReplayAfter = 5 * time.Second

// Device is /dev/nbdN.
type Device struct {
	Index    int
	sys, dev string // directories of the devices; others in tests
}

// DeviceAt is a device by its number.
func DeviceAt(index int) Device { return Device{index, "/sys/block", "/dev"} }

// ParseDevice reads "/dev/nbdN" or "nbdN".
func ParseDevice(s string) (Device, error) {
	digits, ok := strings.CutPrefix(strings.TrimPrefix(s, "/dev/"), "nbd")
	n, err := strconv.ParseUint(digits, 10, 20)
	if !ok || err != nil || strconv.FormatUint(n, 10) != digits {
		return Device{}, fmt.Errorf("kernel: %q is no nbd device: write /dev/nbd0", s)
	}
	return DeviceAt(int(n)), nil
}

// Name is "nbdN".
func (d Device) Name() string { return "nbd" + strconv.Itoa(d.Index) }

// Path is "/dev/nbdN".
func (d Device) Path() string { return filepath.Join(d.dev, d.Name()) }

// attr reads a file of /sys.
func (d Device) attr(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(d.sys, d.Name(), name))
	return strings.TrimSpace(string(b)), err
}

// Exists tells whether the driver has such a device.
func (d Device) Exists() bool {
	_, err := os.Stat(filepath.Join(d.sys, d.Name()))
	return err == nil
}

// Attached tells whether the device is attached to something: the driver names who did it.
func (d Device) Attached() bool {
	_, err := d.attr("pid")
	return err == nil
}

// Identifier is that of Config, or "" if the kernel does not keep it, or nobody gave one.
func (d Device) Identifier() string {
	s, _ := d.attr("backend")
	return s
}

// Size is the device's size in bytes; 0 if it is not attached.
func (d Device) Size() uint64 {
	s, _ := d.attr("size")
	n, _ := strconv.ParseUint(s, 10, 64)
	return n * 512 // the unit of /sys, whatever the sectors
}

// SetReplay makes the kernel repeat waiting requests after ReplayAfter (K2). It is for root, as attaching is. A kernel
// without the attribute (before 5.0) keeps its 30 s.
func (d Device) SetReplay() error {
	name := filepath.Join(d.sys, d.Name(), "queue", "io_timeout")
	err := os.WriteFile(name, []byte(strconv.FormatInt(ReplayAfter.Milliseconds(), 10)), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Announce tells udev to look at the device again: the driver sets the identifier after it has told of the device.
func (d Device) Announce() error {
	return os.WriteFile(filepath.Join(d.sys, d.Name(), "uevent"), []byte("change"), 0)
}

// Devices are all that the driver has, in no order.
func Devices() ([]Device, error) { return devicesIn(DeviceAt(0)) }

func devicesIn(d Device) ([]Device, error) {
	entries, err := os.ReadDir(d.sys)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	var list []Device
	for _, e := range entries {
		if found, err := ParseDevice(e.Name()); err == nil {
			list = append(list, Device{found.Index, d.sys, d.dev})
		}
	}
	return list, nil
}
