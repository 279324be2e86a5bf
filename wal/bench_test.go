package wal

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"lockstep/wal/vfs"
)

var benchDir = os.Getenv("LOCKSTEP_BENCH_DIR") // a directory on the disk to measure; default: the temporary one

// BenchmarkAppendSync is a durable append, beside the bare pwrite and fdatasync of as many bytes to a file that was
// written before: what the log costs is the difference.
func BenchmarkAppendSync(b *testing.B) {
	for _, blocks := range []int{1, 32} {
		b.Run(fmt.Sprintf("bare/%dKiB", blocks*4), func(b *testing.B) { benchBare(b, blocks) })
		b.Run(fmt.Sprintf("log/%dKiB", blocks*4), func(b *testing.B) { benchLog(b, blocks, true) })
	}
}

// BenchmarkAppend is the same without the sync.
func BenchmarkAppend(b *testing.B) {
	for _, blocks := range []int{1, 32} {
		b.Run(fmt.Sprintf("log/%dKiB", blocks*4), func(b *testing.B) { benchLog(b, blocks, false) })
	}
}

func benchOptions(b *testing.B) Options {
	dir := b.TempDir()
	if benchDir != "" {
		dir = must1(os.MkdirTemp(benchDir, "wal"))(b)
		b.Cleanup(func() { os.RemoveAll(dir) })
	}
	return Options{FS: vfs.OS{}, Dir: filepath.Join(dir, "wal"), SegmentBytes: 16 << 20, Segments: 4, Salt: testSalt}
}

func benchLog(b *testing.B, blocks int, sync bool) {
	o := benchOptions(b)
	must(b, Create(o))
	l, _, _ := opened(b, o, Start{})
	defer l.Close()
	data := payload(1, blocks)
	sums := sumsOf(1, data)
	var builder Builder
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		builder.Reset()
		builder.Add(Record{Kind: KindWrite, Block: 1, Count: uint32(blocks)}, data, sums)
		f := builder.Seal(Header{Salt: testSalt, First: l.End() + 1, Chain: l.EndSum()})
		_, err := l.Append(f)
		if err == ErrFull {
			must1(l.Sync())(b)
			l.Checkpointed(must1(l.StartAfter(l.End()))(b))
			_, err = l.Append(f)
		}
		if err == nil && sync {
			_, err = l.Sync()
		}
		must(b, err)
	}
}

func benchBare(b *testing.B, blocks int) {
	o := benchOptions(b)
	must(b, Create(o))
	f := must1(o.FS.Open(filepath.Join(o.Dir, segmentName(0))))(b)
	defer f.Close()
	buf := AlignedBuffer((blocks + 1) * BlockSize) // as large as the frame
	copy(buf, payload(1, blocks))
	b.SetBytes(int64(blocks * BlockSize))
	off := int64(0)
	for b.Loop() {
		if off+int64(len(buf)) > o.SegmentBytes {
			off = 0
		}
		must1(f.WriteAt(buf, off))(b)
		must(b, f.Sync())
		off += int64(len(buf))
	}
}

func BenchmarkParseFrame(b *testing.B) {
	for _, blocks := range []int{1, 32, MaxFrameBlocks} {
		b.Run(fmt.Sprintf("%dKiB", blocks*4), func(b *testing.B) {
			data := payload(1, blocks)
			var builder Builder
			builder.Add(Record{Kind: KindWrite, Count: uint32(blocks)}, data, sumsOf(0, data))
			f := builder.Seal(Header{First: 1})
			b.SetBytes(int64(len(f.Bytes())))
			b.ReportAllocs()
			for b.Loop() {
				must1(ParseFrame(f.Bytes()))(b)
			}
		})
	}
}

func BenchmarkBlockSum(b *testing.B) {
	data := payload(1, 1)
	b.SetBytes(BlockSize)
	for b.Loop() {
		BlockSum(1, data)
	}
}
