package nbd

import (
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxVectors is how many buffers one writev takes (IOV_MAX).
const maxVectors = 1024

// joinBytes is how much is put together for one write through TLS.
const joinBytes = 64 << 10

// socket writes to a connection without waiting, and waits without writing. One goroutine at a time uses it (see
// outbox); deadlines and close may come from any.
//
// net.Buffers would wait for the socket; a committer must not (N3). So the non-blocking writev is done here, through
// the connection's syscall.RawConn. A connection without one (net.Pipe, TLS) takes nothing without waiting, and is
// written to by the writer goroutine only.
type socket struct {
	net.Conn                 // as it was made: to set deadlines, and to close without a word
	nc       net.Conn        // what bytes go through: the same, or TLS over it
	raw      syscall.RawConn // nil: nc is not a socket of the kernel
	joined   []byte          // blockingWrite's own

	// Arguments and results of the calls below. They are here, and the two functions are made once, because a closure
	// for each write would be an allocation.
	iov   []unix.Iovec
	n     int
	errno unix.Errno
	once  func(fd uintptr) bool
	poll  []unix.PollFd
	ready func(fd uintptr) bool
}

func newSocket(nc net.Conn) (*socket, error) {
	s := &socket{Conn: nc, nc: nc}
	if tcp, ok := nc.(*net.TCPConn); ok {
		if err := tcp.SetNoDelay(true); err != nil {
			return nil, err
		}
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return s, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s.raw = raw
	s.iov = make([]unix.Iovec, 0, 64)
	s.once = func(fd uintptr) bool { s.writev(fd); return true }
	s.poll = make([]unix.PollFd, 1)
	s.ready = s.pollWritable
	return s, nil
}

// tryWrite sends what the socket takes at once, and says how much. Less than all, without an error, means that it is
// full.
func (s *socket) tryWrite(bufs [][]byte) (int, error) {
	if s.raw == nil {
		return 0, nil
	}
	s.iov = s.iov[:0]
	for _, b := range bufs {
		v := unix.Iovec{Base: unsafe.SliceData(b)}
		v.SetLen(len(b))
		s.iov = append(s.iov, v)
	}
	s.n, s.errno = 0, 0
	if err := s.raw.Write(s.once); err != nil {
		return 0, err
	}
	if s.errno != 0 {
		return 0, s.errno
	}
	return s.n, nil
}

// waitWritable waits until the socket takes something; then tryWrite is worth while. Closing the connection ends the wait.
func (s *socket) waitWritable() error { return s.raw.Write(s.ready) }

// pollWritable asks the kernel; if the answer is no, the runtime waits for a change and calls again.
func (s *socket) pollWritable(fd uintptr) bool {
	s.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	n, err := unix.Poll(s.poll, 0)
	return n > 0 || err != nil && err != unix.EINTR
}

// blockingWrite sends on a connection that is no socket of the kernel. Small pieces go together: each write is a record
// of TLS. It may send less than all.
func (s *socket) blockingWrite(bufs [][]byte) (int, error) {
	if len(bufs[0]) >= joinBytes {
		return s.nc.Write(bufs[0])
	}
	s.joined = s.joined[:0]
	for _, b := range bufs {
		if len(s.joined) > 0 && len(s.joined)+len(b) > joinBytes {
			break
		}
		s.joined = append(s.joined, b...)
	}
	return s.nc.Write(s.joined)
}

// source is what the connection's reader reads from.
func (s *socket) source() io.Reader {
	if s.raw == nil {
		return s.nc
	}
	r := &socketReader{Conn: s.Conn, raw: s.raw}
	r.once = r.tryReadv
	return r
}

// socketReader reads from a kernel's socket. Only the connection's reader uses it.
type socketReader struct {
	net.Conn
	raw syscall.RawConn

	// Arguments and results of readv; once is made once, for the same reason as socket.once.
	iov   [2]unix.Iovec
	n     int
	errno unix.Errno
	once  func(fd uintptr) bool
}

// Read implements io.Reader.
func (r *socketReader) Read(p []byte) (int, error) { return r.readv(p, nil) }

// readv implements vectorReader. It waits until something comes.
func (r *socketReader) readv(p, rest []byte) (int, error) {
	for i, b := range [2][]byte{p, rest} {
		r.iov[i].Base = unsafe.SliceData(b)
		r.iov[i].SetLen(len(b))
	}
	err := r.raw.Read(r.once)
	r.iov = [2]unix.Iovec{} // hold on to no buffer
	switch {
	case err != nil:
		return 0, err
	case r.errno != 0:
		return 0, r.errno
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}

// tryReadv does one system call on a non-blocking descriptor; false makes the runtime wait for more. The call is raw, as
// in writev: it does not wait, and to tell the scheduler of each, which then looks for other work in vain, costs as much as
// moving 4 KiB.
func (r *socketReader) tryReadv(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&r.iov)), uintptr(len(r.iov)))
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		r.n, r.errno = int(n), errno
		return true
	}
}

// rawRead does one system call on a non-blocking descriptor.
func rawRead(fd uintptr, p []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// startTLS makes all that follows go through tc, which is over the connection.
func (s *socket) startTLS(tc *tls.Conn) { s.nc, s.raw = tc, nil }

// lastWords sends p, if that takes no time, and ends a TLS session in good order: the peer knows that nothing was cut off.
func (s *socket) lastWords(p []byte) {
	tc, ok := s.nc.(*tls.Conn)
	if !ok {
		s.tryWrite([][]byte{p})
		return
	}
	s.SetWriteDeadline(time.Now().Add(farewellTimeout))
	tc.Write(p)
	tc.CloseWrite()
}

// writev does one system call on a non-blocking descriptor.
func (s *socket) writev(fd uintptr) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.iov))), uintptr(len(s.iov)))
		switch errno {
		case 0:
			s.n = int(n)
		case unix.EINTR:
			continue
		case unix.EAGAIN:
		default:
			s.errno = errno
		}
		return
	}
}
