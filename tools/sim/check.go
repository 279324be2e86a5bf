package main

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"lockstep/blockdev"
)

// access is an operation on one sector, as porcupine sees it.
type access struct {
	write bool
	id    uint64
}

// unknown is a sector of which it was accepted that it may have gone back to anything that it ever was.
const unknown = math.MaxUint64

// register is a sector: a read returns the write that was last.
func register(first uint64) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return first },
		Step: func(state, input, output any) (bool, any) {
			in, s := input.(access), state.(uint64)
			if in.write {
				return true, in.id
			}
			return s == unknown || s == output.(uint64), output
		},
		Equal: func(a, b any) bool { return a == b },
		DescribeOperation: func(input, output any) string {
			in := input.(access)
			if in.write {
				return fmt.Sprintf("write %d", in.id)
			}
			return fmt.Sprintf("read %d", output)
		},
	}
}

// checkTime bounds the search for one sector: it is exponential in what is under way together.
const checkTime = 2 * time.Second

// broken is a sector whose history no order of the operations explains.
type broken struct {
	sector uint64
	model  porcupine.Model
	ops    []porcupine.Operation
}

// keep writes the history as a page to look at, and tells where it is.
func (b *broken) keep() string {
	_, info := porcupine.CheckOperationsVerbose(b.model, b.ops, checkTime)
	f, err := os.CreateTemp("", fmt.Sprintf("sim-sector-%d-*.html", b.sector))
	if err != nil {
		return ""
	}
	defer f.Close()
	if err := porcupine.Visualize(b.model, info, f); err != nil {
		return ""
	}
	return ": see " + f.Name()
}

// check looks for a sector whose history is not linearizable. Neighbours with the same history are checked once. A loss
// that was accepted ends one history, and begins another in which every sector is unknown.
func (h *history) check() *broken {
	sectors := h.bySector()
	ends := []int64{math.MaxInt64}
	for _, l := range slices.Backward(h.losses) {
		ends = slices.Insert(ends, 0, l.moment)
	}
	before := make([][]porcupine.Operation, len(ends))
	for _, s := range slices.Sorted(maps.Keys(sectors)) {
		begin, model := int64(0), register(0)
		for i, end := range ends {
			ops := part(sectors[s], s, begin, end)
			if !slices.Equal(ops, before[i]) && porcupine.CheckOperationsTimeout(model, ops, checkTime) == porcupine.Illegal {
				return &broken{s, model, ops}
			}
			before[i] = ops
			begin, model = end, register(unknown)
		}
	}
	return nil
}

// part is what happened to a sector from one moment to another. A write that was not answered then, or that was on its
// way at either end, happened at any time or never; so one of those that nobody ever saw may as well not have.
func part(all []*op, s uint64, begin, end int64) []porcupine.Operation {
	seen := map[uint64]bool{}
	for _, o := range all {
		if o.req.Op == blockdev.OpRead {
			seen[o.value(s)] = true
		}
	}
	var ops []porcupine.Operation
	for _, o := range all {
		if o.call >= end || o.ret != 0 && o.ret < begin {
			continue
		}
		unsure := o.ret == 0 || o.ret >= end || o.call < begin
		p := porcupine.Operation{ClientId: o.client, Call: max(o.call, begin), Return: o.ret}
		switch {
		case unsure && (o.req.Op == blockdev.OpRead || o.id != 0 && !seen[o.id]):
			continue
		case unsure:
			p.Return = latest(o, all, begin, end)
		}
		if o.req.Op == blockdev.OpRead {
			p.Input, p.Output = access{}, o.value(s)
		} else {
			p.Input = access{true, o.id}
		}
		ops = append(ops, p)
	}
	return ops
}

// latest is when an operation that was not answered has happened at the latest: it comes before what was asked after it
// was fenced, and before what its gateway was asked after its client had left. One that leaves no trace may as well never
// have happened, which is as good as at the end of time.
func latest(o *op, all []*op, begin, end int64) int64 {
	at := int64(math.MaxInt64)
	if o.id == 0 || o.call < begin {
		return at
	}
	for _, p := range all {
		later := o.fenced != 0 && p.call > o.fenced || o.left != 0 && p.call > o.left && p.by == o.by
		if later && p.req.Op != blockdev.OpRead && p.ret != 0 && p.ret < end {
			at = min(at, p.ret)
		}
	}
	return at
}

// unflushed finds a sector that went back, in a loss of what was not flushed, to before a write that was: "" if there is none.
func (h *history) unflushed() string {
	if !slices.ContainsFunc(h.losses, func(l loss) bool { return !l.forced }) {
		return ""
	}
	sectors := h.bySector()
	for _, s := range slices.Sorted(maps.Keys(sectors)) {
		begin := int64(0)
		for i, l := range h.losses {
			end := int64(math.MaxInt64)
			if i+1 < len(h.losses) {
				end = h.losses[i+1].moment
			}
			if last := h.flushed(sectors[s], begin, l.moment); last != nil && !l.forced {
				if back := wentBack(sectors[s], s, last, l.moment, end); back != nil {
					return fmt.Sprintf("sector %d: %v is read by %v after the loss, but %v was flushed before it", s, back.value(s), back, last)
				}
			}
			begin = l.moment
		}
	}
	return ""
}

// flushed is the last of the operations on a sector that were acknowledged and flushed in a part of the history.
func (h *history) flushed(all []*op, begin, end int64) (last *op) {
	var flush *op // the one that was asked last, of those that were answered
	for _, o := range h.ops {
		if o.req.Op == blockdev.OpFlush && o.call >= begin && o.ret != 0 && o.ret < end {
			flush = o
		}
	}
	for _, o := range all {
		if o.req.Op == blockdev.OpRead || o.call < begin || o.ret == 0 || o.ret >= end {
			continue
		}
		stable := o.req.Flags&blockdev.FlagFUA != 0 || flush != nil && o.ret < flush.call
		if stable && (last == nil || o.call > last.call) {
			last = o
		}
	}
	return last
}

// wentBack is a read, in a part of the history, of what was there before the operation last.
func wentBack(all []*op, s uint64, last *op, begin, end int64) *op {
	for _, r := range all {
		if r.req.Op != blockdev.OpRead || r.call < begin || r.ret >= end {
			continue
		}
		v, excused := r.value(s), false
		for _, o := range all { // whoever wrote that may have come after
			if o.req.Op != blockdev.OpRead && o.id == v && (o.ret == 0 || o.ret > last.call) {
				excused = true
			}
		}
		if !excused {
			return r
		}
	}
	return nil
}
