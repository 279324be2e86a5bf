package wal

import "sort"

// frameIndex knows, in memory, where each frame of the log is: 16 bytes a frame, in a ring that grows by doubling
// and is emptied from the front as segments are reused, from the back by cuts. Frames are in LSN order.
type frameIndex struct {
	ring []frameEntry // length is a power of two
	head int          // of the first entry; entry i is ring[(head+i) & (len(ring)-1)]
	n    int
}

// frameEntry packs a frame's position (48 bits of 4 KiB units: an exbibyte of log) with its size in blocks.
type frameEntry struct {
	first  LSN
	packed uint64
}

const (
	sizeBits  = 16
	maxPos    = Pos(1)<<(64-sizeBits) - 1
	minFrames = 1024 // first size of the ring
)

func (e frameEntry) pos() Pos    { return Pos(e.packed >> sizeBits) }
func (e frameEntry) blocks() Pos { return Pos(e.packed & (1<<sizeBits - 1)) }
func (e frameEntry) bytes() int  { return int(e.blocks()) * BlockSize }
func (e frameEntry) end() Pos    { return e.pos() + e.blocks() }

func (x *frameIndex) at(i int) frameEntry {
	return x.ring[(x.head+i)&(len(x.ring)-1)]
}

func (x *frameIndex) push(first LSN, at Pos, blocks int) {
	if x.n == len(x.ring) {
		ring := make([]frameEntry, max(minFrames, 2*len(x.ring)))
		for i := range x.n {
			ring[i] = x.at(i)
		}
		x.ring, x.head = ring, 0
	}
	x.ring[(x.head+x.n)&(len(x.ring)-1)] = frameEntry{first, uint64(at)<<sizeBits | uint64(blocks)}
	x.n++
}

// find gives the index of the frame that holds an LSN, -1 if it lies before the first frame. An LSN beyond the
// last frame finds the last.
func (x *frameIndex) find(l LSN) int {
	return sort.Search(x.n, func(i int) bool { return x.at(i).first > l }) - 1
}

// before is the number of frames whose position is lower than p.
func (x *frameIndex) before(p Pos) int {
	return sort.Search(x.n, func(i int) bool { return x.at(i).pos() >= p })
}

// dropFront forgets the first k frames, dropBack all but the first k.
func (x *frameIndex) dropFront(k int) {
	x.n -= k
	if x.n == 0 {
		x.head = 0
		return
	}
	x.head = (x.head + k) & (len(x.ring) - 1)
}

func (x *frameIndex) dropBack(k int) { x.n = k }
