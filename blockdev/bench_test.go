package blockdev

import (
	"fmt"
	"math/rand/v2"
	"path"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs"
	"lockstep/wal/vfs/memfs"
)

func newMemSums(t testing.TB, volume uint64) vfs.File {
	f, err := memfs.New().Create("data.crc")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(sumsFileSize(volume)); err != nil {
		t.Fatal(err)
	}
	return f
}

// benchStore is a store on a real directory with a log of production size.
func benchStore(b testing.TB, size uint64, manual bool) *Store {
	dir := path.Join(b.TempDir(), "r")
	id := testIdentity()
	id.Size = size
	o := FormatOptions{Identity: id, LogBytes: 4 * DefaultSegmentBytes}
	if err := Format(vfs.OS{}, dir, o); err != nil {
		b.Fatal(err)
	}
	s, err := OpenStore(StoreOptions{FS: vfs.OS{}, Dir: dir, Manual: manual})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Abandon() })
	return s
}

// frameOf builds a frame of so many writes of count blocks each.
func frameOf(s *Store, b *wal.Builder, writes int, count uint64, block func() uint64, data []byte, sums []uint32) wal.Frame {
	b.Reset()
	for range writes {
		at := block()
		for k := range count {
			sums[k] = wal.BlockSum(at+k, data[k*BlockSize:(k+1)*BlockSize])
		}
		b.Add(wal.Record{Kind: wal.KindWrite, Block: at, Count: uint32(count)}, data[:count*BlockSize], sums[:count])
	}
	m := s.Marks()
	return b.Seal(wal.Header{Salt: s.Salt(), Epoch: 1, First: m.End + 1, Chain: s.EndSum(), Commit: m.Committed, Stable: m.Committed})
}

func put(tb testing.TB, s *Store, f wal.Frame) {
	for s.Append(f) != nil {
		if err := s.Sync(); err != nil {
			tb.Fatal(err)
		}
		if err := s.Checkpoint(); err != nil {
			tb.Fatal(err)
		}
	}
	s.Commit(f.Last())
}

func fill(tb testing.TB, s *Store, n uint64) {
	var b wal.Builder
	data, sums := wal.AlignedBuffer(RegionBytes), make([]uint32, RegionBlocks)
	for at := uint64(0); at < n; at += RegionBlocks {
		put(tb, s, frameOf(s, &b, 1, RegionBlocks, func() uint64 { return at }, data, sums))
	}
}

func BenchmarkRead(b *testing.B) {
	const blocks = 1 << 14
	for _, from := range []string{"image", "log"} {
		s := benchStore(b, blocks*BlockSize, true)
		fill(b, s, blocks)
		if from == "image" {
			if err := s.Checkpoint(); err != nil {
				b.Fatal(err)
			}
		}
		for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dK", from, size>>10), func(b *testing.B) {
				dst := wal.AlignedBuffer(size)
				n := uint64(size / BlockSize)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				rnd := rand.New(rand.NewPCG(1, 1))
				for b.Loop() {
					if err := s.Read(rnd.Uint64N(blocks/n)*n, dst); err != nil {
						b.Fatal(err)
					}
				}
			})
			if size > MaxCachedRead {
				continue
			}
			b.Run(fmt.Sprintf("%s/%dK/cached", from, size>>10), func(b *testing.B) {
				dst := wal.AlignedBuffer(size)
				n := uint64(size / BlockSize)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				rnd := rand.New(rand.NewPCG(1, 1))
				for b.Loop() {
					if !s.ReadCached(rnd.Uint64N(blocks/n)*n, dst) {
						b.Fatal("not in memory")
					}
				}
			})
		}
	}
}

// Appending to the page cache and committing, without syncs: what the hot path costs the processor. 32 writes of
// 4 KiB are a frame.
func BenchmarkAppendCommit(b *testing.B) {
	const blocks = 1 << 18
	s := benchStore(b, blocks*BlockSize, true)
	var builder wal.Builder
	data, sums := wal.AlignedBuffer(BlockSize), make([]uint32, 1)
	rnd := rand.New(rand.NewPCG(1, 1))
	b.SetBytes(32 * BlockSize)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		f := frameOf(s, &builder, 32, 1, func() uint64 { return rnd.Uint64N(blocks) }, data, sums)
		b.StartTimer()
		if err := s.Append(f); err != nil {
			b.StopTimer()
			put(b, s, f)
			b.StartTimer()
			continue
		}
		s.Commit(f.Last())
	}
}

// Random 4 KiB writes over 256 MiB from the log into the image; an operation is a block. The device sets the pace where
// it is slower than the page cache.
func BenchmarkApply(b *testing.B) {
	const blocks = 1 << 16
	s := benchStore(b, blocks*BlockSize, true)
	fill(b, s, blocks)
	var builder wal.Builder
	data, sums := wal.AlignedBuffer(BlockSize), make([]uint32, 1)
	rnd := rand.New(rand.NewPCG(1, 1))
	b.ResetTimer()
	for n := 0; n < b.N; {
		b.StopTimer()
		if err := s.Checkpoint(); err != nil {
			b.Fatal(err)
		}
		for s.RoomFor(40 * BlockSize) {
			f := frameOf(s, &builder, 32, 1, func() uint64 { return rnd.Uint64N(blocks) }, data, sums)
			put(b, s, f)
			n += 32
			if n >= b.N {
				break
			}
		}
		if err := s.Sync(); err != nil {
			b.Fatal(err)
		}
		if err := s.recordCommit(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for did := true; did; {
			var err error
			if did, err = s.applyBatch(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkPageTable(b *testing.B) {
	const entries = 1 << 15
	var t pageTable
	rnd := rand.New(rand.NewPCG(1, 1))
	blocks := make([]uint64, entries)
	for i := range blocks {
		blocks[i] = rnd.Uint64N(1 << 20)
	}
	b.Run("set", func(b *testing.B) {
		i := 0
		for b.Loop() {
			t.set(blocks[i%entries], loc{wal.Pos(i + 1), 1})
			i++
		}
	})
	b.Run("lookup", func(b *testing.B) {
		i := 0
		var l [1]loc
		for b.Loop() {
			t.lookup(blocks[i%entries], l[:])
			i++
		}
	})
}

func TestDataPathsDoNotAllocate(t *testing.T) {
	s := benchStore(t, 64<<20, true)
	fill(t, s, 4*RegionBlocks)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	fill(t, s, RegionBlocks)
	dst := wal.AlignedBuffer(2 * RegionBytes)
	var b wal.Builder
	data, sums := wal.AlignedBuffer(BlockSize), make([]uint32, 1)
	next := uint64(0)
	put := func() {
		f := frameOf(s, &b, 4, 1, func() uint64 { next++; return next % 512 }, data, sums)
		if err := s.Append(f); err != nil {
			t.Fatal(err)
		}
		s.Commit(f.Last())
	}
	for range 5000 {
		put() // rings and tables grow to what they need
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(){
		"read 4 KiB from the log":   func() { s.Read(3, dst[:BlockSize]) },
		"read 4 KiB from the image": func() { s.Read(700, dst[:BlockSize]) },
		"read 2 MiB":                func() { s.Read(0, dst) },
		"read newest":               func() { s.ReadNewest(3, dst[:BlockSize]) },
		"append and commit":         put,
		"sync": func() {
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
