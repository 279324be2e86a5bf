package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// errInUse says who uses a device.
var errInUse = errors.New("the device is in use")

// unused fails with errInUse if anybody uses a device, as far as that can be seen without opening it. An agent must not
// open its own device (K9). There is nothing to be made stable before detaching: the kernel has written what was in its
// cache when the last user closed the device.
func unused(device string, agent int) error {
	what := usedFor(device, agent)
	if what == "" {
		return nil
	}
	return withHint(fmt.Errorf("%w: %s", errInUse, what), "unmount or end it first")
}

// usedFor is what a device is used for, "" if nothing is seen.
func usedFor(device string, agent int) string {
	parts := partsOf(device)
	return cmp.Or(heldBy(parts), swappedTo(parts), mountedAt(parts), openedBy(parts, agent))
}

// claimable is for others than the agent: it also finds what unused cannot see (a file system of several devices).
func claimable(device string) error {
	// O_EXCL without O_CREAT on a block device claims it, as a mount, swap and the device mapper do.
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return withHint(fmt.Errorf("%s: %w: the kernel says so", device, errInUse), "unmount it first")
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// blockPart is a block device, the whole or a partition.
type blockPart struct {
	path, sys string
	number    string // MAJOR:MINOR
}

// partsOf is a device and its partitions.
func partsOf(device string) []blockPart {
	name := filepath.Base(device)
	parts := []blockPart{{path: device, sys: "/sys/block/" + name}}
	partitions, _ := filepath.Glob("/sys/block/" + name + "/" + name + "p[0-9]*")
	for _, sys := range partitions {
		parts = append(parts, blockPart{path: filepath.Join(filepath.Dir(device), filepath.Base(sys)), sys: sys})
	}
	for i := range parts {
		parts[i].number = firstLine(parts[i].sys + "/dev")
	}
	return parts
}

// heldBy finds a device that is made of one: device mapper, md.
func heldBy(parts []blockPart) string {
	for _, p := range parts {
		if holders, _ := filepath.Glob(p.sys + "/holders/*"); len(holders) > 0 {
			return p.path + " is part of /dev/" + filepath.Base(holders[0])
		}
	}
	return ""
}

func swappedTo(parts []blockPart) string {
	swaps, _ := os.ReadFile("/proc/swaps")
	for line := range strings.Lines(string(swaps)) {
		for _, p := range parts {
			if strings.HasPrefix(line, p.path+" ") || strings.HasPrefix(line, p.path+"\t") {
				return p.path + " is swap"
			}
		}
	}
	return ""
}

// mountedAt finds a mount, in whatever namespace: containers have their own.
func mountedAt(parts []blockPart) string {
	seen := make(map[string]bool)
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range processes {
		namespace, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || seen[namespace] {
			continue
		}
		seen[namespace] = true
		mounts, _ := os.ReadFile(proc + "/mountinfo")
		for line := range strings.Lines(string(mounts)) {
			// id, parent, MAJOR:MINOR, root, mount point, options … - type, source, options
			fields := strings.Fields(line)
			_, source, _ := strings.Cut(line, " - ")
			from := strings.Fields(source)
			for _, p := range parts {
				if len(fields) > 4 && (fields[2] == p.number || len(from) > 1 && from[1] == p.path) {
					return p.path + " is mounted at " + fields[4]
				}
			}
		}
	}
	return ""
}

// openedBy finds another process that has a device open. Some claim nothing (a database on the raw device, say), but
// would see their disk vanish all the same. The agent is a process that does not count.
func openedBy(parts []blockPart, agent int) string {
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, name := range files {
		pid := strings.Split(name, "/")[2]
		if pid == strconv.Itoa(os.Getpid()) || pid == strconv.Itoa(agent) {
			continue
		}
		target, err := os.Readlink(name)
		if err != nil {
			continue
		}
		for _, p := range parts {
			if target == p.path {
				return p.path + " is open in " + firstLine("/proc/"+pid+"/comm") + ", pid " + pid
			}
		}
	}
	return ""
}
