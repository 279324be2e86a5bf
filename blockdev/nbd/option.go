package nbd

import (
	"errors"
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// errMalformed says that an option's data does not have its form. It is answered with ERR_INVALID.
var errMalformed = errors.New("malformed option")

// appendOptionReply appends a reply to an option, header and data.
func appendOptionReply(p []byte, option, kind uint32, data []byte) []byte {
	p = order.AppendUint64(p, protocol.NEGOTIATION_MAGIC_REPLY)
	p = order.AppendUint32(p, option)
	p = order.AppendUint32(p, kind)
	p = order.AppendUint32(p, uint32(len(data)))
	return append(p, data...)
}

// appendOption appends an option as a client sends it.
func appendOption(p []byte, option uint32, data []byte) []byte {
	p = order.AppendUint64(p, protocol.NEGOTIATION_MAGIC_OPTION)
	p = order.AppendUint32(p, option)
	p = order.AppendUint32(p, uint32(len(data)))
	return append(p, data...)
}

// infoRequest is the data of INFO and GO.
type infoRequest struct {
	name string
	want []uint16 // information types
}

func (r infoRequest) wants(kind uint16) bool {
	for _, w := range r.want {
		if w == kind {
			return true
		}
	}
	return false
}

// decodeInfoRequest reads the data of INFO and GO: name length (4), name, count (2), count types of 2 bytes; and
// nothing else.
func decodeInfoRequest(p []byte) (r infoRequest, err error) {
	if len(p) < 6 {
		return r, fmt.Errorf("%w: %d bytes are too few", errMalformed, len(p))
	}
	n := uint64(order.Uint32(p))
	if n > uint64(len(p)-6) {
		return r, fmt.Errorf("%w: the name's length is %d in an option of %d", errMalformed, n, len(p))
	}
	if r.name, err = decodeString(p[4 : 4+n]); err != nil {
		return r, err
	}
	p = p[4+n:]
	count := int(order.Uint16(p))
	p = p[2:]
	if len(p) != 2*count {
		return r, fmt.Errorf("%w: %d information requests in %d bytes", errMalformed, count, len(p))
	}
	r.want = make([]uint16, count)
	for i := range r.want {
		r.want[i] = order.Uint16(p[2*i:])
	}
	return r, nil
}

// encodeInfoRequest is the inverse.
func encodeInfoRequest(r infoRequest) []byte {
	p := order.AppendUint32(nil, uint32(len(r.name)))
	p = append(p, r.name...)
	p = order.AppendUint16(p, uint16(len(r.want)))
	for _, w := range r.want {
		p = order.AppendUint16(p, w)
	}
	return p
}

// decodeString checks an export name: at most maxStringBytes, no NUL. Names are not required to be UTF-8 here; an
// Exporter that does not know one says so.
func decodeString(p []byte) (string, error) {
	if len(p) > maxStringBytes {
		return "", fmt.Errorf("%w: a name of %d bytes, the limit is %d", errMalformed, len(p), maxStringBytes)
	}
	for _, b := range p {
		if b == 0 {
			return "", fmt.Errorf("%w: a name with a NUL byte", errMalformed)
		}
	}
	return string(p), nil
}

// encodeServer is the data of a SERVER reply (LIST): name length (4), name, description.
func encodeServer(i ExportInfo) []byte {
	p := order.AppendUint32(nil, uint32(len(i.Name)))
	p = append(p, i.Name...)
	return append(p, i.Description...)
}

// decodeServer is the inverse, in the client.
func decodeServer(p []byte) (i ExportInfo, err error) {
	if len(p) < 4 || uint64(order.Uint32(p)) > uint64(len(p)-4) {
		return i, fmt.Errorf("%w: an export in %d bytes", ErrProtocol, len(p))
	}
	n := order.Uint32(p)
	i.Name, i.Description = string(p[4:4+n]), string(p[4+n:])
	return i, nil
}

// appendInfos appends the INFO replies to an INFO or GO.
func appendInfos(p []byte, option uint32, r infoRequest, i ExportInfo) []byte {
	data := order.AppendUint16(nil, protocol.NEGOTIATION_TYPE_INFO_EXPORT)
	data = order.AppendUint64(data, i.Size)
	data = order.AppendUint16(data, uint16(i.Flags))
	p = appendOptionReply(p, option, protocol.NEGOTIATION_TYPE_REPLY_INFO, data)
	if r.wants(protocol.NEGOTIATION_TYPE_INFO_NAME) {
		data = order.AppendUint16(data[:0], protocol.NEGOTIATION_TYPE_INFO_NAME)
		p = appendOptionReply(p, option, protocol.NEGOTIATION_TYPE_REPLY_INFO, append(data, i.Name...))
	}
	if r.wants(protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION) {
		data = order.AppendUint16(data[:0], protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION)
		p = appendOptionReply(p, option, protocol.NEGOTIATION_TYPE_REPLY_INFO, append(data, i.Description...))
	}
	if r.wants(protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE) {
		data = order.AppendUint16(data[:0], protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE)
		data = order.AppendUint32(data, i.MinBlock)
		data = order.AppendUint32(data, i.PreferredBlock)
		data = order.AppendUint32(data, i.MaxPayload)
		p = appendOptionReply(p, option, protocol.NEGOTIATION_TYPE_REPLY_INFO, data)
	}
	return p
}

// decodeInfo takes one INFO reply into i, in the client. Types that it does not know are ignored, as they must be.
func decodeInfo(p []byte, i *ExportInfo) (export bool, err error) {
	if len(p) < 2 {
		return false, fmt.Errorf("%w: information of %d bytes", ErrProtocol, len(p))
	}
	kind := order.Uint16(p)
	bad := fmt.Errorf("%w: information type %d of %d bytes", ErrProtocol, kind, len(p))
	switch kind {
	case protocol.NEGOTIATION_TYPE_INFO_EXPORT:
		if len(p) != infoExportBytes {
			return false, bad
		}
		i.Size, i.Flags = order.Uint64(p[2:]), TransmissionFlags(order.Uint16(p[10:]))
		return true, nil
	case protocol.NEGOTIATION_TYPE_INFO_NAME:
		i.Name = string(p[2:])
	case protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION:
		i.Description = string(p[2:])
	case protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE:
		if len(p) != infoBlockSizeBytes {
			return false, bad
		}
		i.MinBlock, i.PreferredBlock, i.MaxPayload = order.Uint32(p[2:]), order.Uint32(p[6:]), order.Uint32(p[10:])
	}
	return false, nil
}
