package wal

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"lockstep/wal/vfs/memfs"
)

const testSalt = 0x5a17

// smallLog is a log of 4 segments of 8 blocks.
func smallLog(fs *memfs.FS) Options {
	return Options{FS: fs, Dir: "/v/wal", SegmentBytes: 8 * BlockSize, Segments: 4, Salt: testSalt}
}

// created gives a stable, empty log in memory.
func created(t testing.TB) (*memfs.FS, Options) {
	t.Helper()
	fs := memfs.New()
	must(t, fs.MkdirAll("/v"))
	must(t, fs.SyncDir("/"))
	o := smallLog(fs)
	must(t, Create(o))
	return fs, o
}

// on gives the same options for another file system.
func (o Options) on(fs *memfs.FS) Options {
	o.FS = fs
	return o
}

// opened opens a log and collects its frames.
func opened(t testing.TB, o Options, s Start) (*Log, Recovery, [][]byte) {
	t.Helper()
	l, r, frames, err := open(o, s)
	must(t, err)
	return l, r, frames
}

func open(o Options, s Start) (*Log, Recovery, [][]byte, error) {
	var frames [][]byte
	l, r, err := Open(o, s, func(f Frame, _ Pos) error {
		frames = append(frames, slices.Clone(f.Bytes()))
		return nil
	})
	return l, r, frames, err
}

// payload is blocks of content that tells them apart.
func payload(seed uint64, blocks int) []byte {
	data := AlignedBuffer(blocks * BlockSize)
	for i := 0; i < len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], (seed*0x9e3779b97f4a7c15+uint64(i))|1)
	}
	return data
}

func sumsOf(block uint64, data []byte) []uint32 {
	var sums []uint32
	for i := 0; i < len(data); i += BlockSize {
		sums = append(sums, BlockSum(block+uint64(i/BlockSize), data[i:i+BlockSize]))
	}
	return sums
}

// nextFrame makes the frame that follows a log's end, with one write of so many blocks, or a view record if 0, and so
// many view records behind. Its memory is its own.
func nextFrame(l *Log, seed uint64, blocks, views int) Frame {
	var b Builder
	if blocks > 0 {
		data := payload(seed, blocks)
		b.Add(Record{Kind: KindWrite, Block: seed % 100, Count: uint32(blocks), Session: 1, Seq: seed}, data, sumsOf(seed%100, data))
	}
	for range max(views, 1-blocks) {
		b.Add(Record{Kind: KindView, Block: seed}, nil, nil)
	}
	return b.Seal(Header{
		Salt: l.o.Salt, Epoch: 1, Incarnation: seed, First: l.End() + 1, Chain: l.EndSum(),
		Commit: l.Durable(), Stable: l.Durable(), Time: int64(seed),
	})
}

// grow appends n frames of one block, each synced, and gives them.
func grow(t testing.TB, l *Log, n int) (frames [][]byte) {
	t.Helper()
	for range n {
		f := nextFrame(l, uint64(l.End())+1, 1, 0)
		must1(l.Append(f))(t)
		must1(l.Sync())(t)
		frames = append(frames, f.Bytes())
	}
	return frames
}

func sameFrames(a, b [][]byte) bool {
	return slices.EqualFunc(a, b, bytes.Equal)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must1[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T { t.Helper(); must(t, err); return v }
}

// FrameEnd is the last record of the frame that holds x; the log's last one if x is beyond the end.
func (l *Log) FrameEnd(x LSN) (LSN, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch i := l.index.find(x); {
	case x >= l.end || i+1 == l.index.n:
		return l.end, nil
	case i < 0:
		return 0, ErrCompacted
	default:
		return l.index.at(i+1).first - 1, nil
	}
}
