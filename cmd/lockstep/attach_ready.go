package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// readyVariable names, for a child in the background, the descriptor on which its parent waits for the device.
const readyVariable = "LOCKSTEP_READY_FD"

// readiness gives what tells, once, that a device is there: standard output, systemd, and the parent of a child in the
// background.
func readiness(env *environment) func(device string) {
	var once sync.Once
	parent, err := strconv.Atoi(env.getenv(readyVariable))
	if err == nil {
		unix.CloseOnExec(parent) // children of this process have nothing to do with it
	} else {
		parent = -1
	}
	return func(device string) {
		once.Do(func() {
			fmt.Fprintln(env.stdout, device)
			_ = notifySystemd(env.getenv("NOTIFY_SOCKET"), "READY=1\nSTATUS=attached as "+device) // systemd notices that it is missing
			if parent >= 0 {
				f := os.NewFile(uintptr(parent), "ready")
				fmt.Fprintln(f, device)
				f.Close()
			}
		})
	}
}

// notifySystemd sends a state change to the service manager, as sd_notify(3) says.
func notifySystemd(socket, state string) error {
	if socket == "" {
		return nil
	}
	if socket[0] == '@' { // abstract
		socket = "\x00" + socket[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}

// attachInBackground runs the same command line as a process of its own, and waits until the device is there. What
// that process says is in a log beside its note.
func attachInBackground(env *environment, dir attachDir, volume string) error {
	name := dir.file(volume, ".log")
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return withHint(fmt.Errorf("attach: %w", err), "run as root, or choose another directory with --state-dir")
	}
	log, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer log.Close()
	start, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	ready, childs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer ready.Close()
	cmd := exec.Command(exe, foregroundArgs(os.Args[1:])...)
	cmd.Stderr, cmd.ExtraFiles = log, []*os.File{childs}
	cmd.Env = append(os.Environ(), readyVariable+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // not this terminal's any more
	err = cmd.Start()
	childs.Close()
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	device, err := bufio.NewReader(ready).ReadString('\n') // ends with the child, if it does not come so far
	if err == nil {
		_, err = io.WriteString(env.stdout, device)
		return err
	}
	err = cmd.Wait()
	tail := make([]byte, devLastLineMax)
	n, _ := log.ReadAt(tail, max(start, logEnd(log)-devLastLineMax))
	lines := strings.Split(strings.TrimSpace(string(tail[:n])), "\n")
	why, ok := strings.CutPrefix(lines[len(lines)-1], "lockstep: ")
	if !ok {
		return withHint(fmt.Errorf("attach: it ended: %w", err), "see %s", name)
	}
	said := withHint(errors.New(why), "its log is %s", name)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == exitGone {
		return &goneError{said}
	}
	return said
}

// logEnd is the size of a file.
func logEnd(f *os.File) int64 {
	end, _ := f.Seek(0, io.SeekEnd)
	return end
}

// foregroundArgs is the command line without --daemon.
func foregroundArgs(args []string) []string {
	var keep []string
	for _, arg := range args {
		if arg != "--daemon" && arg != "--daemon=true" {
			keep = append(keep, arg)
		}
	}
	return keep
}
