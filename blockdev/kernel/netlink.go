package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// order is that of netlink: the machine's own.
var order = binary.NativeEndian

// ErrMalformed is wrapped by every error about the form of a message.
var ErrMalformed = errors.New("kernel: malformed netlink message")

const (
	genericHeaderBytes = 4
	attributeAlign     = 4
	// maxAttributeBytes is what the length field of an attribute can say.
	maxAttributeBytes = 1<<16 - 1
)

// message is a netlink message. For those of the control types (error, done) only payload is set.
type message struct {
	kind    uint16 // of the family, or a control type
	flags   uint16
	seq     uint32
	command uint8
	version uint8
	payload []byte // attributes of a generic message; all behind the header otherwise
}

// encode makes the bytes of a generic message.
func (m message) encode() []byte {
	b := make([]byte, unix.SizeofNlMsghdr+genericHeaderBytes, unix.SizeofNlMsghdr+genericHeaderBytes+len(m.payload))
	order.PutUint32(b[0:], uint32(cap(b)))
	order.PutUint16(b[4:], m.kind)
	order.PutUint16(b[6:], m.flags)
	order.PutUint32(b[8:], m.seq)
	b[16], b[17] = m.command, m.version
	return append(b, m.payload...)
}

// decodeMessage takes the first message off a datagram.
func decodeMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return m, nil, fmt.Errorf("%w: %d bytes, a header has %d", ErrMalformed, len(b), unix.SizeofNlMsghdr)
	}
	n := order.Uint32(b)
	if n < unix.SizeofNlMsghdr || uint64(n) > uint64(len(b)) {
		return m, nil, fmt.Errorf("%w: says %d bytes, the datagram has %d", ErrMalformed, n, len(b))
	}
	m.kind, m.flags, m.seq = order.Uint16(b[4:]), order.Uint16(b[6:]), order.Uint32(b[8:])
	m.payload, rest = b[unix.SizeofNlMsghdr:n], b[min(align(int(n)), len(b)):]
	if m.kind < unix.NLMSG_MIN_TYPE {
		return m, rest, nil
	}
	if len(m.payload) < genericHeaderBytes {
		return m, nil, fmt.Errorf("%w: no room for a generic header", ErrMalformed)
	}
	m.command, m.version = m.payload[0], m.payload[1]
	m.payload = m.payload[genericHeaderBytes:]
	return m, rest, nil
}

// decodeError reads an error message; no error number is an acknowledgement.
func decodeError(payload []byte) (unix.Errno, error) {
	if len(payload) < 4 {
		return 0, fmt.Errorf("%w: error message of %d bytes", ErrMalformed, len(payload))
	}
	n := int32(order.Uint32(payload))
	if n > 0 || n < -4095 {
		return 0, fmt.Errorf("%w: error number %d", ErrMalformed, n)
	}
	return unix.Errno(-n), nil
}

func align(n int) int { return (n + attributeAlign - 1) &^ (attributeAlign - 1) }

// attributes builds a list of attributes.
type attributes []byte

func (a *attributes) bytes(kind uint16, value []byte) {
	n := unix.SizeofNlAttr + len(value)
	if n > maxAttributeBytes {
		panic(fmt.Sprintf("kernel: attribute %d of %d bytes", kind, len(value)))
	}
	*a = order.AppendUint16(*a, uint16(n))
	*a = order.AppendUint16(*a, kind)
	*a = append(*a, value...)
	*a = append(*a, make([]byte, align(n)-n)...)
}

func (a *attributes) u32(kind uint16, v uint32) { a.bytes(kind, order.AppendUint32(nil, v)) }
func (a *attributes) u64(kind uint16, v uint64) { a.bytes(kind, order.AppendUint64(nil, v)) }

// text adds a string, with its final zero byte.
func (a *attributes) text(kind uint16, s string) { a.bytes(kind, append([]byte(s), 0)) }

// list adds attributes as the value of one.
func (a *attributes) list(kind uint16, inner attributes) { a.bytes(kind|unix.NLA_F_NESTED, inner) }

// attribute is one that was received.
type attribute struct {
	kind  uint16
	value []byte
}

// decodeAttributes takes a list apart. The values are parts of b.
func decodeAttributes(b []byte) ([]attribute, error) {
	var list []attribute
	for len(b) > 0 {
		if len(b) < unix.SizeofNlAttr {
			return nil, fmt.Errorf("%w: %d bytes behind the last attribute", ErrMalformed, len(b))
		}
		n := int(order.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return nil, fmt.Errorf("%w: attribute of %d bytes in %d", ErrMalformed, n, len(b))
		}
		kind := order.Uint16(b[2:]) & nlaTypeMask
		list = append(list, attribute{kind, b[unix.SizeofNlAttr:n]})
		b = b[min(align(n), len(b)):]
	}
	return list, nil
}

// nlaTypeMask takes the two flags off an attribute's type.
const nlaTypeMask = 1<<14 - 1

func (a attribute) u8() (uint8, error) {
	if len(a.value) != 1 {
		return 0, fmt.Errorf("%w: attribute %d has %d bytes, want 1", ErrMalformed, a.kind, len(a.value))
	}
	return a.value[0], nil
}

func (a attribute) u16() (uint16, error) {
	if len(a.value) != 2 {
		return 0, fmt.Errorf("%w: attribute %d has %d bytes, want 2", ErrMalformed, a.kind, len(a.value))
	}
	return order.Uint16(a.value), nil
}

func (a attribute) u32() (uint32, error) {
	if len(a.value) != 4 {
		return 0, fmt.Errorf("%w: attribute %d has %d bytes, want 4", ErrMalformed, a.kind, len(a.value))
	}
	return order.Uint32(a.value), nil
}

// text is the value up to its first zero byte.
func (a attribute) text() string {
	for i, c := range a.value {
		if c == 0 {
			return string(a.value[:i])
		}
	}
	return string(a.value)
}
