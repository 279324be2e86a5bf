package blockdev

import (
	"bytes"
	"testing"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

func TestCommittedWritesAreReadBackAfterReopen(t *testing.T) {
	dir := t.TempDir() + "/r"
	fsys := vfs.OS{}
	if err := Format(fsys, dir, FormatOptions{Identity: Identity{Cluster: "c", Volume: "v", Replica: "r", Size: 64 << 20}, LogBytes: 4 << 20, SegmentBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	open := func() *Store {
		s, err := OpenStore(StoreOptions{FS: fsys, Dir: dir, OnEvent: func(e Event) { t.Logf("%T %+v", e, e) }})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	var b wal.Builder
	data := wal.AlignedBuffer(3 * BlockSize)
	for i := range 100 {
		b.Reset()
		for j := range data {
			data[j] = byte(i)
		}
		sums := []uint32{}
		for k := range 3 {
			sums = append(sums, wal.BlockSum(uint64(i*2+k), data[:BlockSize]))
		}
		b.Add(wal.Record{Kind: wal.KindWrite, Block: uint64(i * 2), Count: 3}, data, sums)
		m := s.Marks()
		f := b.Seal(wal.Header{Salt: s.Salt(), Epoch: 1, First: m.End + 1, Chain: s.EndSum(), Commit: m.Committed, Stable: m.Durable})
		if err := s.Append(f); err != nil {
			t.Fatal(err)
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		s.Commit(f.Last())
	}
	check := func() {
		got := make([]byte, 210*BlockSize)
		if err := s.Read(0, got); err != nil {
			t.Fatal(err)
		}
		for i := range 210 {
			want := byte(min(i/2, 99))
			if i > 200 {
				want = 0
			}
			if !bytes.Equal(got[i*BlockSize:(i+1)*BlockSize], bytes.Repeat([]byte{want}, BlockSize)) {
				t.Fatalf("block %d is %d, want %d", i, got[i*BlockSize], want)
			}
		}
	}
	check()
	t.Logf("%+v", s.Marks())
	if err := s.Abandon(); err != nil {
		t.Fatal(err)
	}
	s = open()
	t.Logf("%+v", s.Marks())
	s.Commit(100)
	check()
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	check()
	t.Logf("%+v", s.Marks())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	check()
	s.Close()
}
