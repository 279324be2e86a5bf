package blockdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// The meta slot's layout; doc.go has the table. Part of the format; never renumber.
const (
	metaMagic    = 0x4154454d54534b4c // "LKSTMETA", little-endian
	metaVersion  = 1
	metaSlotSize = 4096
	metaCRCOff   = 12
	metaTextOff  = 128
	metaTextSize = 64
	metaEpochOff = 448
	metaProtoOff = metaEpochOff + MaxEpochs*16
	metaEnd      = metaProtoOff + MaxProtocolBytes
	metaGrowOff  = metaEnd
)

// MaxProtocolBytes is the largest protocol state.
const MaxProtocolBytes = 2048

// MaxTextBytes is the longest name in an Identity.
const MaxTextBytes = metaTextSize - 1

type metaFlags uint32

// Part of the format; never renumber.
const (
	flagClean   metaFlags = 1 << iota // the last stop was clean
	flagCopying                       // B7
	flagBlank                         // the log holds nothing behind the checkpoint, whatever is found there
	knownFlags  = flagClean | flagCopying | flagBlank
)

// checkpoint is where recovery begins: everything up to LSN is in the image.
type checkpoint struct {
	LSN   wal.LSN
	Pos   wal.Pos // right behind the frame that ends with LSN
	Chain uint32  // that frame's sum
}

// meta is what a slot holds. It is a value: copies share nothing but the slices, which are never changed in place.
type meta struct {
	Generation  uint64
	ID          Identity
	Segment     int64
	Segments    int
	Salt        uint64
	Incarnation uint64
	Flags       metaFlags
	Checkpoint  checkpoint
	Commit      wal.LSN
	CleanEnd    wal.LSN // end of the log at a clean stop, all of it stable; else 0
	Sessions    uint64  // generation of the session table that belongs to the checkpoint (B10)
	Growing     uint64  // files may be long enough for that size, larger than ID.Size; else 0
	BootID      string
	Epochs      EpochIndex
	Protocol    []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode fills a slot. Validity of the fields is the caller's business: Format and SaveProtocol check.
func (m *meta) encode(b *[metaSlotSize]byte) {
	clear(b[:])
	le := binary.LittleEndian
	le.PutUint64(b[0:], metaMagic)
	le.PutUint32(b[8:], metaVersion)
	le.PutUint64(b[16:], m.Generation)
	le.PutUint64(b[24:], m.ID.Size)
	le.PutUint32(b[32:], BlockSize)
	le.PutUint32(b[36:], RegionBytes)
	le.PutUint64(b[40:], uint64(m.Segment))
	le.PutUint32(b[48:], uint32(m.Segments))
	le.PutUint32(b[52:], uint32(m.Flags))
	le.PutUint64(b[56:], m.Salt)
	le.PutUint64(b[64:], m.Incarnation)
	le.PutUint64(b[72:], uint64(m.Checkpoint.LSN))
	le.PutUint64(b[80:], uint64(m.Checkpoint.Pos))
	le.PutUint32(b[88:], m.Checkpoint.Chain)
	le.PutUint64(b[96:], uint64(m.Commit))
	le.PutUint64(b[104:], uint64(m.CleanEnd))
	le.PutUint64(b[120:], m.Sessions)
	le.PutUint32(b[112:], uint32(len(m.Epochs)))
	le.PutUint32(b[116:], uint32(len(m.Protocol)))
	for i, s := range m.texts() {
		at := metaTextOff + i*metaTextSize
		b[at] = byte(len(*s))
		copy(b[at+1:at+metaTextSize], *s)
	}
	for i, e := range m.Epochs {
		le.PutUint64(b[metaEpochOff+i*16:], uint64(e.Epoch))
		le.PutUint64(b[metaEpochOff+i*16+8:], uint64(e.First))
	}
	copy(b[metaProtoOff:metaEnd], m.Protocol)
	le.PutUint64(b[metaGrowOff:], m.Growing)
	le.PutUint32(b[metaCRCOff:], crc32.Checksum(b[:], castagnoli))
}

func (m *meta) texts() [5]*string {
	return [5]*string{&m.ID.Cluster, &m.ID.Volume, &m.ID.Replica, &m.ID.VolumeName, &m.BootID}
}

var errBadSlot = errors.New("bad checksum or content")

// decodeMeta reads a slot. It returns *VersionError for a sound slot of a newer version, and an error that wraps
// errBadSlot for anything else that encode did not write.
func decodeMeta(b *[metaSlotSize]byte) (meta, error) {
	le := binary.LittleEndian
	bad := func(what string) (meta, error) { return meta{}, fmt.Errorf("%w: %s", errBadSlot, what) }
	if le.Uint64(b[0:]) != metaMagic {
		return bad("magic")
	}
	c := *b
	le.PutUint32(c[metaCRCOff:], 0)
	if crc32.Checksum(c[:], castagnoli) != le.Uint32(b[metaCRCOff:]) {
		return bad("checksum")
	}
	if v := le.Uint32(b[8:]); v > metaVersion {
		return meta{}, &VersionError{Found: v, Known: metaVersion}
	} else if v != metaVersion {
		return bad("version")
	}
	m := meta{
		Generation:  le.Uint64(b[16:]),
		ID:          Identity{Size: le.Uint64(b[24:])},
		Segment:     int64(le.Uint64(b[40:])),
		Segments:    int(le.Uint32(b[48:])),
		Flags:       metaFlags(le.Uint32(b[52:])),
		Salt:        le.Uint64(b[56:]),
		Incarnation: le.Uint64(b[64:]),
		Checkpoint:  checkpoint{wal.LSN(le.Uint64(b[72:])), wal.Pos(le.Uint64(b[80:])), le.Uint32(b[88:])},
		Commit:      wal.LSN(le.Uint64(b[96:])),
		CleanEnd:    wal.LSN(le.Uint64(b[104:])),
		Sessions:    le.Uint64(b[120:]),
		Growing:     le.Uint64(b[metaGrowOff:]),
	}
	if le.Uint32(b[32:]) != BlockSize || le.Uint32(b[36:]) != RegionBytes {
		return bad("block or region size")
	}
	if !validSize(m.ID.Size) || m.Growing != 0 && (!validSize(m.Growing) || m.Growing <= m.ID.Size) {
		return bad("volume size")
	}
	if m.Segment <= 0 || m.Segments <= 0 || m.Flags&^knownFlags != 0 {
		return bad("log size or flags")
	}
	for i, s := range m.texts() {
		f := b[metaTextOff+i*metaTextSize:][:metaTextSize]
		if f[0] > MaxTextBytes {
			return bad("text")
		}
		*s = string(f[1 : 1+f[0]])
	}
	epochs, proto := le.Uint32(b[112:]), le.Uint32(b[116:])
	if epochs > MaxEpochs || proto > MaxProtocolBytes {
		return bad("epochs or protocol length")
	}
	for i := range int(epochs) {
		at := metaEpochOff + i*16
		m.Epochs = append(m.Epochs, EpochStart{wal.Epoch(le.Uint64(b[at:])), wal.LSN(le.Uint64(b[at+8:]))})
	}
	if !m.Epochs.valid() {
		return bad("epoch index")
	}
	m.Protocol = append([]byte(nil), b[metaProtoOff:][:proto]...)
	// What encode would not write is not accepted: so no byte goes unchecked.
	var again [metaSlotSize]byte
	if m.encode(&again); again != *b {
		return bad("unknown content")
	}
	return m, nil
}

// metaFile is the meta file and what it holds. Saves are serialised by mu; get waits for none.
type metaFile struct {
	f   vfs.File
	cur atomic.Pointer[meta]

	mu  sync.Mutex
	buf [metaSlotSize]byte

	broken mutation // tests only
}

func newMetaFile(f vfs.File, m meta) *metaFile {
	mf := &metaFile{f: f}
	mf.cur.Store(&m)
	return mf
}

// openMeta reads both slots, after a sync (W6), and takes the newer good one.
func openMeta(f vfs.File) (*metaFile, error) {
	if err := syncOpened(f); err != nil {
		return nil, fmt.Errorf("sync meta: %w", err)
	}
	if n, err := f.Size(); err != nil {
		return nil, fmt.Errorf("size of meta: %w", err)
	} else if n != 2*metaSlotSize {
		return nil, &DamagedError{"meta", fmt.Sprintf("is %d bytes long instead of %d", n, 2*metaSlotSize)}
	}
	var newest meta
	found, causes := false, [2]error{}
	for i := range 2 {
		var b [metaSlotSize]byte
		if _, err := f.ReadAt(b[:], int64(i)*metaSlotSize); err != nil {
			return nil, fmt.Errorf("read meta slot %d: %w", i, err)
		}
		m, err := decodeMeta(&b)
		var newer *VersionError
		if errors.As(err, &newer) {
			return nil, err
		}
		if causes[i] = err; err == nil && (!found || m.Generation > newest.Generation) {
			newest, found = m, true
		}
	}
	if !found {
		return nil, &DamagedError{"meta", fmt.Sprintf("no valid slot (%v; %v)", causes[0], causes[1])}
	}
	return newMetaFile(f, newest), nil
}

// get returns the content that is stable. What it points to is never changed.
func (mf *metaFile) get() *meta { return mf.cur.Load() }

// save changes the content. On return it is stable. After an error nothing is known, and the store is poisoned.
func (mf *metaFile) save(change func(*meta)) error {
	mf.mu.Lock()
	defer mf.mu.Unlock()
	m := *mf.cur.Load()
	change(&m)
	m.Generation++
	m.encode(&mf.buf)
	at := int64(m.Generation%2) * metaSlotSize
	if _, err := mf.f.WriteAt(mf.buf[:], at); err != nil {
		return fmt.Errorf("write meta: %w", err)
	}
	if !mf.broken.has(metaUnsynced) {
		if err := mf.f.Sync(); err != nil {
			return fmt.Errorf("sync meta: %w", err)
		}
	}
	// The second copy guards against rot and may be lost; the next save overwrites it before the first.
	if _, err := mf.f.WriteAt(mf.buf[:], metaSlotSize-at); err != nil {
		return fmt.Errorf("write meta: %w", err)
	}
	mf.cur.Store(&m)
	return nil
}
