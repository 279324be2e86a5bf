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
	optStartTLS        = uint32(5)
	optStructuredReply = uint32(8)
	optListMetaContext = uint32(9)
	optSetMetaContext  = uint32(10)

	repMetaContext = uint32(4)

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
	cmdBlockStatus = uint16(7)

	cmdFlagFUA      = uint16(1 << 0)
	cmdFlagNoHole   = uint16(1 << 1)
	cmdFlagDF       = uint16(1 << 2)
	cmdFlagReqOne   = uint16(1 << 3)
	cmdFlagFastZero = uint16(1 << 4)

	structuredReplyMagic = uint32(0x668e33ef)
	replyFlagDone        = uint16(1 << 0)
	replyTypeNone        = uint16(0)
	replyTypeOffsetData  = uint16(1)
	replyTypeOffsetHole  = uint16(2)
	replyTypeBlockStatus = uint16(5)
	replyTypeError       = uint16(1<<15 | 1)
	replyTypeErrorBit    = uint16(1 << 15)
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
	dataChunkBytes       = 8  // of OFFSET_DATA, before the data: offset
	holeChunkBytes       = 12 // offset, size
	errorChunkBytes      = 6  // error, length of the text
	statusChunkBytes     = 4  // of BLOCK_STATUS, before the descriptors: context
	descriptorBytes      = 8  // length, state
)

// Limits on what the peer may make this process hold.
const (
	minBlockSize       = 1
	preferredBlockSize = 4096
	maxBlockSize       = 32 << 20 // advertised
	maxPayloadBytes    = 64 << 20 // accepted
	maxStringBytes     = 4096     // export names and descriptions, by the specification
	maxOptionBytes     = 64 << 10 // data of one option
	maxDroppedBytes    = 32 << 20 // data of one option that is too big, and dropped
	maxReplyBytes      = 64 << 10 // data of one option reply, in the client
	maxOptions         = 64       // options that one handshake may have
	maxListedExports   = 10_000   // that the client takes from a server
	maxExtents         = 8 << 10  // in one reply of the server
	maxStatusBytes     = 8 << 20  // descriptors of one reply, in the client: 2^20, by the specification
	maxErrorBytes      = 8 << 10  // an error chunk, in the client: its text has at most 4 KiB
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

// chunk is the header of one part of a structured reply.
type chunk struct {
	flags, kind uint16
	cookie      uint64
	length      uint32 // of what follows
}

// decodeChunk reads a chunk's header; p has structuredReplyBytes. The magic is left for the caller to check.
func decodeChunk(p []byte) chunk {
	_ = p[structuredReplyBytes-1]
	return chunk{
		flags: order.Uint16(p[4:]), kind: order.Uint16(p[6:]),
		cookie: order.Uint64(p[8:]), length: order.Uint32(p[16:]),
	}
}

// put writes the chunk's header into p and returns its length.
func (c chunk) put(p []byte) int {
	_ = p[structuredReplyBytes-1]
	order.PutUint32(p[0:], structuredReplyMagic)
	order.PutUint16(p[4:], c.flags)
	order.PutUint16(p[6:], c.kind)
	order.PutUint64(p[8:], c.cookie)
	order.PutUint32(p[16:], c.length)
	return structuredReplyBytes
}

// encodeDataChunk writes what goes before the data of a part of a read, and returns its length.
func encodeDataChunk(p []byte, flags uint16, cookie, offset uint64, length uint32) int {
	n := chunk{flags, replyTypeOffsetData, cookie, dataChunkBytes + length}.put(p)
	order.PutUint64(p[n:], offset)
	return n + dataChunkBytes
}

// encodeHoleChunk writes a part of a read that is zeroes, and returns its length.
func encodeHoleChunk(p []byte, flags uint16, cookie, offset uint64, length uint32) int {
	n := chunk{flags, replyTypeOffsetHole, cookie, holeChunkBytes}.put(p)
	order.PutUint64(p[n:], offset)
	order.PutUint32(p[n+8:], length)
	return n + holeChunkBytes
}

// encodeErrorChunk writes what goes before the text of a structured error reply, and returns its length.
func encodeErrorChunk(p []byte, cookie uint64, errno uint32, text int) int {
	n := chunk{replyFlagDone, replyTypeError, cookie, errorChunkBytes + uint32(text)}.put(p)
	order.PutUint32(p[n:], errno)
	order.PutUint16(p[n+4:], uint16(text))
	return n + errorChunkBytes
}

// encodeStatusChunk writes what goes before the descriptors of a block status, and returns its length.
func encodeStatusChunk(p []byte, cookie uint64, descriptors int) int {
	n := chunk{replyFlagDone, replyTypeBlockStatus, cookie, statusChunkBytes + uint32(descriptors)*descriptorBytes}.put(p)
	order.PutUint32(p[n:], allocationID)
	return n + statusChunkBytes
}
