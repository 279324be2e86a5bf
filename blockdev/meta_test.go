package blockdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lockstep/wal"
)

var update = flag.Bool("update", false, "write golden files anew")

func sampleMeta() meta {
	return meta{
		Generation: 7,
		ID: Identity{
			Cluster: "5f0e3c62-8f2b-4a43-9d3a-0d6d3d3a7b01", Volume: "5f0e3c62-8f2b-4a43-9d3a-0d6d3d3a7b02",
			Replica: "5f0e3c62-8f2b-4a43-9d3a-0d6d3d3a7b03", VolumeName: "vol0", Size: 1 << 30,
		},
		Segment: 64 << 20, Segments: 16, Salt: 0x1122334455667788, Incarnation: 3, Flags: flagClean,
		Checkpoint: checkpoint{LSN: 1000, Pos: 5000, Chain: 0xdeadbeef}, Commit: 1001, CleanEnd: 1005, BootID: "b",
		Epochs: EpochIndex{{1, 1}, {4, 900}}, Protocol: []byte("view 4"),
	}
}

// The layout on disk does not change under replicas that exist.
func TestMetaSlotIsGolden(t *testing.T) {
	var b [metaSlotSize]byte
	m := sampleMeta()
	m.encode(&b)
	const golden = "testdata/meta-v1.golden"
	if *update {
		if err := os.WriteFile(golden, b[:], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b[:], want) {
		t.Error("encode gives other bytes than version 1 of the format has")
	}
	got, err := decodeMeta((*[metaSlotSize]byte)(want))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, got); d != "" {
		t.Error(d)
	}
}

func TestMetaRefusesEveryFlippedBit(t *testing.T) {
	var good [metaSlotSize]byte
	m := sampleMeta()
	m.encode(&good)
	for i := range good {
		b := good
		b[i] ^= 1 << (i % 8)
		if _, err := decodeMeta(&b); !errors.Is(err, errBadSlot) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
}

// resumSlot makes a slot's checksum right.
func resumSlot(b *[metaSlotSize]byte) {
	clear(b[metaCRCOff : metaCRCOff+4])
	binary.LittleEndian.PutUint32(b[metaCRCOff:], crc32.Checksum(b[:], castagnoli))
}

func FuzzMeta(f *testing.F) {
	var b [metaSlotSize]byte
	m := sampleMeta()
	m.encode(&b)
	f.Add(b[:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var b [metaSlotSize]byte
		copy(b[:], data)
		resumSlot(&b) // else the fuzzer meets nothing but the checksum
		m, err := decodeMeta(&b)
		if err != nil {
			return
		}
		var again [metaSlotSize]byte
		if m.encode(&again); again != b {
			t.Fatal("decoded what encode would not write")
		}
	})
}

// memFile is as much of a file as metaFile needs; a crash loses or tears what was not synced.
type memFile struct {
	stable, cache [2 * metaSlotSize]byte
	failSync      error
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error)  { return copy(b, f.cache[off:]), nil }
func (f *memFile) WriteAt(b []byte, off int64) (int, error) { return copy(f.cache[off:], b), nil }
func (f *memFile) Close() error                             { return nil }
func (f *memFile) Size() (int64, error)                     { return int64(len(f.cache)), nil }
func (f *memFile) Truncate(int64) error                     { return nil }
func (f *memFile) PunchHole(int64, int64) error             { return nil }
func (f *memFile) StartWriteback(int64, int64)              {}
func (f *memFile) Sync() error {
	if f.failSync == nil {
		f.stable = f.cache
	}
	return f.failSync
}

// Whatever part of an unfinished save reached the disk, sector by sector, a save that was finished before it is still
// there; and after a finished save, one slot may rot.
func TestMetaSaveSurvivesTornWriteAndRot(t *testing.T) {
	f := &memFile{}
	m := sampleMeta()
	mf := newMetaFile(f, m)
	for range 2 {
		if err := mf.save(func(*meta) {}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range uint64(10) {
		if err := mf.save(func(m *meta) { m.Incarnation = round }); err != nil {
			t.Fatal(err)
		}
		for slot := range 2 {
			g := &memFile{cache: f.cache}
			g.cache[slot*metaSlotSize+100] ^= 1
			if r, err := openMeta(g); err != nil || r.get().Incarnation != round {
				t.Fatalf("slot %d rotten: %v", slot, err)
			}
		}
		// The next save, torn in its first write, with every subset of the sectors that still change on disk:
		// those, and those of the second copy before.
		for torn := range 1 << 8 {
			for mirrored := range 2 {
				g := &memFile{cache: f.stable}
				if mirrored == 1 {
					g.cache = f.cache
				}
				next := *mf.get()
				next.Generation++
				next.Incarnation = 1000
				var b [metaSlotSize]byte
				next.encode(&b)
				at := int(next.Generation % 2 * metaSlotSize)
				for s := range 8 {
					if torn>>s&1 == 1 {
						copy(g.cache[at+s*512:at+(s+1)*512], b[s*512:])
					}
				}
				r, err := openMeta(g)
				if err != nil {
					t.Fatal(err)
				}
				if got := r.get().Incarnation; got != round && got != 1000 {
					t.Fatalf("round %d torn %b: incarnation %d", round, torn, got)
				}
			}
		}
	}
}

func TestMetaSaysWhatIsWrong(t *testing.T) {
	f := &memFile{}
	_, err := openMeta(f)
	var damaged *DamagedError
	if !errors.As(err, &damaged) {
		t.Errorf("both slots bad: %v", err)
	}
	var b [metaSlotSize]byte
	m := sampleMeta()
	m.encode(&b)
	b[8] = metaVersion + 1
	resumSlot(&b)
	copy(f.cache[:], b[:])
	_, err = openMeta(f)
	var newer *VersionError
	if !errors.As(err, &newer) || newer.Found != metaVersion+1 || newer.Known != metaVersion {
		t.Errorf("newer version: %v", err)
	}
}

func TestMetaBoundsAreWithinTheSlot(t *testing.T) {
	if metaEnd > metaSlotSize || metaTextOff+5*metaTextSize != metaEpochOff {
		t.Error("the slot's fields overlap")
	}
	m := sampleMeta()
	m.Epochs = nil
	for e := range wal.Epoch(MaxEpochs) {
		m.Epochs = append(m.Epochs, EpochStart{e, wal.LSN(e + 1)})
	}
	m.Protocol = bytes.Repeat([]byte{0xff}, MaxProtocolBytes)
	m.BootID = string(bytes.Repeat([]byte{'x'}, MaxTextBytes))
	var b [metaSlotSize]byte
	m.encode(&b)
	got, err := decodeMeta(&b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, got); d != "" {
		t.Error(d)
	}
}
