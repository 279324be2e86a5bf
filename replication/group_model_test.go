package replication

import (
	"bytes"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// randomMutation is a request of any kind at any place, and what it does to the disk.
func randomMutation(rng *rand.Rand, disk []byte) *blockdev.Request {
	n := 1 + rng.IntN(3*blockdev.BlockSize)
	if rng.IntN(20) == 0 {
		n = 1 + rng.IntN(len(disk)/4)
	}
	off := rng.IntN(len(disk) - n + 1)
	if rng.IntN(3) == 0 {
		n = max(1, n/blockdev.BlockSize) * blockdev.BlockSize
		off = off / blockdev.BlockSize * blockdev.BlockSize
		n = min(n, len(disk)-off)
	}
	q := &blockdev.Request{Offset: uint64(off), Length: uint32(n)}
	switch rng.IntN(6) {
	case 0:
		q.Op = blockdev.OpTrim
	case 1:
		q.Op = blockdev.OpWriteZeroes
		if rng.IntN(2) == 0 {
			q.Flags = blockdev.FlagNoHole
		}
	default:
		q.Op, q.Data = blockdev.OpWrite, make([]byte, n)
		for i := range q.Data {
			q.Data[i] = byte(rng.Uint32())
		}
	}
	if rng.IntN(8) == 0 {
		q.Flags |= blockdev.FlagFUA
	}
	if q.Op == blockdev.OpWrite {
		copy(disk[off:], q.Data)
	} else {
		clear(disk[off : off+n])
	}
	return q
}

func TestAnyMixOfRequestsIsTheSameOnThreeReplicas(t *testing.T) {
	for _, mode := range []viewsvc.SyncMode{viewsvc.SyncAlways, viewsvc.SyncFlush} {
		t.Run(string(mode), func(t *testing.T) {
			g := newGroup(t, groupOptions{replicas: 3, size: 2 << 20, logBytes: 16 << 20, segBytes: 4 << 20, sync: mode})
			c, err := dialReplica(g.open(3), "", 0)
			if err != nil {
				t.Fatal(err)
			}
			defer c.s.Close()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			disk := make([]byte, 2<<20)
			got := make([]byte, len(disk))
			for range 60 {
				var burst []*blockdev.Request
				for range 1 + rng.IntN(60) { // in flight at once, overlapping: ordered as submitted
					burst = append(burst, randomMutation(rng, disk))
				}
				if rng.IntN(3) == 0 {
					burst = append(burst, &blockdev.Request{Op: blockdev.OpFlush})
				}
				c.all(t, c.s, burst...)
				off := rng.IntN(len(disk))
				read := &blockdev.Request{Op: blockdev.OpRead, Offset: uint64(off), Length: uint32(len(disk) - off), Data: got[off:]}
				c.all(t, c.s, read)
				if !bytes.Equal(got[off:], disk[off:]) {
					t.Fatalf("seed %d: what is read from %d on is not what was written", seed, off)
				}
			}
			g.sameOnAll(disk)
		})
	}
}

// blockWriter writes numbered versions of blocks through whatever primary there is, and knows what must be there.
type blockWriter struct {
	g       *group
	c       *client
	gen     uint64
	rng     *rand.Rand
	acked   []uint64 // per block: the version that was acknowledged last
	tried   []uint64 // and the one that was tried last
	version uint64
	writes  atomic.Int64
	hot     atomic.Int64 // if not 0, only so many blocks are written
}

func newBlockWriter(g *group) *blockWriter {
	n := g.o.size / blockdev.BlockSize
	return &blockWriter{g: g, rng: rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano()))), acked: make([]uint64, n), tried: make([]uint64, n)}
}

func versionBlock(block int, version uint64) []byte {
	b := make([]byte, blockdev.BlockSize)
	if version == 0 {
		return b
	}
	rng := rand.New(rand.NewPCG(uint64(block), version))
	for i := 0; i < len(b); i += 512 {
		for k, x := range []uint64{version, uint64(block), rng.Uint64()} {
			for j := range 8 {
				b[i+8*k+j] = byte(x >> (8 * j))
			}
		}
	}
	return b
}

func blockVersion(b []byte) (v uint64) {
	for j := range 8 {
		v |= uint64(b[j]) << (8 * j)
	}
	return v
}

// attach finds a primary; false if none can be had now.
func (w *blockWriter) attach() bool {
	if w.c != nil {
		return true
	}
	w.g.mu.Lock()
	r := w.g.all[w.g.view.Primary].r
	w.g.mu.Unlock()
	if r == nil || r.Report().Role != viewsvc.RolePrimary {
		time.Sleep(time.Millisecond)
		return false
	}
	w.gen++
	c, err := dialReplica(r, "writer", w.gen)
	if err != nil {
		time.Sleep(time.Millisecond)
		return false
	}
	w.c = c
	return true
}

// step writes some blocks, and sometimes reads one back.
func (w *blockWriter) step() {
	if !w.attach() {
		return
	}
	var burst []*blockdev.Request
	var blocks []int
	w.version++
	for range 1 + w.rng.IntN(8) {
		b := w.rng.IntN(len(w.acked))
		if hot := int(w.hot.Load()); hot > 0 {
			b %= hot
		}
		blocks = append(blocks, b)
		w.tried[b] = w.version
		burst = append(burst, write(uint64(b)*blockdev.BlockSize, versionBlock(b, w.version)))
	}
	if !w.c.try(burst...) {
		w.c = nil
		return
	}
	for _, b := range blocks {
		w.acked[b] = w.version
	}
	w.writes.Add(1)
	if w.rng.IntN(4) == 0 {
		w.check(w.rng.IntN(len(w.acked)))
	}
}

// check reads a block: it has to hold what was acknowledged last, or something tried since. What was seen once stays.
func (w *blockWriter) check(b int) bool {
	q := &blockdev.Request{Op: blockdev.OpRead, Offset: uint64(b) * blockdev.BlockSize, Length: blockdev.BlockSize, Data: make([]byte, blockdev.BlockSize)}
	if !w.attach() {
		return false
	}
	if !w.c.try(q) {
		w.c = nil
		return false
	}
	if q.Err != nil {
		w.g.t.Errorf("read block %d: %v", b, q.Err)
		return true
	}
	v := blockVersion(q.Data)
	if v < w.acked[b] || v > w.tried[b] || !bytes.Equal(q.Data, versionBlock(b, v)) {
		w.g.t.Errorf("block %d has version %d, %d was acknowledged, %d tried", b, v, w.acked[b], w.tried[b])
	}
	w.acked[b] = v
	return true
}

// checkAll reads everything, through as many primaries as it takes.
func (w *blockWriter) checkAll() {
	for b := range w.acked {
		for !w.check(b) {
		}
	}
}

// background writes until the func that it returns is called, which then also checks all blocks.
func (w *blockWriter) background() (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() { // until stop
		defer close(ended)
		for {
			select {
			case <-end:
				return
			default:
				w.step()
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// content is what the disk holds now.
func (w *blockWriter) content() []byte {
	var disk []byte
	for b, v := range w.acked {
		disk = append(disk, versionBlock(b, v)...)
	}
	return disk
}

// more waits for so many bursts more to be acknowledged.
func (w *blockWriter) more(n int64) {
	w.g.t.Helper()
	first := w.writes.Load()
	w.g.await("progress of the writer", func(viewsvc.View) bool { return w.writes.Load() >= first+n })
}
