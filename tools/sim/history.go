package main

import "lockstep/blockdev"

// history is what the clients asked and were answered.
type history struct {
	ops    []*op
	moment int64
	lastID uint64
	losses []loss
}

// loss is a moment at which an operator accepted that acknowledged writes are gone.
type loss struct {
	moment int64
	forced bool // an old replica was made primary; else one went on that may lack what was not flushed
}

func (h *history) newID() uint64 {
	h.lastID++
	return h.lastID
}

func (h *history) call(o *op) {
	h.moment++
	o.call = h.moment
	o.req.Tag = uint64(len(h.ops) + 1)
	h.ops = append(h.ops, o)
}

func (h *history) done(o *op) {
	h.moment++
	o.ret = h.moment
}

func (h *history) lost(forced bool) {
	h.moment++
	h.losses = append(h.losses, loss{h.moment, forced})
}

// bySector lists the operations on each sector, but for reads that were not answered, and what was refused.
func (h *history) bySector() map[uint64][]*op {
	sectors := map[uint64][]*op{}
	for _, o := range h.ops {
		if o.req.Op == blockdev.OpFlush || o.refused || o.req.Op == blockdev.OpRead && o.ret == 0 {
			continue
		}
		for s := o.first; s < o.first+o.count; s++ {
			sectors[s] = append(sectors[s], o)
		}
	}
	return sectors
}

// written is what the operation, on a sector, leaves there or has read.
func (o *op) value(sector uint64) uint64 {
	if o.req.Op == blockdev.OpRead {
		return o.vals[sector-o.first]
	}
	return o.id
}
