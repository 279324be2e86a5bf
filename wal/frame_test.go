package wal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"math"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldenFrame has every kind of record and a value in every field.
func goldenFrame() Frame {
	var b Builder
	one, two := words("one"), append(words("two"), words("three")...)
	b.Add(Record{Kind: KindWrite, Block: 7, Count: 1, Session: 0x1111, Seq: 0x2222}, one, sumsOf(7, one))
	b.Add(Record{Kind: KindZero, Flags: RecordNoHole, Block: 1 << 40, Count: math.MaxUint32}, nil, nil)
	b.Add(Record{Kind: KindTrim, Block: 9, Count: 3, Session: 5}, nil, nil)
	b.Add(Record{Kind: KindWrite, Block: 0, Count: 2, Seq: 6}, two, sumsOf(0, two))
	b.Add(Record{Kind: KindView, Block: 1, Session: 2, Seq: 3}, nil, nil)
	b.Add(Record{Kind: KindAttach, Session: math.MaxUint64}, nil, nil)
	return b.Seal(Header{
		Salt: 0x0102030405060708, Epoch: 9, Incarnation: 10, First: 11, Commit: 8, Stable: 6,
		Chain: 0xdeadbeef, Flags: FlagSync, Time: 1700000000000000001,
	})
}

// words is a block that is short in a dump.
func words(s string) []byte {
	b := make([]byte, BlockSize)
	copy(b, s)
	copy(b[BlockSize-len(s):], s)
	return b
}

// dump writes bytes as text, without the lines of zeroes; undump reads it back.
func dump(b []byte) string {
	var s strings.Builder
	for _, line := range strings.SplitAfter(hex.Dump(b), "\n") {
		if !strings.Contains(line, "00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00") {
			s.WriteString(line)
		}
	}
	return s.String()
}

func undump(t *testing.T, text string, size int) []byte {
	b := make([]byte, size)
	for line := range strings.Lines(text) {
		off := must1(hex.DecodeString(line[:8]))(t)
		data := must1(hex.DecodeString(strings.ReplaceAll(line[10:59], " ", "")))(t)
		copy(b[int(off[2])<<8|int(off[3]):], data)
	}
	return b
}

// TestFormatVersion1IsWhatItEverWas keeps the bytes that are on people's disks readable.
func TestFormatVersion1IsWhatItEverWas(t *testing.T) {
	const name, size = "testdata/frame-v1.txt", 4 * BlockSize
	want := goldenFrame()
	if *update {
		must(t, os.WriteFile(name, []byte(dump(want.Bytes())), 0o644))
	}
	text := string(must1(os.ReadFile(name))(t))
	if got := dump(want.Bytes()); got != text {
		t.Errorf("the bytes of a frame have changed:\n%s", got)
	}
	f, err := ParseFrame(undump(t, text, size))
	must(t, err)
	h := Header{
		Salt: 0x0102030405060708, Epoch: 9, Incarnation: 10, First: 11, Records: 6, Payload: 3, Commit: 8, Stable: 6,
		Chain: 0xdeadbeef, Flags: FlagSync, Time: 1700000000000000001,
	}
	if f.Header() != h || f.First() != 11 || f.Last() != 16 {
		t.Errorf("header %+v", f.Header())
	}
	r, data, sums := f.Record(3)
	if want := (Record{Kind: KindWrite, Count: 2, Seq: 6}); r != want {
		t.Errorf("record %+v, want %+v", r, want)
	}
	if !bytes.Equal(data, append(words("two"), words("three")...)) || sums.Len() != 2 || sums.At(1) != BlockSum(1, data[BlockSize:]) {
		t.Errorf("payload or sums of record 3 differ")
	}
	if r, data, _ := f.Record(1); r.Kind != KindZero || r.Flags != RecordNoHole || r.Block != 1<<40 || r.Count != math.MaxUint32 || data != nil {
		t.Errorf("record 1 is %+v", r)
	}
	if got := f.DataPos(100, 3); got != 102 {
		t.Errorf("payload of record 3 is at %d, want 102: header block, one block of record 0", got)
	}
}

func TestBlockSumIsCRC32COfNumberAndData(t *testing.T) {
	data := payload(3, 1)
	for _, block := range []uint64{0, 1, 0x0123456789abcdef, math.MaxUint64} {
		var b [8]byte
		le.PutUint64(b[:], block)
		want := crc32.Checksum(append(b[:], data...), crc32.MakeTable(crc32.Castagnoli))
		if got := BlockSum(block, data); got != want {
			t.Errorf("BlockSum(%d) = %08x, want %08x", block, got, want)
		}
	}
}

// TestBlockSumLeavesTheLowestNumbersFree finds data whose crc is 0 by solving for the last four bytes.
func TestBlockSumLeavesTheLowestNumbersFree(t *testing.T) {
	data := make([]byte, BlockSize)
	// Running the crc backwards over four bytes: the bytes that lead from state s to state 0 are s itself
	// read through the reversed table.
	state := ^crc32.Update(^stateOfNumber(5), castagnoli, data[:BlockSize-4])
	target := uint32(0xffffffff) // the state whose inverse is 0
	for i := 3; i >= 0; i-- {
		for k, v := range castagnoli {
			if v>>24 == target>>24 {
				target = (target^v)<<8 | uint32(k)
				break
			}
		}
	}
	le.PutUint32(data[BlockSize-4:], state^target)
	if got := crc32.Update(^stateOfNumber(5), castagnoli, data); got != 0 {
		t.Fatalf("the test's data has crc %08x, not 0", got)
	}
	if got := BlockSum(5, data); got != MinBlockSum {
		t.Errorf("BlockSum = %d, want %d", got, MinBlockSum)
	}
}

func stateOfNumber(block uint64) uint32 {
	var b [8]byte
	le.PutUint64(b[:], block)
	return ^crc32.Checksum(b[:], castagnoli)
}

func TestEveryFlippedBitOfAFrameIsFound(t *testing.T) {
	good := goldenFrame().Bytes()
	b := bytes.Clone(good)
	for i := range b {
		b[i] ^= 1 << (i % 8)
		if _, err := ParseFrame(b); err == nil {
			t.Fatalf("bit %d of byte %d", i%8, i)
		}
		b[i] = good[i]
	}
	for n := range len(b) {
		if _, err := ParseFrame(b[:n]); err == nil {
			t.Fatalf("%d bytes of %d pass for a frame", n, len(b))
		}
	}
	must1(ParseFrame(append(b, 1, 2, 3)))(t) // what follows does not matter
}

// TestFrameOfABrokenWriterIsRefused changes fields and makes the checksum right again.
func TestFrameOfABrokenWriterIsRefused(t *testing.T) {
	record := func(i, off int) int { return fixedBytes + i*recordBytes + off }
	for name, change := range map[string]func(b []byte){
		"first 0":               func(b []byte) { le.PutUint64(b[offFirst:], 0) },
		"first overflows":       func(b []byte) { le.PutUint64(b[offFirst:], math.MaxUint64-1) },
		"frame flag":            func(b []byte) { b[offFlags+1] = 0x80 },
		"reserved":              func(b []byte) { b[offReserved+15] = 1 },
		"record flag":           func(b []byte) { b[record(1, 31)] = 0x40 },
		"kind 0":                func(b []byte) { b[record(2, 30)] = 0 },
		"kind 6":                func(b []byte) { b[record(2, 30)] = 6 },
		"count 0":               func(b []byte) { le.PutUint32(b[record(2, 24):], 0) },
		"count beyond payload":  func(b []byte) { le.PutUint32(b[record(3, 24):], 3) },
		"count huge":            func(b []byte) { le.PutUint32(b[record(0, 24):], math.MaxUint32) },
		"block overflows":       func(b []byte) { le.PutUint64(b[record(1, 0):], math.MaxUint64/BlockSize-5) },
		"payload out of place":  func(b []byte) { le.PutUint16(b[record(3, 28):], 0) },
		"payload without owner": func(b []byte) { b[record(3, 30)] = byte(KindTrim) },
		"padding":               func(b []byte) { b[BlockSize-1] = 1 },
	} {
		b := bytes.Clone(goldenFrame().Bytes())
		change(b)
		le.PutUint32(b[offSum:], crc(b[offVersion:BlockSize]))
		var corrupt *CorruptError
		if _, err := ParseFrame(b); !errors.As(err, &corrupt) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(corrupt.Reason, "checksum") {
			t.Errorf("%s: found by %q only", name, corrupt.Reason)
		}
	}
}

func TestNewerFormatIsToldFromCorruption(t *testing.T) {
	b := bytes.Clone(goldenFrame().Bytes())
	le.PutUint16(b[offVersion:], 2)
	var corrupt *CorruptError
	if _, err := ParseFrame(b); !errors.As(err, &corrupt) {
		t.Errorf("a flipped version: %v", err)
	}
	le.PutUint32(b[offSum:], crc(b[offVersion:BlockSize]))
	var newer *VersionError
	if _, err := ParseFrame(b); !errors.As(err, &newer) || newer.Version != 2 {
		t.Errorf("a newer version: %v", err)
	}
}

func TestFrameSizeIsBoundedBeforeAnythingIsVerified(t *testing.T) {
	b := bytes.Clone(goldenFrame().Bytes()[:fixedBytes])
	if n, reason := frameSize(b); reason != "" || n != 4*BlockSize {
		t.Errorf("%d, %q", n, reason)
	}
	for _, c := range []struct {
		records, payload uint32
		ok               bool
	}{{0, 0, false}, {1, 0, true}, {MaxRecords, MaxFrameBlocks, true}, {MaxRecords + 1, 0, false}, {1, MaxFrameBlocks + 1, false}, {math.MaxUint32, math.MaxUint32, false}} {
		le.PutUint32(b[offRecords:], c.records)
		le.PutUint32(b[offPayload:], c.payload)
		n, reason := frameSize(b)
		if (reason == "") != c.ok || n > MaxFrameBytes || n%BlockSize != 0 {
			t.Errorf("%d records, %d blocks: %d, %q", c.records, c.payload, n, reason)
		}
	}
	if _, reason := frameSize(b[:fixedBytes-1]); reason == "" {
		t.Error("a short header has a size")
	}
}

func TestBuilderTakesTheLargestWriteAndThenNoMore(t *testing.T) {
	var b Builder
	data := payload(1, MaxFrameBlocks)
	if !b.Add(Record{Kind: KindWrite, Block: 1, Count: MaxFrameBlocks}, data, sumsOf(1, data)) {
		t.Fatal("the largest write does not fit")
	}
	if b.Add(Record{Kind: KindWrite, Block: 1, Count: 1}, data[:BlockSize], sumsOf(1, data[:BlockSize])) {
		t.Error("one block more fits")
	}
	for b.Records() < MaxRecords {
		if !b.Add(Record{Kind: KindTrim, Block: 1, Count: 1}, nil, nil) {
			t.Fatalf("record %d does not fit", b.Records())
		}
	}
	if b.Add(Record{Kind: KindView}, nil, nil) {
		t.Error("one record more fits")
	}
	f := b.Seal(Header{First: 1})
	if b.Size() != MaxFrameBytes || len(f.Bytes()) != MaxFrameBytes {
		t.Errorf("size %d and %d, want %d", b.Size(), len(f.Bytes()), MaxFrameBytes)
	}
	f = must1(ParseFrame(f.Bytes()))(t)
	if _, got, _ := f.Record(0); !bytes.Equal(got, data) {
		t.Error("the payload differs")
	}
}

func TestBuilderKeepsWhatWasAddedWhenItGrows(t *testing.T) {
	var b Builder
	for i := range uint64(600) {
		data := payload(i, 1)
		if !b.Add(Record{Kind: KindWrite, Block: i, Count: 1}, data, sumsOf(i, data)) {
			t.Fatal(i)
		}
	}
	f := must1(ParseFrame(b.Seal(Header{First: 1}).Bytes()))(t)
	for i := range 600 {
		if r, data, _ := f.Record(i); r.Block != uint64(i) || !bytes.Equal(data, payload(uint64(i), 1)) {
			t.Fatalf("record %d is %+v", i, r)
		}
	}
}

func TestBuilderLeavesNothingOfTheFrameBefore(t *testing.T) {
	var b Builder
	for range MaxRecords - 100 { // whose last header block is not empty
		b.Add(Record{Kind: KindView, Block: 1<<64 - 1, Session: 1<<64 - 1}, nil, nil)
	}
	b.Seal(Header{First: 1})
	b.Reset()
	b.Add(Record{Kind: KindView}, nil, nil)
	must1(ParseFrame(b.Seal(Header{First: 1}).Bytes()))(t)
}

func TestBuilderGivesALargeBufferBack(t *testing.T) {
	var b Builder
	data := payload(1, MaxFrameBlocks)
	b.Add(Record{Kind: KindWrite, Count: MaxFrameBlocks}, data, sumsOf(0, data))
	for range shrinkAfter + 1 {
		b.Reset()
		b.Add(Record{Kind: KindWrite, Count: 1}, data[:BlockSize], sumsOf(0, data[:BlockSize]))
	}
	b.Seal(Header{First: 1})
	if len(b.buf) > keepBytes {
		t.Errorf("%d bytes are kept after %d small frames", len(b.buf), shrinkAfter)
	}
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	var b Builder
	data := payload(1, 8)
	sums := sumsOf(0, data)
	build := func() Frame {
		b.Reset()
		for range 4 {
			b.Add(Record{Kind: KindWrite, Count: 8}, data, sums)
		}
		return b.Seal(Header{First: 1})
	}
	f := build()
	for name, run := range map[string]func(){
		"build": func() { build() },
		"parse": func() {
			if _, err := ParseFrame(f.Bytes()); err != nil {
				t.Error(err)
			}
		},
		"record":    func() { f.Record(3) },
		"BlockSum":  func() { BlockSum(1, data[:BlockSize]) },
		"frameSize": func() { frameSize(f.Bytes()) },
	} {
		if n := testing.AllocsPerRun(100, run); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzParseFrame(f *testing.F) {
	good := goldenFrame().Bytes()
	f.Add(good, false)
	f.Add(good[:BlockSize], true)
	f.Add(good[BlockSize:], false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		// Random bytes never have the right checksums: behind them lie the checks that matter.
		if n, reason := frameSize(b); fix && reason == "" && n <= len(b) {
			head := headBytes(int(le.Uint32(b[offRecords:])), int(le.Uint32(b[offPayload:])))
			le.PutUint16(b[offVersion:], formatVersion)
			le.PutUint32(b[offSum:], crc(b[offVersion:head]))
		}
		frame, err := ParseFrame(b)
		if err != nil {
			return
		}
		// What parses can be taken apart and put together to the same bytes.
		var again Builder
		for i := range frame.Records() {
			r, data, sums := frame.Record(i)
			var list []uint32
			for j := range sums.Len() {
				list = append(list, sums.At(j))
			}
			again.Add(r, data, list)
		}
		if !bytes.Equal(again.Seal(frame.Header()).Bytes(), frame.Bytes()) {
			t.Error("a frame is not what its parts make")
		}
	})
}
