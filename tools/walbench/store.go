package main

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"time"

	"lockstep/blockdev"
	"lockstep/wal"
	"lockstep/wal/vfs"
)

// writer appends frames of random writes to a store.
type writer struct {
	s     *blockdev.Store
	b     wal.Builder
	rnd   *rand.Rand
	data  []byte
	sums  []uint32
	count uint64 // blocks of a write
	room  chan struct{}

	written atomic.Int64 // bytes, by the store to its files
}

// newStore formats a replica and opens it.
func newStore(o options, name string, volume, log int64, manual bool) (*writer, error) {
	dir := filepath.Join(o.dir, name)
	id := blockdev.Identity{Cluster: "c", Volume: "v", Replica: "r", Size: uint64(volume)}
	if err := blockdev.Format(vfs.OS{}, dir, blockdev.FormatOptions{Identity: id, LogBytes: log}); err != nil {
		return nil, err
	}
	return openStore(dir, manual)
}

func openStore(dir string, manual bool) (*writer, error) {
	w := &writer{rnd: rand.New(rand.NewPCG(1, 1)), room: make(chan struct{}, 1)}
	s, err := blockdev.OpenStore(blockdev.StoreOptions{FS: counting{bytes: &w.written}, Dir: dir, Manual: manual, OnRoom: func() {
		select {
		case w.room <- struct{}{}:
		default:
		}
	}})
	w.s = s
	return w, err
}

// size sets how large a write is.
func (w *writer) size(blocks uint64) {
	w.count, w.data, w.sums = blocks, wal.AlignedBuffer(int(blocks)*wal.BlockSize), make([]uint32, blocks)
	for i := range w.data {
		w.data[i] = byte(w.rnd.Uint32())
	}
}

// fill writes the whole volume once: later writes find their space allocated.
func (w *writer) fill() error {
	w.size(256)
	for at := uint64(0); at < w.s.Blocks(); at += w.count {
		w.b.Reset()
		w.add(at)
		f := w.seal()
		for !w.s.RoomFor(len(f.Bytes())) {
			if err := w.s.Checkpoint(); err != nil {
				return err
			}
		}
		if err := w.s.Append(f); err != nil {
			return err
		}
		w.s.Commit(f.Last())
	}
	return w.s.Checkpoint()
}

// frame makes the next frame, of so many writes to random places.
func (w *writer) frame(writes int) wal.Frame {
	w.b.Reset()
	for range writes {
		w.add(w.rnd.Uint64N(w.s.Blocks()/w.count) * w.count)
	}
	return w.seal()
}

func (w *writer) add(at uint64) {
	for k := range w.count {
		w.sums[k] = wal.BlockSum(at+k, w.data[k*wal.BlockSize:(k+1)*wal.BlockSize])
	}
	w.b.Add(wal.Record{Kind: wal.KindWrite, Block: at, Count: uint32(w.count)}, w.data, w.sums)
}

func (w *writer) seal() wal.Frame {
	m := w.s.Marks()
	return w.b.Seal(wal.Header{Salt: w.s.Salt(), Epoch: 1, First: m.End + 1, Chain: w.s.EndSum(), Commit: m.Committed, Stable: m.Committed})
}

// put appends a frame, makes it durable and commits it. held is how long back-pressure kept it waiting before.
func (w *writer) put(f wal.Frame) (held, took time.Duration, err error) {
	began := time.Now()
	if d := w.s.Delay(len(f.Bytes())); d > 0 {
		time.Sleep(d)
	}
	for !w.s.RoomFor(len(f.Bytes())) {
		<-w.room
	}
	held = time.Since(began)
	began = time.Now()
	if err = w.s.Append(f); err == nil {
		err = w.s.Sync()
	}
	w.s.Commit(f.Last())
	return held, time.Since(began), err
}

// result is what a slice of time showed, or several.
type result struct {
	took, total samples // without and with the time held up
	p99         samples // of each slice
	used        usage
	elapsed     time.Duration
}

// putFor puts frames for so long, or until the log is as full as limit.
func (w *writer) putFor(d time.Duration, writes int, limit float64, r *result) error {
	var slice samples
	before, began := used(), time.Now()
	for end := began.Add(d); time.Now().Before(end) && w.s.Fill() < limit; {
		held, took, err := w.put(w.frame(writes))
		if err != nil {
			return err
		}
		slice, r.total = append(slice, took), append(r.total, held+took)
	}
	r.elapsed += time.Since(began)
	r.used = r.used.plus(used().since(before))
	r.took = append(r.took, slice...)
	r.p99 = append(r.p99, slice.sort().at(0.99))
	return nil
}

func (r *result) show(name string, blocks float64) {
	n := blocks * float64(len(r.took))
	fmt.Printf("%-16s %8.1f MB/s, %.2f µs of CPU a block, frames: %v\n", name,
		n*wal.BlockSize/r.elapsed.Seconds()/1e6, r.used.cpu.Seconds()*1e6/n, r.took.sort())
}

// applier compares durable frames with and without somebody applying them.
func applier(o options) error { return beside(o, "applier", o.writes, 1) }

// large is the same with writes of 1 MiB.
func large(o options) error { return beside(o, "large", 1, 256) }

// rounds is how often the two are measured by turns: what else the machine does is then in both.
const rounds = 9

// settled waits until the applier has nothing to do that it does not put off.
func (w *writer) settled() {
	for last := w.s.Marks().Applied; ; {
		time.Sleep(300 * time.Millisecond)
		now := w.s.Marks().Applied
		if now == last {
			return
		}
		last = now
	}
}

func beside(o options, name string, writes int, blocks uint64) error {
	idle, err := newStore(o, name+"0", o.volume<<20, o.log<<20, true)
	if err != nil {
		return err
	}
	defer idle.s.Abandon()
	busy, err := newStore(o, name+"1", o.volume<<20, o.log<<20, false)
	if err != nil {
		return err
	}
	defer busy.s.Abandon()
	for _, w := range []*writer{idle, busy} {
		if err := w.fill(); err != nil {
			return err
		}
		w.size(blocks)
	}
	// Until the applier cannot be lazy any more.
	var alone, with, full result
	before := busy.written.Load()
	if err := busy.putFor(time.Minute, writes, 0.5, &full); err != nil {
		return err
	}
	for range rounds {
		busy.settled()
		if err := idle.putFor(o.duration()/rounds, writes, 0.9, &alone); err != nil {
			return err
		}
		if err := idle.s.Checkpoint(); err != nil {
			return err
		}
		if err := busy.putFor(2*o.duration()/rounds, writes, 2, &with); err != nil {
			return err
		}
	}
	if err := busy.s.Checkpoint(); err != nil {
		return err
	}
	per := float64(writes) * float64(blocks)
	alone.show("without applier:", per)
	with.show("with applier:", per)
	fmt.Printf("with back-pressure: %v\n", with.total.sort())
	fmt.Printf("p99 with : without applier %.2f (median of %d rounds each)\n",
		with.p99.sort().at(0.5).Seconds()/alone.p99.sort().at(0.5).Seconds(), rounds)
	user := per * wal.BlockSize * float64(len(with.took)+len(full.took))
	fmt.Printf("bytes written for a byte of the user's: %.2f\n", float64(busy.written.Load()-before)/user)
	return nil
}
