package nbd_test

import (
	"context"
	"sync"

	"lockstep/blockdev"
)

// sparse is a disk in memory that knows its holes, as a replica does. It does each request inside Submit, at one moment.
type sparse struct {
	size uint64

	mu     sync.RWMutex
	blocks map[uint64]*[blockdev.BlockSize]byte
	kept   map[uint64]bool // holes whose space is kept
}

func newSparse(size uint64) *sparse {
	return &sparse{size: size, blocks: map[uint64]*[blockdev.BlockSize]byte{}, kept: map[uint64]bool{}}
}

func (d *sparse) Geometry() blockdev.Geometry { return blockdev.Geometry{Size: d.size} }

func (d *sparse) Attach(_ context.Context, _ blockdev.SessionID, c blockdev.Client) (blockdev.Session, error) {
	return sparseSession{d, c}, nil
}

type sparseSession struct {
	disk   *sparse
	client blockdev.Client
}

func (s sparseSession) Close() {}

func (s sparseSession) Submit(burst []*blockdev.Request) {
	for _, r := range burst {
		s.disk.do(r)
	}
	s.client.Complete(burst)
}

func (d *sparse) do(r *blockdev.Request) {
	if r.Op.Mutates() {
		d.mu.Lock()
		defer d.mu.Unlock()
	} else {
		d.mu.RLock()
		defer d.mu.RUnlock()
	}
	if r.Op == blockdev.OpFlush || r.Op == blockdev.OpCache {
		return
	}
	for at, n := r.Offset, uint64(0); at < r.Offset+uint64(r.Length); at += n {
		block, from := at/blockdev.BlockSize, at%blockdev.BlockSize
		n = min(blockdev.BlockSize-from, r.Offset+uint64(r.Length)-at)
		p, here := d.blocks[block], at-r.Offset
		switch r.Op {
		case blockdev.OpRead:
			clear(r.Data[here : here+n])
			if p != nil {
				copy(r.Data[here:here+n], p[from:])
			}
		case blockdev.OpWrite:
			if p == nil {
				p = new([blockdev.BlockSize]byte)
				d.blocks[block] = p
			}
			copy(p[from:], r.Data[here:here+n])
		case blockdev.OpTrim, blockdev.OpWriteZeroes:
			switch {
			case n == blockdev.BlockSize:
				delete(d.blocks, block)
				d.kept[block] = r.Flags&blockdev.FlagNoHole != 0
			case p != nil:
				clear(p[from : from+n])
			}
		case blockdev.OpExtents:
			state := blockdev.ExtentState(0)
			if p == nil {
				state = blockdev.ExtentZero
				if !d.kept[block] {
					state |= blockdev.ExtentHole
				}
			}
			if !r.AddExtent(uint32(n), state) {
				return
			}
		}
	}
}
