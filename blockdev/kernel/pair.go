package kernel

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// socketPair makes the two ends: ours to serve on, theirs for the kernel.
func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("kernel: socket pair: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "nbd")
	f := os.NewFile(uintptr(fds[0]), "nbd-server")
	defer f.Close() // FileConn has its own
	if ours, err = net.FileConn(f); err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("kernel: socket pair: %w", err)
	}
	return ours, theirs, nil
}

// taken tells whether anybody holds the other end of a pair, after this process has closed it (K4).
func taken(ours net.Conn) bool {
	raw, err := ours.(*net.UnixConn).SyscallConn()
	if err != nil {
		return false
	}
	ended := true
	_ = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(poll, 0); err != unix.EINTR {
				ended = err != nil || poll[0].Revents&unix.POLLHUP != 0
				return
			}
		}
	})
	return !ended
}
