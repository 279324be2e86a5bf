package nbd

import (
	"net"

	"golang.org/x/sys/unix"
)

// rightsReader reads from a unix socket during the handshake, and keeps a descriptor that came along: that of memory, of
// which a connection has one at most.
type rightsReader struct {
	nc  *net.UnixConn
	oob []byte
	fd  int // -1: none
}

func newRightsReader(nc *net.UnixConn) *rightsReader {
	return &rightsReader{nc: nc, oob: make([]byte, unix.CmsgSpace(4)), fd: -1}
}

// Read implements io.Reader.
func (r *rightsReader) Read(p []byte) (int, error) {
	n, oobn, _, _, err := r.nc.ReadMsgUnix(p, r.oob) // descriptors are closed on exec
	if oobn == 0 {
		return n, err
	}
	messages, _ := unix.ParseSocketControlMessage(r.oob[:oobn])
	for i := range messages {
		fds, _ := unix.ParseUnixRights(&messages[i])
		for _, fd := range fds {
			r.drop()
			r.fd = fd
		}
	}
	return n, err
}

// take gives the descriptor that has come last, which is the caller's then, or -1.
func (r *rightsReader) take() (fd int) {
	fd, r.fd = r.fd, -1
	return fd
}

// drop closes what nobody has taken.
func (r *rightsReader) drop() {
	if fd := r.take(); fd >= 0 {
		unix.Close(fd)
	}
}
