package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"lockstep/blockdev"
)

// The unit in which clients write and histories are checked. It is smaller than a block, so that blocks are merged.
const (
	sector        = 512
	blockSectors  = blockdev.BlockSize / sector
	clientTimeout = 1500 * time.Millisecond
	watchEvery    = 250 * time.Millisecond
	eagerThink    = 4 * time.Millisecond
)

// hotRuns are the runs of blocks that are written: few, so that much happens to each, one across two regions. There are
// more when the volume has grown.
var hotRuns = [...][2]uint64{{0, 4}, {254, 4}, {600, 3}, {1000, 4}}

// stamp fills a sector with the identity of the write that wrote it.
func stamp(b []byte, s, id uint64) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], id^s<<40)
	}
}

// unstamp tells which write a sector is from; 0: none.
func unstamp(b []byte, s uint64) (uint64, error) {
	word := binary.LittleEndian.Uint64(b)
	for i := 8; i < len(b); i += 8 {
		if binary.LittleEndian.Uint64(b[i:]) != word {
			return 0, fmt.Errorf("sector %d is torn", s)
		}
	}
	if word == 0 {
		return 0, nil
	}
	if word>>40 != s {
		return 0, fmt.Errorf("sector %d holds sector %d", s, word>>40)
	}
	return word ^ s<<40, nil
}

// client works on the disk by way of a session, and now and then hangs up, with requests under way, and comes back with
// another. All clients share the disk.
type client struct {
	g          *gatewayProc
	no         int
	s          *session // nil: its gateway is dead, or it has hung up
	lives      int      // sessions it has had
	named      bool     // they go by one name
	alone      bool     // it wants the volume for itself
	unresolved []*op    // of the sessions of that name that died with their gateway
	depth      int
	think      time.Duration
	rude       int // it hangs up once in so many turns; 0: never
}

// op is a request and its part of the history.
type op struct {
	req          blockdev.Request
	first, count uint64 // sectors
	id           uint64 // of a write; 0 also for a trim
	call, ret    int64  // moments; ret 0: no answer
	fenced       int64  // moment: nothing that anybody asks later comes before it; 0: that is not known
	left         int64  // moment: nothing that is asked of the same gateway later does (G5); 0: likewise
	since        time.Duration
	vals         []uint64 // what a read returned
	client       int
	sent         int      // how often
	refused      bool     // it was not carried out
	s            *session // which waits for it
	by           *proc    // the gateway's
}

func (o *op) String() string {
	return fmt.Sprintf("c%d %v %d of %d+%d, id %d", o.client, o.req.Op, o.req.Tag, o.first, o.count, o.id)
}

// work issues requests for as long as the run has load. It is a coroutine of the gateway's process.
func (k *client) work() {
	c, w := k.g.c, k.g.c.w
	for {
		switch {
		case k.s == nil:
			k.s = k.g.attach(k)
		case c.load && k.rude > 0 && w.one(k.rude) && k.s.ready:
			w.stats.note(hungUp)
			k.s.close()
			k.s = nil
		case c.load && k.s.ready && len(k.s.asked) < k.depth:
			var ops []*op
			for range 1 + w.rng.IntN(min(3, k.depth-len(k.s.asked))) {
				ops = append(ops, k.invent())
			}
			k.s.submit(ops)
		}
		think := k.think
		if k.g.eager {
			think = eagerThink
		}
		k.g.p.sleep(w.between(think/4, 2*think))
	}
}

// invent makes a request.
func (k *client) invent() *op {
	c, w := k.g.c, k.g.c.w
	run := c.runs[w.rng.IntN(len(c.runs))]
	for run[0]+run[1] > k.s.size { // the disk has grown since the client came
		run = c.runs[w.rng.IntN(len(c.runs))]
	}
	o := &op{client: k.no}
	lo, n := run[0]*blockSectors, run[1]*blockSectors
	if w.one(4) { // parts of blocks
		o.first = lo + w.rng.Uint64N(n)
		o.count = 1 + w.rng.Uint64N(min(12, lo+n-o.first))
	} else {
		first := w.rng.Uint64N(run[1])
		o.first, o.count = lo+first*blockSectors, blockSectors*(1+w.rng.Uint64N(run[1]-first))
	}
	q := &o.req
	switch x := w.rng.IntN(20); {
	case k.g.eager:
		q.Op = blockdev.OpRead
	case x < 9:
		q.Op = blockdev.OpWrite
	case x < 17:
		q.Op = blockdev.OpRead
	case x < 18:
		q.Op = blockdev.OpTrim
	case x < 19:
		q.Op = blockdev.OpWriteZeroes
	default:
		q.Op, o.first, o.count = blockdev.OpFlush, 0, 0
	}
	if q.Op.Mutates() && w.one(6) {
		q.Flags = blockdev.FlagFUA
	}
	q.Offset, q.Length = o.first*sector, uint32(o.count*sector)
	if q.Op == blockdev.OpWrite {
		o.id = c.history.newID()
		q.Data = make([]byte, q.Length)
		for i := range o.count {
			stamp(q.Data[i*sector:(i+1)*sector], o.first+i, o.id)
		}
	}
	c.history.call(o)
	w.tr("%v", o)
	return o
}

// read asks for a block.
func (k *client) read(block uint64) *op {
	o := &op{client: k.no, first: block * blockSectors, count: blockSectors}
	o.req.Op, o.req.Offset, o.req.Length = blockdev.OpRead, o.first*sector, blockdev.BlockSize
	k.g.c.history.call(o)
	return o
}

// answered takes an answer of which the session knows that it waited for it.
func (k *client) answered(o *op, a answer) {
	c := k.g.c
	c.w.tr("c%d answered %d: %s", k.no, o.req.Tag, errText(a.err))
	if a.err != nil {
		// One that was sent before may have been ordered by another primary, and what was done of it may come to light.
		o.refused = o.sent == 1 && errors.Is(a.err, blockdev.ErrNoSpace)
		c.failed(o, a.err)
		return
	}
	if o.req.Op == blockdev.OpRead {
		for i := range o.count {
			v, err := unstamp(a.data[i*sector:(i+1)*sector], o.first+i)
			if err != nil {
				c.w.fail("%v: %v", o, err)
			}
			o.vals = append(o.vals, v)
		}
	}
	c.history.done(o)
}
