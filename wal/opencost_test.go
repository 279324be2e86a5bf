package wal

import (
	"fmt"
	"runtime"
	"testing"

	"lockstep/wal/vfs/memfs"
)

// fullLog makes a log and fills it with frames of eight single writes, all durable.
func fullLog(t testing.TB, o Options) (frames int) {
	must(t, Create(o))
	l, _, _ := opened(t, o, Start{})
	defer l.Close()
	data := payload(1, 1)
	sums := sumsOf(1, data)
	var b Builder
	for {
		b.Reset()
		for range 8 {
			b.Add(Record{Kind: KindWrite, Block: 1, Count: 1}, data, sums)
		}
		_, err := l.Append(b.Seal(Header{Salt: testSalt, First: l.End() + 1, Chain: l.EndSum()}))
		if err == ErrFull {
			must1(l.Sync())(t)
			return frames
		}
		must(t, err)
		frames++
	}
}

// Recovery reads a full log once, and allocates nothing for a frame.
func TestRecoveryReadsTheLogOnceWithoutGarbage(t *testing.T) {
	m := memfs.New()
	o := Options{FS: m, Dir: "wal", SegmentBytes: 1 << 20, Segments: 12, Salt: testSalt}
	frames := fullLog(t, o)
	read := int64(0)
	m.Inject(func(op memfs.Op) memfs.Effect {
		if op.Kind == "read" {
			read += op.Len
		}
		return memfs.Effect{}
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	l, r, err := Open(o, Start{}, func(Frame, Pos) error { return nil })
	runtime.ReadMemStats(&after)
	must(t, err)
	defer l.Close()
	if r.Frames != frames {
		t.Fatalf("%d frames of %d", r.Frames, frames)
	}
	// A frame that a read ends inside is read again from its beginning; memfs allocates an error here and there.
	if limit := o.Bytes() * 11 / 10; read < o.Bytes()*9/10 || read > limit {
		t.Errorf("%d bytes were read of a log of %d", read, o.Bytes())
	}
	if n := after.Mallocs - before.Mallocs; n > uint64(frames)/2+200 {
		t.Errorf("%d allocations for %d frames", n, frames)
	}
}

// Recovery of a full log, from the disk: Open drops it from the page cache first (W6).
func BenchmarkRecover(b *testing.B) {
	for _, segments := range []int{4, 16} {
		b.Run(fmt.Sprintf("%dMiB", segments*16), func(b *testing.B) {
			o := benchOptions(b)
			o.Segments = segments
			fullLog(b, o)
			b.SetBytes(o.Bytes())
			b.ReportAllocs()
			for b.Loop() {
				l, _, err := Open(o, Start{}, func(Frame, Pos) error { return nil })
				must(b, err)
				must(b, l.Close())
			}
		})
	}
}
