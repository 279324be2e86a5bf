package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"lockstep/blockdev"
)

// history is what the clients asked and were answered.
type history struct {
	ops    []*op
	moment int64
	lastID uint64
}

func (h *history) newID() uint64 {
	h.lastID++
	return h.lastID
}

func (h *history) call(o *op) {
	h.moment++
	o.call = h.moment
	o.tag = uint64(len(h.ops) + 1)
	h.ops = append(h.ops, o)
}

func (h *history) done(o *op) {
	h.moment++
	o.ret = h.moment
}

// access is an operation on one sector, as porcupine sees it.
type access struct {
	write bool
	id    uint64
}

// register is a sector: a read returns the write that was last.
var register = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		in := input.(access)
		if in.write {
			return true, in.id
		}
		return state.(uint64) == output.(uint64), state
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

// checkTime bounds the search for one sector: it is exponential in what is under way together.
const checkTime = 2 * time.Second

// broken is a sector whose history no order of the operations explains.
type broken struct {
	sector uint64
	ops    []porcupine.Operation
}

// keep writes the history as a page to look at, and tells where it is.
func (b *broken) keep() string {
	_, info := porcupine.CheckOperationsVerbose(register, b.ops, checkTime)
	f, err := os.CreateTemp("", fmt.Sprintf("sim-sector-%d-*.html", b.sector))
	if err != nil {
		return ""
	}
	defer f.Close()
	if err := porcupine.Visualize(register, info, f); err != nil {
		return ""
	}
	return ": see " + f.Name()
}

// check looks for a sector whose history is not linearizable. Neighbours with the same history are checked once.
func (h *history) check() *broken {
	bySector := map[uint64][]*op{}
	for _, o := range h.ops {
		if o.op == blockdev.OpFlush || o.op == blockdev.OpRead && o.ret == 0 {
			continue
		}
		for s := o.first; s < o.first+o.count; s++ {
			bySector[s] = append(bySector[s], o)
		}
	}
	sectors := make([]uint64, 0, len(bySector))
	for s := range bySector {
		sectors = append(sectors, s)
	}
	slices.Sort(sectors)
	var before []porcupine.Operation
	for _, s := range sectors {
		ops := make([]porcupine.Operation, len(bySector[s]))
		for i, o := range bySector[s] {
			p := porcupine.Operation{ClientId: o.client, Call: o.call, Return: o.ret}
			if o.ret == 0 {
				p.Return = math.MaxInt64
			}
			if o.op == blockdev.OpRead {
				p.Input, p.Output = access{}, o.vals[s-o.first]
			} else {
				p.Input = access{true, o.id}
			}
			ops[i] = p
		}
		if slices.Equal(ops, before) {
			continue
		}
		before = ops
		if porcupine.CheckOperationsTimeout(register, ops, checkTime) == porcupine.Illegal {
			return &broken{s, ops}
		}
	}
	return nil
}
