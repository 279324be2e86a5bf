package kernel

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoDriver says that this kernel has no nbd driver, or that its module is not loaded.
	ErrNoDriver = errors.New("kernel: no nbd driver")
	// ErrBusy says that a device, or every device, is in use.
	ErrBusy = errors.New("kernel: device is in use")
	// ErrNotConfigured says that a device is not attached, or attached by somebody else.
	ErrNotConfigured = errors.New("kernel: device is not attached, or to something else")
	// ErrUnsupported says that the driver cannot do this: it is the older one.
	ErrUnsupported = errors.New("kernel: the driver cannot give a device another socket")
)

// Driver is the kernel's nbd driver. The kernel keeps the socket that it is given; the caller closes its own
// descriptor afterwards.
type Driver interface {
	// Connect makes a device, with a number or AnyIndex, and returns its number.
	Connect(index int, c Config, sock *os.File) (int, error)
	// Reconfigure gives a device that is attached another socket in the place of a dead one, and the size that its disk has
	// now. It may succeed without using the socket (K4).
	Reconfigure(index int, identifier string, size uint64, sock *os.File) error
	// Resize makes a device that is attached larger, while it is used. A driver over netlink before Linux 5.3 does nothing.
	Resize(index int, identifier string, size uint64) error
	// Disconnect detaches a device. What is in flight fails.
	Disconnect(index int) error
	Close() error
}

const (
	// callTimeout bounds a call to the driver, which answers at once.
	callTimeout = 30 * time.Second
	// datagramBytes is the room for an answer: STATUS has 20 bytes for each of up to 256 devices or so.
	datagramBytes = 64 << 10
)

// Netlink is the driver over generic netlink. It may be used by many goroutines.
type Netlink struct {
	dial   func() (endpoint, error)
	family family

	// mu is held for a whole call, and guards everything below.
	mu  sync.Mutex
	ep  endpoint
	seq uint32
	buf []byte
}

// OpenNetlink finds the driver. The error wraps ErrNoDriver if there is none.
func OpenNetlink() (*Netlink, error) { return openNetlink(dialNetlink) }

func openNetlink(dial func() (endpoint, error)) (*Netlink, error) {
	ep, err := dial()
	if err != nil {
		return nil, err
	}
	d := &Netlink{dial: dial, ep: ep, buf: make([]byte, datagramBytes)}
	payload, err := d.call(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, 1, encodeFamilyQuery())
	if errors.Is(err, unix.ENOENT) {
		ep.Close()
		return nil, ErrNoDriver
	}
	if err == nil {
		d.family, err = decodeFamily(payload)
	}
	if err != nil {
		ep.Close()
		return nil, fmt.Errorf("kernel: find the nbd driver: %w", err)
	}
	return d, nil
}

// Close gives the socket to the kernel back. Devices stay.
func (d *Netlink) Close() error { return d.ep.Close() }

// Connect implements Driver.
func (d *Netlink) Connect(index int, c Config, sock *os.File) (int, error) {
	if err := c.Validate(); err != nil {
		return 0, err
	}
	payload, err := d.withSocket(sock, cmdConnect, func(fd int) []byte { return encodeConnect(index, c, fd) })
	switch {
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%w (%w)", ErrBusy, err)
	case err == nil:
		index, err = decodeIndex(payload)
	}
	if err != nil {
		return 0, fmt.Errorf("kernel: connect: %w", err)
	}
	return index, nil
}

// Reconfigure implements Driver.
func (d *Netlink) Reconfigure(index int, identifier string, size uint64, sock *os.File) error {
	_, err := d.withSocket(sock, cmdReconfigure, func(fd int) []byte { return encodeReconfigure(index, identifier, size, fd) })
	return reconfigured(index, err)
}

// Resize implements Driver.
func (d *Netlink) Resize(index int, identifier string, size uint64) error {
	_, err := d.call(d.family.id, cmdReconfigure, familyVersion, encodeReconfigure(index, identifier, size, noSocket))
	return reconfigured(index, err)
}

// reconfigured is what the driver's answer to a RECONFIGURE means.
func reconfigured(index int, err error) error {
	if errors.Is(err, unix.EINVAL) { // whatever the reason, in all of which the device is not this caller's
		err = fmt.Errorf("%w (%w)", ErrNotConfigured, err)
	}
	if err != nil {
		return fmt.Errorf("kernel: reconfigure nbd%d: %w", index, err)
	}
	return nil
}

// withSocket does a call that passes a descriptor, and keeps it open meanwhile.
func (d *Netlink) withSocket(sock *os.File, command uint8, payload func(fd int) []byte) (answer []byte, err error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := raw.Control(func(fd uintptr) {
		answer, err = d.call(d.family.id, command, familyVersion, payload(int(fd)))
	}); e != nil {
		return nil, e
	}
	return answer, err
}

// Disconnect implements Driver.
func (d *Netlink) Disconnect(index int) error {
	if _, err := d.call(d.family.id, cmdDisconnect, familyVersion, encodeIndex(index)); err != nil {
		return fmt.Errorf("kernel: disconnect nbd%d: %w", index, err)
	}
	return nil
}

// Status lists the driver's devices, or one of them.
func (d *Netlink) Status(index int) ([]Status, error) {
	payload, err := d.call(d.family.id, cmdStatus, familyVersion, encodeIndex(index))
	if err != nil {
		return nil, fmt.Errorf("kernel: status: %w", err)
	}
	return decodeStatus(payload)
}

// call sends a request and waits until it is acknowledged. It returns the attributes of the answer, if there was one.
func (d *Netlink) call(kind uint16, command, version uint8, payload []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	m := message{
		kind: kind, flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK, seq: d.seq,
		command: command, version: version, payload: payload,
	}
	if err := d.ep.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return nil, err
	}
	if err := d.ep.Send(m.encode()); err != nil {
		return nil, err
	}
	var answer []byte
	for {
		n, err := d.ep.Receive(d.buf)
		if err != nil {
			return nil, err
		}
		for rest := d.buf[:n]; len(rest) > 0; {
			var got message
			if got, rest, err = decodeMessage(rest); err != nil {
				return nil, err
			}
			switch {
			case got.seq != d.seq: // of an earlier call that timed out
			case got.kind == unix.NLMSG_ERROR:
				errno, err := decodeError(got.payload)
				if err == nil && errno != 0 {
					err = errno
				}
				return answer, err
			case got.kind == kind && got.command == command || kind == unix.GENL_ID_CTRL && got.kind == kind:
				answer = append([]byte(nil), got.payload...)
			}
		}
	}
}

// Watch calls dead with the number of each device whose socket the kernel gave up, until stop is called. stop returns
// when dead will not be called any more.
func (d *Netlink) Watch(dead func(index int)) (stop func(), err error) {
	if d.family.group == 0 {
		return func() {}, nil // the driver does not tell; the end of a socket does
	}
	ep, err := d.dial()
	if err != nil {
		return nil, err
	}
	if err := ep.Join(d.family.group); err != nil {
		ep.Close()
		return nil, fmt.Errorf("kernel: watch for dead links: %w", err)
	}
	done := make(chan struct{})
	go func() { // ends when stop closes ep
		defer close(done)
		buf := make([]byte, datagramBytes)
		for {
			n, err := ep.Receive(buf)
			if errors.Is(err, unix.ENOBUFS) {
				continue // some were lost; each is only a hint
			}
			if err != nil {
				return
			}
			for rest := buf[:n]; len(rest) > 0; {
				var m message
				if m, rest, err = decodeMessage(rest); err != nil {
					break
				}
				if m.kind != d.family.id || m.command != cmdLinkDead {
					continue
				}
				if index, err := decodeIndex(m.payload); err == nil {
					dead(index)
				}
			}
		}
	}()
	return func() { ep.Close(); <-done }, nil
}
