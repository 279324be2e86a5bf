package wal

import (
	"lockstep/wal/vfs"
	"testing"
)

func TestSmoke(t *testing.T) {
	o := Options{FS: vfs.OS{}, Dir: t.TempDir() + "/wal", SegmentBytes: 16 * BlockSize, Segments: 4, Salt: 7}
	if err := Create(o); err != nil {
		t.Fatal(err)
	}
	l, r, err := Open(o, Start{}, RefuseCorruption, func(Frame, Pos) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r)
	var b Builder
	data := AlignedBuffer(2 * BlockSize)
	for i := range 100 {
		b.Reset()
		data[0] = byte(i)
		b.Add(Record{Kind: KindWrite, Block: 3, Count: 2}, data, []uint32{BlockSum(3, data[:4096]), BlockSum(4, data[4096:])})
		f := b.Seal(Header{Salt: 7, First: l.End() + 1, Chain: l.EndSum(), Commit: l.Durable(), Stable: l.Durable()})
		if _, err := ParseFrame(f.Bytes()); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(f); err != nil {
			t.Fatal(i, err)
		}
		if _, err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		if i%7 == 6 {
			s, err := l.StartAfter(l.End() - 3)
			if err != nil {
				t.Fatal(err)
			}
			l.Checkpointed(s)
		}
	}
	s, _ := l.StartAfter(97)
	l.Close()
	n := 0
	l, r, err = Open(o, s, RefuseCorruption, func(f Frame, p Pos) error { n++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if n != 3 || r.End != 100 || r.Torn {
		t.Fatal(n, r)
	}
	if err := l.Cut(98); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l, r, err = Open(o, s, RefuseCorruption, func(f Frame, p Pos) error { n++; return nil })
	if err != nil || r.End != 98 || r.Torn {
		t.Fatal(err, r)
	}
}
