package main

import (
	"context"
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

// settle makes what was written to a device stable, and fails with errInUse if anybody uses it. It returns when ctx ends,
// though the device may hang: nobody answers for it, perhaps. The agent is a process that does not count.
func settle(ctx context.Context, device string, agent int) error {
	done := make(chan error, 1)
	go func() { done <- settleNow(device, agent) }() // may hang as long as the device does; the process ends before that
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s does not answer: %w", device, ctx.Err())
	}
}

func settleNow(device string, agent int) error {
	// O_EXCL without O_CREAT on a block device claims it, as a mount, swap and the device mapper do.
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return withHint(fmt.Errorf("%s: %w: it is mounted, or swap, or part of another device", device, errInUse), "unmount it first")
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if user := openedBy(device, agent); user != "" {
		return withHint(fmt.Errorf("%s: %w by %s", device, errInUse, user), "end it first")
	}
	return f.Sync()
}

// openedBy finds another process that has a device, or a part of it, open: a program that claims nothing (a database on
// the raw device, say) would see its disk vanish all the same.
func openedBy(device string, agent int) string {
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	self, agents := "/proc/"+strconv.Itoa(os.Getpid())+"/", "/proc/"+strconv.Itoa(agent)+"/"
	for _, name := range files {
		target, err := os.Readlink(name)
		if err != nil || strings.HasPrefix(name, self) || strings.HasPrefix(name, agents) {
			continue
		}
		part, ok := strings.CutPrefix(target, device)
		if ok && strings.Trim(part, "p0123456789") == "" && (part == "" || part[0] == 'p') {
			pid := strings.Split(name, "/")[2]
			return firstLine("/proc/"+pid+"/comm") + " (pid " + pid + ")"
		}
	}
	return ""
}
