package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeKernel is the driver's half of generic netlink, on the bytes of messages. It keeps the sockets that it is given,
// as the kernel does, so that a test can talk NBD over them.
type fakeKernel struct {
	t        *testing.T
	noDriver bool
	noGroup  bool
	deaf     int // so many RECONFIGUREs fail
	slow     int // so many RECONFIGUREs find that the old socket is not dead yet

	mu       sync.Mutex
	devices  map[int]*fakeDevice
	watchers []*fakeEndpoint
	calls    []string
}

// fakeDevice is a device that is attached.
type fakeDevice struct {
	config   Config
	sock     net.Conn // the kernel's end; nil: dead
	sockets  int      // it was ever given
	sectors  uint32
	deadConn uint64
	timeout  uint64
}

const (
	fakeFamily  = 0x1f
	fakeGroup   = 7
	fakeDevices = 4
)

func newFakeKernel(t *testing.T) *fakeKernel {
	return &fakeKernel{t: t, devices: make(map[int]*fakeDevice)}
}

func (k *fakeKernel) open(t *testing.T) *Netlink {
	t.Helper()
	d, err := openNetlink(k.dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func (k *fakeKernel) dial() (endpoint, error) {
	return &fakeEndpoint{k: k, out: make(chan []byte, 64), closed: make(chan struct{})}, nil
}

// fakeEndpoint is one socket to the fake kernel.
type fakeEndpoint struct {
	k      *fakeKernel
	out    chan []byte
	once   sync.Once
	closed chan struct{}
}

func (e *fakeEndpoint) SetDeadline(time.Time) error { return nil }

func (e *fakeEndpoint) Close() error {
	e.once.Do(func() { close(e.closed) })
	return nil
}

func (e *fakeEndpoint) Join(group uint32) error {
	if group != fakeGroup {
		return unix.EINVAL
	}
	e.k.mu.Lock()
	defer e.k.mu.Unlock()
	e.k.watchers = append(e.k.watchers, e)
	return nil
}

func (e *fakeEndpoint) Receive(b []byte) (int, error) {
	select {
	case m := <-e.out:
		return copy(b, m), nil
	case <-e.closed:
		return 0, os.ErrClosed
	}
}

func (e *fakeEndpoint) Send(b []byte) error {
	m, rest, err := decodeMessage(b)
	if err != nil || len(rest) > 0 {
		return fmt.Errorf("the kernel was sent %x: %w", b, errors.Join(err, unix.EINVAL))
	}
	answer, err := e.k.handle(m)
	if answer != nil {
		e.out <- message{kind: m.kind, seq: m.seq, command: m.command, version: 1, payload: answer}.encode()
	}
	var errno unix.Errno
	errors.As(err, &errno)
	e.out <- fakeError(m.seq, errno, b)
	return nil
}

// fakeError is an acknowledgement: the error number, and the header of what it is about.
func fakeError(seq uint32, errno unix.Errno, about []byte) []byte {
	b := order.AppendUint32(nil, 16+4+16)
	b = order.AppendUint16(b, unix.NLMSG_ERROR)
	b = order.AppendUint16(b, 0)
	b = order.AppendUint32(b, seq)
	b = order.AppendUint32(b, 0)
	b = order.AppendUint32(b, uint32(-int32(errno)))
	return append(b, about[:16]...)
}

func (k *fakeKernel) handle(m message) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if m.kind == unix.GENL_ID_CTRL {
		return k.family(m)
	}
	if m.kind != fakeFamily {
		return nil, unix.ENOENT
	}
	args, err := fakeArgs(m.payload)
	if err != nil {
		return nil, err
	}
	k.calls = append(k.calls, fmt.Sprint(m.command))
	switch m.command {
	case cmdConnect:
		return k.connect(args)
	case cmdReconfigure:
		return nil, k.reconfigure(args)
	case cmdDisconnect:
		return nil, k.disconnect(args)
	case cmdStatus:
		return k.status(args), nil
	}
	return nil, unix.EOPNOTSUPP
}

func (k *fakeKernel) family(m message) ([]byte, error) {
	if k.noDriver {
		return nil, unix.ENOENT
	}
	var group, groups, a attributes
	group.text(unix.CTRL_ATTR_MCAST_GRP_NAME, groupName)
	group.u32(unix.CTRL_ATTR_MCAST_GRP_ID, fakeGroup)
	groups.list(1, group)
	a.bytes(unix.CTRL_ATTR_FAMILY_ID, order.AppendUint16(nil, fakeFamily))
	a.text(unix.CTRL_ATTR_FAMILY_NAME, familyName)
	if !k.noGroup {
		a.list(unix.CTRL_ATTR_MCAST_GROUPS, groups)
	}
	return a, nil
}

// fakeRequest is a request's attributes.
type fakeRequest struct {
	index  int
	config Config
	numbers
	fd int
}

type numbers map[uint16]uint64

func fakeArgs(payload []byte) (fakeRequest, error) {
	r := fakeRequest{index: AnyIndex, fd: -1, numbers: numbers{}}
	list, err := decodeAttributes(payload)
	if err != nil {
		return r, err
	}
	for _, a := range list {
		switch a.kind {
		case attrIndex:
			r.index = int(order.Uint32(a.value))
		case attrBackendIdentifier:
			r.config.Identifier = a.text()
		case attrSockets:
			items, _ := decodeAttributes(a.value)
			fields, _ := decodeAttributes(items[0].value)
			r.fd = int(order.Uint32(fields[0].value))
		default:
			r.numbers[a.kind] = order.Uint64(a.value)
		}
	}
	return r, nil
}

// keep is what the kernel does with a descriptor: it takes a reference.
func (r fakeRequest) keep() (net.Conn, error) {
	fd, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, unix.EBADF
	}
	f := os.NewFile(uintptr(fd), "kernel")
	defer f.Close()
	return net.FileConn(f)
}

func (k *fakeKernel) connect(r fakeRequest) ([]byte, error) {
	if r.index == AnyIndex {
		for r.index = 0; k.devices[r.index] != nil; r.index++ {
		}
	}
	if k.devices[r.index] != nil || r.index >= fakeDevices {
		return nil, unix.EBUSY
	}
	sock, err := r.keep()
	if err != nil {
		return nil, err
	}
	r.config.Size = r.numbers[attrSizeBytes]
	k.devices[r.index] = &fakeDevice{
		config: r.config, sock: sock, sockets: 1, sectors: uint32(r.numbers[attrBlockSizeBytes]),
		deadConn: r.numbers[attrDeadConnTimeout], timeout: r.numbers[attrTimeout],
	}
	return encodeIndex(r.index), nil
}

func (k *fakeKernel) reconfigure(r fakeRequest) error {
	d := k.devices[r.index]
	if d == nil || d.config.Identifier != r.config.Identifier {
		return unix.EINVAL
	}
	if k.deaf > 0 {
		k.deaf--
		return unix.ENOMEM
	}
	d.config.Size = r.numbers[attrSizeBytes]
	if r.fd < 0 {
		return nil
	}
	if d.sock != nil || k.slow > 0 {
		k.slow--
		return nil // K4: it succeeds, and the socket is not used
	}
	sock, err := r.keep()
	if err != nil {
		return err
	}
	d.sock = sock
	d.sockets++
	return nil
}

func (k *fakeKernel) disconnect(r fakeRequest) error {
	d := k.devices[r.index]
	if d == nil {
		return unix.EINVAL
	}
	if d.sock != nil {
		_, _ = d.sock.Write(fakeDisc())
		d.sock.Close()
	}
	delete(k.devices, r.index)
	return nil
}

// fakeDisc is NBD_CMD_DISC.
func fakeDisc() []byte {
	b := make([]byte, 28)
	binary.BigEndian.PutUint32(b, 0x25609513)
	b[7] = 2
	return b
}

func (k *fakeKernel) status(r fakeRequest) []byte {
	var list, a attributes
	for i := range fakeDevices {
		if r.index != AnyIndex && r.index != i {
			continue
		}
		var item attributes
		item.u32(attrDeviceIndex, uint32(i))
		connected := byte(0)
		if k.devices[i] != nil {
			connected = 1
		}
		item.bytes(attrDeviceConnected, []byte{connected})
		list.list(attrDeviceItem, item)
	}
	a.list(attrDeviceList, list)
	return a
}

// device is a copy of what the kernel has, nil if it is not attached.
func (k *fakeKernel) device(index int) *fakeDevice {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.devices[index]; d != nil {
		c := *d
		return &c
	}
	return nil
}

// giveUp is what the driver does when a socket has ended: it notices, and tells.
func (k *fakeKernel) giveUp(index int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[index]
	if d == nil || d.sock == nil {
		return
	}
	d.sock.Close()
	d.sock = nil
	for _, w := range k.watchers {
		m := message{kind: fakeFamily, command: cmdLinkDead, version: 1, payload: encodeIndex(index)}
		select {
		case w.out <- m.encode():
		case <-w.closed:
		}
	}
}
