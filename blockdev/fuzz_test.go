package blockdev

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs"
	"lockstep/wal/vfs/memfs"
)

// fileOf is a file of these bytes.
func fileOf(t testing.TB, b []byte, size int64) vfs.File {
	f, err := memfs.New().Create("f")
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil && len(b) > 0 {
		_, err = f.WriteAt(b[:min(int64(len(b)), size)], 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// goldenDisk is the golden replica, at r.
func goldenDisk(t testing.TB) *memfs.FS {
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	m := memfs.New()
	undump(t, text, m, "r")
	return m
}

func goldenFile(t testing.TB, name string, n int) []byte {
	f, err := goldenDisk(t).Open("r/" + name)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzReplica changes bytes of any file of the golden replica. It opens or is refused, and no block reads as anything but
// what was once in it.
func FuzzReplica(f *testing.F) {
	files := []string{metaName, imageName, sumsName, regionsName, sessionsName, walName + "/00.seg", walName + "/01.seg"}
	for i := range files {
		f.Add(uint8(i), uint32(0), []byte{1})
		f.Add(uint8(i), uint32(4096), []byte("LKSE"))
		f.Add(uint8(i), uint32(100), make([]byte, 4096))
	}
	was := map[uint64]string{0: "block 0", 1: "block 1", 2: "block 2", 4: "block 4", 767: "block 767", 768: "block 768"}
	f.Fuzz(func(t *testing.T, file uint8, off uint32, b []byte) {
		m := goldenDisk(t)
		g, err := m.Open("r/" + files[int(file)%len(files)])
		if err != nil {
			t.Fatal(err)
		}
		size, _ := g.Size()
		if int64(off)+int64(len(b)) > size {
			return
		}
		g.WriteAt(b, int64(off))
		s, err := OpenStore(StoreOptions{FS: m, Dir: "r", BootID: "boot", Manual: true})
		if err != nil {
			return
		}
		defer s.Abandon()
		s.Commit(s.Marks().End)
		for range 2 { // from the log, and from the image
			got := make([]byte, BlockSize)
			for _, block := range []uint64{0, 1, 2, 3, 4, 8, 9, 767, 768, crashBlocks - 1} {
				var corrupt *CorruptBlockError
				switch err := s.Read(block, got); {
				case errors.As(err, &corrupt):
				case err != nil:
					t.Fatalf("block %d: %v", block, err)
				default:
					if text := strings.TrimRight(string(got), "\x00"); text != "" && text != was[block] {
						t.Fatalf("block %d reads as %.20q", block, text)
					}
				}
			}
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzRegions: an entry of the region table is what was written, or counts as changed at the checkpoint.
func FuzzRegions(f *testing.F) {
	f.Add(goldenFile(f, regionsName, pageSize), uint64(6))
	f.Add([]byte{1}, uint64(1)<<60)
	f.Fuzz(func(t *testing.T, b []byte, at uint64) {
		const volume = 700 * RegionBytes
		table, err := openRegions(fileOf(t, b, regionsFileSize(volume)), volume, wal.LSN(at))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, make([]byte, regionsFileSize(volume))...)
		for r := range regionCount(volume) {
			word, l := binary.LittleEndian.Uint64(b[r*8:]), table.get(r)
			if encodeRegion(r, l) != word && l != wal.LSN(at) {
				t.Fatalf("region %d of entry %x changed with record %d", r, word, l)
			}
		}
	})
}

// FuzzRegionImage: an image that is valid has, for each block that it has, data that the sum is of.
func FuzzRegionImage(f *testing.F) {
	block := make([]byte, BlockSize)
	f.Add(uint16(3), binary.LittleEndian.AppendUint32([]byte{0, 0}, wal.BlockSum(3*RegionBlocks, block)), block)
	f.Add(uint16(0), make([]byte, 40), []byte{})
	f.Fuzz(func(t *testing.T, region uint16, sums, data []byte) {
		img := RegionImage{Data: data}
		for ; len(sums) >= 6; sums = sums[6:] {
			img.Blocks = append(img.Blocks, RegionBlock{Index: uint16(sums[0]), Lost: sums[1] == 1, Sum: binary.LittleEndian.Uint32(sums[2:])})
		}
		if img.Validate(int(region)) != nil {
			return
		}
		for _, b := range img.Blocks {
			if b.HasData() {
				if wal.BlockSum(uint64(region)*RegionBlocks+uint64(b.Index), data[:BlockSize]) != b.Sum {
					t.Fatalf("block %d does not match", b.Index)
				}
				data = data[BlockSize:]
			}
		}
		if len(data) > 0 {
			t.Fatalf("%d bytes too many", len(data))
		}
	})
}

// FuzzEpochs: whatever two logs say of their epochs, the common point lies in both, and both agree on the epoch there.
func FuzzEpochs(f *testing.F) {
	f.Add([]byte{1, 1, 3, 5}, []byte{1, 1, 4, 6}, uint8(9), uint8(9))
	f.Add([]byte{}, []byte{0, 0}, uint8(0), uint8(255))
	f.Fuzz(func(t *testing.T, a, b []byte, aEnd, bEnd uint8) {
		index := func(b []byte) (x EpochIndex) {
			for ; len(b) >= 2; b = b[2:] {
				x = append(x, EpochStart{wal.Epoch(b[0]), wal.LSN(b[1])})
			}
			return x
		}
		x, y := index(a), index(b)
		if !x.valid() || !y.valid() {
			return // decodeMeta and the wire refuse it
		}
		l, ok := CommonPoint(x, wal.LSN(aEnd), y, wal.LSN(bEnd))
		m, again := CommonPoint(y, wal.LSN(bEnd), x, wal.LSN(aEnd))
		if l != m || ok != again {
			t.Fatalf("%d %v, the other way round %d %v", l, ok, m, again)
		}
		if l > wal.LSN(min(aEnd, bEnd)) {
			t.Fatalf("%d is beyond an end", l)
		}
		if e, _ := x.At(l); ok && l > 0 {
			if g, _ := y.At(l); e != g {
				t.Fatalf("epochs %d and %d at %d", e, g, l)
			}
		}
	})
}

// FuzzSessions: a table from the wire is refused, or is one that goes through encoding unchanged.
func FuzzSessions(f *testing.F) {
	f.Add([]byte{})
	f.Add(goldenFile(f, sessionsName, sessionsSlotBytes+200)[sessionsSlotBytes+sessionsHead : sessionsSlotBytes+sessionsHead+sessionHead+8])
	f.Fuzz(func(t *testing.T, b []byte) {
		var table, again sessionTable
		if table.merge(b) != nil {
			return
		}
		if err := again.merge(table.encode(nil)); err != nil {
			t.Fatal(err)
		}
		if len(again.all) != len(table.all) {
			t.Fatalf("%d sessions, then %d", len(table.all), len(again.all))
		}
		for id, s := range table.all {
			if g := again.all[id]; g == nil || g.Generation != s.Generation {
				t.Fatalf("session %x is %+v, then %+v", id, s, g)
			}
		}
	})
}

// FuzzSessionsFile: a slot of any content is taken or not, and harms nobody.
func FuzzSessionsFile(f *testing.F) {
	f.Add(goldenFile(f, sessionsName, sessionsSlotBytes+200)[sessionsSlotBytes:])
	f.Add([]byte("LKSESS\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var table sessionTable
		s := sessionsFile{f: fileOf(t, b, 2*sessionsSlotBytes)}
		if err := s.load(&table, 0); err != nil {
			var damaged *DamagedError
			if !errors.As(err, &damaged) {
				t.Fatal(err)
			}
		}
	})
}

// dice are rolled by the fuzzer: 16 bits of each number are its choice, those that decide; no two numbers are the same, as
// package rand rolls again where it does not like one.
type dice struct {
	b []byte
	n uint64
}

func (d *dice) Uint64() uint64 {
	d.n += fibonacci
	if len(d.b) < 2 {
		d.b = nil
		return d.n
	}
	v := uint64(binary.LittleEndian.Uint16(d.b))
	d.b = d.b[2:]
	return v<<48 | d.n>>16
}

// FuzzStore plays the model test with the fuzzer's dice: whatever is done to a store, and whenever the machine crashes, it
// is the model.
func FuzzStore(f *testing.F) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 3))
		b := make([]byte, 1500)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &dice{b: b[:min(len(b), 4000)]}
		m := &modeller{rig: newRig(t, memfs.New(), "data/replica", StoreOptions{Manual: true}), rnd: rand.New(d)}
		m.fs = m.rig.fs.(*memfs.FS)
		for len(d.b) > 0 {
			m.step()
		}
		m.verify()
		m.check(m.s.Close())
	})
}
