package replication

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// A message is a header of headerSize bytes, little-endian, and a body:
//
//	offset  size  field
//	0       4     magic "LKS4"; another version of the protocol has another magic
//	4       4     crc32c of bytes 8..71
//	8       1     type
//	9       1     flags
//	10      2     zero
//	12      4     length of the body
//	16      8     view number of the sender
//	24      8     a: Ack written LSN; Start common point; Region, Digest and Sums number; Mend block; Block as-of LSN
//	32      8     b: Ack durable LSN; Region as-of LSN; Digest crc32c of the region's sums; Start and Copy the primary's
//	              log end; Confirm length of the grant, ns
//	40      8     commit LSN of the primary; in an Ack the tenure of its sender's view
//	48      8     nonce; Region the size of the primary's disk
//	56      4     crc32c of the body; 0 for an Append, whose frame has checksums of its own
//	60      4     zero
//	64      8     lease: Confirm until when the primary relies on the grant that it asks for, by its own clock; Ack the same
//	              number of the newest request that was granted; 0: nothing asked or granted
const (
	headerSize = 72
	wireMagic  = 0x34534b4c // "LKS4"
)

// Limits on bodies, checked before anything is allocated.
const (
	maxControlBody = 64 << 10
	maxFrameBody   = (wal.MaxFrameBlocks + 64) * wal.BlockSize
	maxRegionBody  = blockdev.RegionBytes + 64<<10

	maxSessionsBody = blockdev.MaxSessionsBytes
)

// msgType is part of the protocol; never renumber.
type msgType uint8

const (
	msgHello    msgType = 1
	msgWelcome  msgType = 2
	msgStale    msgType = 3
	msgStart    msgType = 4
	msgCopy     msgType = 5
	msgRegion   msgType = 6
	msgCopyDone msgType = 7
	msgAppend   msgType = 8
	msgConfirm  msgType = 9
	msgView     msgType = 10
	msgAck      msgType = 11
	msgFetch    msgType = 12
	msgBlock    msgType = 13
	msgSessions msgType = 14
	msgDigest   msgType = 15
	msgSums     msgType = 16
	msgMend     msgType = 17
	msgForeign  msgType = 18
)

// flagSync on a Confirm asks the peer to sync its log before it answers.
const flagSync = 1

// flagCopied on an Ack says that the peer holds a complete image.
const flagCopied = 2

// flagSuspect on an Ack says that the peer may lack what was acknowledged: it would not open.
const flagSuspect = 4

// flagReturn on a Confirm says that the primary does not rely on any earlier grant.
const flagReturn = 8

var (
	errWire    = errors.New("replication: malformed message")
	errVersion = errors.New("replication: the other node speaks another version of the protocol")
)

// msg is a message without its body.
type msg struct {
	Type    msgType
	Flags   uint8
	BodyLen uint32
	View    viewsvc.ViewNum
	A, B    uint64
	Commit  wal.LSN
	Nonce   uint64
	BodySum uint32
	Lease   uint64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// put encodes m into the first headerSize bytes of b.
func (m msg) put(b []byte) {
	_ = b[headerSize-1]
	clear(b[:headerSize])
	le := binary.LittleEndian
	le.PutUint32(b[0:], wireMagic)
	b[8], b[9] = byte(m.Type), m.Flags
	le.PutUint32(b[12:], m.BodyLen)
	le.PutUint64(b[16:], uint64(m.View))
	le.PutUint64(b[24:], m.A)
	le.PutUint64(b[32:], m.B)
	le.PutUint64(b[40:], uint64(m.Commit))
	le.PutUint64(b[48:], m.Nonce)
	le.PutUint32(b[56:], m.BodySum)
	le.PutUint64(b[64:], m.Lease)
	le.PutUint32(b[4:], crc32.Checksum(b[8:headerSize], castagnoli))
}

// encode is m with a control body, in a buffer of its own.
func (m msg) encode(body []byte) []byte {
	m.BodyLen, m.BodySum = uint32(len(body)), crc32.Checksum(body, castagnoli)
	b := make([]byte, headerSize+len(body))
	m.put(b)
	copy(b[headerSize:], body)
	return b
}

// encodeJSON is m with v as its body.
func (m msg) encodeJSON(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("replication: encode %T: %v", v, err)) // only our own plain structs come here
	}
	return m.encode(body)
}

// parseMsg decodes a header and checks its length against its type's limit.
func parseMsg(b []byte) (msg, error) {
	le := binary.LittleEndian
	if len(b) < headerSize {
		return msg{}, fmt.Errorf("%w: %d bytes of header", errWire, len(b))
	}
	switch {
	case le.Uint32(b[0:]) == wireMagic:
	case string(b[:3]) == "LKS":
		return msg{}, fmt.Errorf("%w: %q, this node speaks LKS%c; run the same release on all nodes", errVersion, b[:4], wireMagic>>24)
	default:
		return msg{}, fmt.Errorf("%w: bad magic %#x", errWire, le.Uint32(b[0:]))
	}
	if crc32.Checksum(b[8:headerSize], castagnoli) != le.Uint32(b[4:]) {
		return msg{}, fmt.Errorf("%w: header checksum", errWire)
	}
	m := msg{Type: msgType(b[8]), Flags: b[9], BodyLen: le.Uint32(b[12:]), View: viewsvc.ViewNum(le.Uint64(b[16:])),
		A: le.Uint64(b[24:]), B: le.Uint64(b[32:]), Commit: wal.LSN(le.Uint64(b[40:])), Nonce: le.Uint64(b[48:]),
		BodySum: le.Uint32(b[56:]), Lease: le.Uint64(b[64:])}
	limit := uint32(0)
	switch m.Type {
	case msgHello, msgWelcome, msgStale, msgCopy, msgView, msgFetch, msgBlock, msgSums, msgMend:
		limit = maxControlBody
	case msgAppend:
		limit = maxFrameBody
	case msgRegion:
		limit = maxRegionBody
	case msgSessions:
		limit = maxSessionsBody
	case msgStart, msgCopyDone, msgConfirm, msgAck, msgDigest, msgForeign:
	default:
		return msg{}, fmt.Errorf("%w: unknown type %d", errWire, m.Type)
	}
	if m.BodyLen > limit {
		return msg{}, fmt.Errorf("%w: type %d with a body of %d bytes, limit %d", errWire, m.Type, m.BodyLen, limit)
	}
	return m, nil
}

// reader reads messages from a stream. The body is valid until the next call.
type reader struct {
	br   *bufio.Reader
	max  uint32 // largest body that is taken; 0: as the type allows
	head [headerSize]byte
	body []byte
}

func newReader(r io.Reader) *reader { return &reader{br: bufio.NewReaderSize(r, 256<<10)} }

// buffered tells whether another message has begun to arrive.
func (r *reader) buffered() bool { return r.br.Buffered() >= headerSize }

func (r *reader) next() (msg, []byte, error) {
	if _, err := io.ReadFull(r.br, r.head[:]); err != nil {
		return msg{}, nil, err
	}
	m, err := parseMsg(r.head[:])
	if err != nil {
		return m, nil, err
	}
	if r.max > 0 && m.BodyLen > r.max {
		return m, nil, fmt.Errorf("%w: type %d with a body of %d bytes from a stranger", errWire, m.Type, m.BodyLen)
	}
	if cap(r.body) < int(m.BodyLen) {
		r.body = make([]byte, m.BodyLen)
	}
	body := r.body[:m.BodyLen]
	if _, err := io.ReadFull(r.br, body); err != nil {
		return m, nil, err
	}
	if m.Type != msgAppend && crc32.Checksum(body, castagnoli) != m.BodySum {
		return m, nil, fmt.Errorf("%w: body checksum of type %d", errWire, m.Type)
	}
	return m, body, nil
}

func decodeJSON(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %v", errWire, err)
	}
	return nil
}

// hello opens a stream.
type hello struct {
	Cluster string            `json:"cluster"`
	Volume  viewsvc.Volume    `json:"volume"`
	From    viewsvc.ReplicaID `json:"from"`
	To      viewsvc.ReplicaID `json:"to"`
	View    viewsvc.View      `json:"view"`
}

// welcome says what the peer has.
type welcome struct {
	End       wal.LSN             `json:"end"`
	Committed wal.LSN             `json:"committed"`
	Applied   wal.LSN             `json:"applied"`
	Copying   bool                `json:"copying"`   // an earlier copy was not completed
	CopyBase  wal.LSN             `json:"copy_base"` // where its image was when that copy began
	Epochs    blockdev.EpochIndex `json:"epochs"`
}

// check refuses an epoch index that no replica has: CommonPoint counts on their order.
func (w welcome) check() error {
	if len(w.Epochs) > blockdev.MaxEpochs {
		return fmt.Errorf("%w: %d epochs in a welcome", errWire, len(w.Epochs))
	}
	var last blockdev.EpochStart
	for i, e := range w.Epochs {
		if e.First <= last.First || i > 0 && e.Epoch <= last.Epoch {
			return fmt.Errorf("%w: epoch %d from LSN %d after epoch %d from LSN %d", errWire, e.Epoch, e.First, last.Epoch, last.First)
		}
		last = e
	}
	return nil
}

// Limits of a view that comes from a peer: what is stored must fit into the replica's protocol state.
const (
	maxViewBackups = 15
	maxIDBytes     = 64
)

// checkView refuses a view that could not be stored.
func checkView(v viewsvc.View) error {
	if len(v.Backups) > maxViewBackups {
		return fmt.Errorf("%w: a view with %d backups", errWire, len(v.Backups))
	}
	for _, id := range append(v.Members(), viewsvc.ReplicaID(v.Volume)) {
		if len(id) > maxIDBytes {
			return fmt.Errorf("%w: a name of %d bytes in a view", errWire, len(id))
		}
	}
	return nil
}

// decodeView decodes the body of a View or a Stale.
func decodeView(body []byte) (v viewsvc.View, err error) {
	if err = decodeJSON(body, &v); err == nil {
		err = checkView(v)
	}
	return v, err
}

// startCopy orders a learner to begin its log anew.
type startCopy struct {
	To     wal.LSN             `json:"to"`
	Chain  uint32              `json:"chain"`
	Epochs blockdev.EpochIndex `json:"epochs"`
	Base   wal.LSN             `json:"base"`           // regions changed after it are sent
	Size   uint64              `json:"size,omitempty"` // of the primary's disk
	Keep   bool                `json:"keep"`           // keep the log: only regions are missing, from a copy begun earlier
}
