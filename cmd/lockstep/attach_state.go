package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"lockstep/blockdev/kernel"
)

// defaultStateDir is where attachments are noted. It outlives a reboot on purpose: a machine that crashed with an
// exclusive attachment comes back as the same client, and needs not take the volume over from itself.
const defaultStateDir = "/var/lib/lockstep"

// attachment is what has to be known of an attached volume after its agent was killed. It is written before the volume
// is touched, and removed when it is detached. Fields are added, never renamed.
type attachment struct {
	Volume   string   `json:"volume"`
	View     []string `json:"view"`
	Shared   bool     `json:"shared,omitempty"`
	ReadOnly bool     `json:"read_only,omitempty"`

	// Who the client is for the cluster. Each start of an agent, and each new socket, is a generation: it is on disk
	// before the cluster hears of it, so that a later one always fences an earlier one (K5).
	Session    string `json:"session"`
	Generation uint64 `json:"generation"`
	Machine    string `json:"machine,omitempty"` // a copy of this machine's disk is another client
	// Era is the claim's (viewsvc.Claim) when the device was made, 0 before. If it has grown, others had the volume
	// meanwhile, and what a device that waited knows of it is out of date.
	Era uint64 `json:"era,omitempty"`

	// The device. It is gone if the boot is another one.
	Device     string `json:"device,omitempty"` // "" before there is one
	Size       uint64 `json:"size,omitempty"`
	Identified bool   `json:"identified,omitempty"` // the kernel keeps the identifier
	Boot       string `json:"boot,omitempty"`
	PID        int    `json:"pid"` // of the agent

	// Of --fuse.
	Fuse string `json:"fuse,omitempty"` // where nbdfuse is mounted
}

// identifier is the device's for the kernel. Udev rules take it apart.
func (a *attachment) identifier() string { return "lockstep:" + a.Volume + ":" + a.Session }

// nbd is the device, if this is one of the kernel's driver, and it is still this attachment's.
func (a *attachment) nbd() (kernel.Device, bool) {
	if a.Device == "" || a.Fuse != "" || a.Boot != bootID() {
		return kernel.Device{}, false
	}
	dev, err := kernel.ParseDevice(a.Device)
	if err != nil || !dev.Attached() {
		return dev, false
	}
	if a.Identified {
		return dev, dev.Identifier() == a.identifier()
	}
	return dev, dev.Identifier() == "" && dev.Size() == a.Size
}

// attachDir is the directory of attachments.
type attachDir string

func (d attachDir) file(volume, suffix string) string {
	return filepath.Join(string(d), "attach", volume+suffix)
}

// lock makes sure that a volume has one agent. Without it two would be one client for the cluster, and fence each other.
// The lock goes with the process.
func (d attachDir) lock(volume string) (*os.File, error) {
	name := d.file(volume, ".lock")
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, withHint(err, "run as root, or choose another directory with --state-dir")
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, withHint(err, "run as root, or choose another directory with --state-dir")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errAgentRuns
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return f, nil
}

var errAgentRuns = errors.New("an agent of this volume is running")

// load reads what is noted of a volume; fs.ErrNotExist if nothing is.
func (d attachDir) load(volume string) (*attachment, error) {
	name := d.file(volume, ".json")
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	a := new(attachment)
	if err := json.Unmarshal(b, a); err != nil || a.Volume != volume || a.Session == "" {
		return nil, withHint(fmt.Errorf("%s is damaged (%v)", name, err),
			"see with `cat /sys/block/nbd*/backend` whether the volume has a device here, and remove the file if not")
	}
	return a, nil
}

// begin is load, or a new attachment.
func (d attachDir) begin(volume string) (*attachment, error) {
	a, err := d.load(volume)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	machine := machineID()
	if err != nil || a.Machine != machine {
		return &attachment{Volume: volume, Session: uuid.NewString(), Machine: machine}, nil
	}
	return a, nil
}

// save makes a note stable, all of it or nothing.
func (d attachDir) save(a *attachment) error {
	b, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	name := d.file(a.Volume, ".json")
	f, err := os.CreateTemp(filepath.Dir(name), ".note-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // does nothing after the rename
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

// remove forgets a volume. The lock's file stays, since others may wait for it.
func (d attachDir) remove(volume string) error {
	if err := os.Remove(d.file(volume, ".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// list reads all notes.
func (d attachDir) list() ([]*attachment, error) {
	names, err := filepath.Glob(d.file("*", ".json"))
	if err != nil {
		return nil, err
	}
	var list []*attachment
	for _, name := range names {
		a, err := d.load(strings.TrimSuffix(filepath.Base(name), ".json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}

// bootID names this boot of the machine; machineID its installation, if it has such a file.
func bootID() string    { return firstLine("/proc/sys/kernel/random/boot_id") }
func machineID() string { return firstLine("/etc/machine-id") }

func firstLine(name string) string {
	b, _ := os.ReadFile(name)
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}
