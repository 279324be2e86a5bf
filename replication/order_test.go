package replication

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal/vfs/memfs"
)

// openVolume makes a volume with one copy and attaches to it.
func openVolume(t *testing.T, size uint64) (*Replica, blockdev.Session, *counter) {
	t.Helper()
	c := startCluster(t, 1)
	if _, err := c.c.CreateVolume(context.Background(), viewsvc.Volume{Name: "vol0", Size: size, Copies: 1, MinCopies: 1, Sync: viewsvc.SyncAlways}); err != nil {
		t.Fatal(err)
	}
	v := c.safe("vol0", 1)
	r := c.nodes["n1"].replicaOf(v.Volume.ID)
	k := &counter{done: make(chan *blockdev.Request, 4096)}
	s, err := r.Attach(context.Background(), blockdev.SessionID{}, k)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return r, s, k
}

// counter is a client that takes note of what is completed.
type counter struct{ done chan *blockdev.Request }

func (k *counter) Complete(done []*blockdev.Request) {
	for _, q := range done {
		k.done <- q
	}
}

func (k *counter) Abort(error) {}

// all submits a burst and waits for all of it.
func (k *counter) all(t *testing.T, s blockdev.Session, burst ...*blockdev.Request) {
	t.Helper()
	s.Submit(burst)
	for range burst {
		if q := <-k.done; q.Err != nil {
			t.Fatalf("%v of %d bytes at %d: %v", q.Op, q.Length, q.Offset, q.Err)
		}
	}
}

func write(off uint64, data []byte) *blockdev.Request {
	return &blockdev.Request{Op: blockdev.OpWrite, Offset: off, Length: uint32(len(data)), Data: data}
}

// A part of a block takes a whole block in the frame. A batch is bounded by what it takes there, not by the lengths of
// its requests.
func TestSmallWritesBesideAHugeOneFitIntoFrames(t *testing.T) {
	_, s, k := openVolume(t, 64<<20)
	huge := make([]byte, blockdev.MaxRequestBytes-2*blockdev.BlockSize)
	for range 3 {
		var burst []*blockdev.Request
		for i := range uint64(200) {
			burst = append(burst, write(40<<20+i*blockdev.BlockSize+5, []byte("hello")))
		}
		k.all(t, s, append(burst, write(0, huge))...)
	}
}

// A trimmed range reads as zeroes to its last byte, also where it covers a part of a block, and nothing else does.
func TestTrimmedRangeReadsAsZeroes(t *testing.T) {
	_, s, k := openVolume(t, 1<<20)
	const size = 8 * blockdev.BlockSize
	for _, trim := range [][2]uint64{{0, size}, {1, size - 2}, {5000, 100}, {4000, 200}, {4095, 4098}, {8192, 4096}} {
		k.all(t, s, write(0, bytes.Repeat([]byte{0xaa}, size)))
		k.all(t, s, &blockdev.Request{Op: blockdev.OpTrim, Offset: trim[0], Length: uint32(trim[1])})
		got := &blockdev.Request{Op: blockdev.OpRead, Length: size, Data: make([]byte, size)}
		k.all(t, s, got)
		want := bytes.Repeat([]byte{0xaa}, size)
		clear(want[trim[0] : trim[0]+trim[1]])
		if !bytes.Equal(got.Data, want) {
			t.Errorf("after a trim of %d bytes at %d the disk is not as it should be", trim[1], trim[0])
		}
	}
}

// A log with segments smaller than a batch may be gets smaller batches, and a write in parts. Seen to fail (to panic) with
// batches that do not ask the log.
func TestFramesFitIntoSmallSegments(t *testing.T) {
	const size = 8 << 20
	bubble(t, 2, groupOptions{size: size, logBytes: 1 << 20, segBytes: minFrameBytes}, func(g *group, _ *memNet) {
		c := g.attachTo(g.open(2))
		want := make([]byte, size)
		var burst []*blockdev.Request
		add := func(off uint64, n int) {
			data := bytes.Repeat([]byte{byte(len(burst) + 1)}, n)
			copy(want[off:], data)
			burst = append(burst, write(off, data))
		}
		for i := range uint64(200) {
			add(i*16<<10, 16<<10)
		}
		for i := range uint64(500) {
			add(4<<20+i*2*blockdev.BlockSize-1, 2) // each takes two blocks
		}
		add(1<<20, 3<<20)
		add(1<<20+5, 3<<20)
		c.all(t, c.s, burst...)
		got := &blockdev.Request{Op: blockdev.OpRead, Length: size, Data: make([]byte, size)}
		c.all(t, c.s, got)
		if !bytes.Equal(got.Data, want) {
			t.Error("the disk has something else")
		}
	})
}

func TestSegmentsThatHoldNoBatchAreRefused(t *testing.T) {
	disk := memfs.New()
	o := blockdev.FormatOptions{LogBytes: 1 << 20, SegmentBytes: minFrameBytes / 2,
		Identity: blockdev.Identity{Cluster: groupCluster, Volume: "v", Replica: "a", Size: 1 << 20}}
	if err := blockdev.Format(disk, "vol", o); err != nil {
		t.Fatal(err)
	}
	st, err := blockdev.OpenStore(blockdev.StoreOptions{FS: disk, Dir: "vol", Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Abandon()
	if _, err := OpenReplica(ReplicaOptions{Store: st, Volume: viewsvc.Volume{ID: "v"}}); err == nil || !strings.Contains(err.Error(), "larger log") {
		t.Errorf("opened: %v", err)
	}
}
