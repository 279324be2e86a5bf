package kernel

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// endpoint is a netlink socket: it sends and receives datagrams. Tests have another.
type endpoint interface {
	Send(b []byte) error
	// Receive waits for a datagram. Close ends the wait, and so does the deadline.
	Receive(b []byte) (int, error)
	SetDeadline(t time.Time) error
	Join(group uint32) error
	Close() error
}

// netlinkSocket is the endpoint to the kernel. It is an os.File, so that Receive waits in the runtime's poller.
type netlinkSocket struct{ f *os.File }

func dialNetlink() (endpoint, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("kernel: netlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("kernel: netlink: bind: %w", err)
	}
	return &netlinkSocket{os.NewFile(uintptr(fd), "netlink")}, nil
}

func (s *netlinkSocket) Send(b []byte) error {
	_, err := s.f.Write(b) // an unconnected netlink socket's peer is the kernel
	return err
}

func (s *netlinkSocket) Receive(b []byte) (int, error) { return s.f.Read(b) }
func (s *netlinkSocket) SetDeadline(t time.Time) error { return s.f.SetDeadline(t) }
func (s *netlinkSocket) Close() error                  { return s.f.Close() }

func (s *netlinkSocket) Join(group uint32) error {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return err
	}
	var opt error
	if err := raw.Control(func(fd uintptr) {
		opt = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group))
	}); err != nil {
		return err
	}
	return opt
}
