package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// SystemdAddress stands for the sockets that systemd has opened for this process.
const SystemdAddress = "systemd"

// DefaultSocketMode lets only the owner connect to a unix socket.
const DefaultSocketMode = fs.FileMode(0o600)

const (
	firstInherited = 3  // sd_listen_fds(3): SD_LISTEN_FDS_START
	maxInherited   = 64 // sockets; more is taken for a mistake
)

// keepAlive finds out within a minute that a client's machine is gone, which gives its place free.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}

// Listen listens for clients at "host:port", at "unix:/path", whose socket gets mode, or on the sockets that "systemd"
// brings, which may be several. A unix socket that a dead process left is replaced; one that somebody serves is not.
func Listen(ctx context.Context, addr string, mode fs.FileMode) ([]net.Listener, error) {
	if addr == SystemdAddress {
		return inherited()
	}
	var l net.Listener
	var err error
	if path, local := strings.CutPrefix(addr, "unix:"); local {
		l, err = listenUnix(ctx, path, mode)
	} else {
		config := net.ListenConfig{KeepAliveConfig: keepAlive}
		l, err = config.Listen(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, fmt.Errorf("nbd: listen at %s: %w", addr, err)
	}
	return []net.Listener{l}, nil
}

// listenUnix makes the socket beside its place and moves it there when it has its mode: nobody finds it without.
func listenUnix(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, errors.New("there is a file that is no socket; remove it or choose another path")
		}
		var d net.Dialer
		if nc, err := d.DialContext(ctx, "unix", path); err == nil {
			nc.Close()
			return nil, errors.New("another process serves this socket; stop it or choose another path")
		}
	}
	fresh := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, err
	}
	ul := &unixListener{UnixListener: l.(*net.UnixListener), path: path}
	ul.SetUnlinkOnClose(false)
	if err = os.Chmod(fresh, mode); err == nil {
		if ul.info, err = os.Lstat(fresh); err == nil {
			err = os.Rename(fresh, path)
		}
	}
	if err != nil {
		ul.UnixListener.Close()
		os.Remove(fresh)
		return nil, err
	}
	return ul, nil
}

// unixListener removes its socket at the end, if it is still its own: a successor may have replaced it.
type unixListener struct {
	*net.UnixListener
	path   string
	info   os.FileInfo
	remove sync.Once
}

func (l *unixListener) Close() error {
	l.remove.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.info) {
			os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// inherited takes over the sockets that are announced in the environment as sd_listen_fds(3) says, and takes the
// announcement out of it: they are not for the processes that this one starts.
func inherited() ([]net.Listener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, errors.New("nbd: listen: systemd has opened no sockets for this process; start it by a .socket unit, or give an address")
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > maxInherited {
		return nil, fmt.Errorf("nbd: listen: systemd says that it opened %q sockets, must be 1 to %d", count, maxInherited)
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	var list []net.Listener
	for fd := firstInherited; fd < firstInherited+n; fd++ {
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "systemd socket "+strconv.Itoa(fd))
		l, err := net.FileListener(f) // has a descriptor of its own
		f.Close()
		if err != nil {
			for _, l := range list {
				l.Close()
			}
			return nil, fmt.Errorf("nbd: listen: descriptor %d from systemd is no listening stream socket (ListenStream=, Accept=no): %w", fd, err)
		}
		list = append(list, l)
	}
	return list, nil
}
