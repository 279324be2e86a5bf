package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Constants that go-nbd's protocol package lacks. All are part of the protocol; never renumber.
const (
	handshakeFlagNoZeroes = uint16(1 << 1)

	clientFlagFixedNewstyle = uint32(1 << 0)
	clientFlagNoZeroes      = uint32(1 << 1)

	optExportName      = uint32(1)
	optStructuredReply = uint32(8)

	repErrPolicy   = uint32(1<<31 | 2)
	repErrInvalid  = uint32(1<<31 | 3)
	repErrPlatform = uint32(1<<31 | 4)
	repErrTLSReqd  = uint32(1<<31 | 5)
	repErrShutdown = uint32(1<<31 | 7)
	repErrTooBig   = uint32(1<<31 | 9)

	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)

	cmdFlagFUA      = uint16(1 << 0)
	cmdFlagNoHole   = uint16(1 << 1)
	cmdFlagDF       = uint16(1 << 2)
	cmdFlagFastZero = uint16(1 << 4)

	structuredReplyMagic = uint32(0x668e33ef)
	replyFlagDone        = uint16(1 << 0)
	replyTypeOffsetData  = uint16(1)
	replyTypeError       = uint16(1<<15 | 1)
)

// TransmissionFlags tell a client what an export can do.
type TransmissionFlags uint16

// The transmission flags.
const (
	FlagHasFlags        TransmissionFlags = 1 << 0
	FlagReadOnly        TransmissionFlags = 1 << 1
	FlagSendFlush       TransmissionFlags = 1 << 2
	FlagSendFUA         TransmissionFlags = 1 << 3
	FlagSendTrim        TransmissionFlags = 1 << 5
	FlagSendWriteZeroes TransmissionFlags = 1 << 6
	FlagSendDF          TransmissionFlags = 1 << 7
	FlagCanMultiConn    TransmissionFlags = 1 << 8
	FlagSendCache       TransmissionFlags = 1 << 10
	FlagSendFastZero    TransmissionFlags = 1 << 11
)

// Sizes of fixed parts of messages, in bytes.
const (
	helloBytes           = 18 // NBDMAGIC, IHAVEOPT, handshake flags
	clientFlagsBytes     = 4
	optionHeaderBytes    = 16 // magic, option, length
	optionReplyBytes     = 20 // magic, option, reply type, length
	exportNameZeroes     = 124
	exportNameReplyBytes = 10 // size, transmission flags
	requestHeaderBytes   = 28 // magic, flags, type, cookie, offset, length
	simpleReplyBytes     = 16 // magic, error, cookie
	structuredReplyBytes = 20 // magic, flags, type, cookie, length
	infoExportBytes      = 12
	infoBlockSizeBytes   = 14
)

// Limits on what the peer may make this process hold.
const (
	minBlockSize       = 1
	preferredBlockSize = 4096
	maxBlockSize       = 32 << 20 // advertised
	maxPayloadBytes    = 64 << 20 // accepted
	maxStringBytes     = 4096     // export names and descriptions, by the specification
	maxOptionBytes     = 64 << 10 // data of one option
	maxReplyBytes      = 64 << 10 // data of one option reply, in the client
	maxOptions         = 64       // options that one handshake may have
	maxListedExports   = 10_000   // that the client takes from a server
)

// order is the protocol's byte order.
var order = binary.BigEndian

// decodeRequest reads a request header; p has requestHeaderBytes. The magic is left for the caller to check.
func decodeRequest(p []byte) protocol.TransmissionRequestHeader {
	_ = p[requestHeaderBytes-1]
	return protocol.TransmissionRequestHeader{
		RequestMagic: order.Uint32(p[0:]),
		CommandFlags: order.Uint16(p[4:]),
		Type:         order.Uint16(p[6:]),
		Handle:       order.Uint64(p[8:]),
		Offset:       order.Uint64(p[16:]),
		Length:       order.Uint32(p[24:]),
	}
}

// encodeRequest writes a request header into p, which has room for requestHeaderBytes.
func encodeRequest(p []byte, h protocol.TransmissionRequestHeader) {
	_ = p[requestHeaderBytes-1]
	order.PutUint32(p[0:], protocol.TRANSMISSION_MAGIC_REQUEST)
	order.PutUint16(p[4:], h.CommandFlags)
	order.PutUint16(p[6:], h.Type)
	order.PutUint64(p[8:], h.Handle)
	order.PutUint64(p[16:], h.Offset)
	order.PutUint32(p[24:], h.Length)
}

// decodeReply reads a simple reply's header; p has simpleReplyBytes. The magic is left for the caller to check.
func decodeReply(p []byte) protocol.TransmissionReplyHeader {
	_ = p[simpleReplyBytes-1]
	return protocol.TransmissionReplyHeader{
		ReplyMagic: order.Uint32(p[0:]),
		Error:      order.Uint32(p[4:]),
		Handle:     order.Uint64(p[8:]),
	}
}

// encodeSimpleReply writes a simple reply's header into p and returns its length.
func encodeSimpleReply(p []byte, cookie uint64, errno uint32) int {
	_ = p[simpleReplyBytes-1]
	order.PutUint32(p[0:], protocol.TRANSMISSION_MAGIC_REPLY)
	order.PutUint32(p[4:], errno)
	order.PutUint64(p[8:], cookie)
	return simpleReplyBytes
}

// encodeDataChunk writes what goes before the data of a read's only structured chunk, and returns its length.
func encodeDataChunk(p []byte, cookie, offset uint64, length uint32) int {
	n := encodeChunk(p, replyTypeOffsetData, cookie, 8+length)
	order.PutUint64(p[n:], offset)
	return n + 8
}

// encodeErrorChunk writes a structured error reply without a message, and returns its length.
func encodeErrorChunk(p []byte, cookie uint64, errno uint32) int {
	n := encodeChunk(p, replyTypeError, cookie, 6)
	order.PutUint32(p[n:], errno)
	order.PutUint16(p[n+4:], 0)
	return n + 6
}

func encodeChunk(p []byte, kind uint16, cookie uint64, length uint32) int {
	_ = p[structuredReplyBytes-1]
	order.PutUint32(p[0:], structuredReplyMagic)
	order.PutUint16(p[4:], replyFlagDone)
	order.PutUint16(p[6:], kind)
	order.PutUint64(p[8:], cookie)
	order.PutUint32(p[16:], length)
	return structuredReplyBytes
}
