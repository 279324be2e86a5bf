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
)

// hotRuns are the runs of blocks that are written: few, so that much happens to each, one across two regions.
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

// client is a gateway and who is behind it: it finds the primary, keeps requests until they are answered, and connects
// anew, with the next generation of its session. One that replays sends what was not answered again, as the gateway
// does, and so has blocks of its own; one that does not shares its blocks, and takes what was not answered for
// something that may yet happen.
type client struct {
	c       *cluster
	p       *proc
	no      int
	gen     uint64
	addr    string
	e       *endpoint // attached; nil: not connected
	pending []*op     // sent or to be sent, in order
	replays bool
	depth   int
	think   time.Duration
}

// op is a request and its part of the history.
type op struct {
	wireReq
	first, count uint64 // sectors
	id           uint64 // of a write; 0 also for a trim
	call, ret    int64  // moments; ret 0: no answer
	since        time.Duration
	vals         []uint64 // what a read returned
	client       int
}

func (o *op) String() string {
	return fmt.Sprintf("c%d %v %d of %d+%d, id %d", o.client, o.op, o.tag, o.first, o.count, o.id)
}

func (k *client) start() {
	k.p = k.c.w.newProc(fmt.Sprintf("c%d", k.no))
	k.p.Go(k.work)
	k.p.Go(k.watch)
}

// watch does what the gateway's watcher of the view service does: it leaves a primary that is none any more.
func (k *client) watch() {
	for {
		k.p.sleep(watchEvery)
		addr, err := k.c.views.primary(k.p, k.p.name)
		if err == nil && addr != k.addr {
			k.addr = addr
			if k.e != nil {
				k.lost(k.e, errors.New("another is primary"))
			}
		}
	}
}

// work issues requests for as long as the run has load.
func (k *client) work() {
	w := k.c.w
	for {
		if k.e == nil && !k.connect() {
			k.p.sleep(w.between(k.c.reconnect/2, 2*k.c.reconnect))
			continue
		}
		if k.c.load && len(k.pending) < k.depth {
			var reqs []*op
			for range 1 + w.rng.IntN(3) {
				if o := k.invent(); o != nil && len(k.pending) < k.depth {
					reqs = append(reqs, o)
					k.pending = append(k.pending, o)
				}
			}
			k.send(reqs)
		}
		if len(k.pending) > 0 && w.now-k.pending[0].since > clientTimeout && k.e != nil {
			k.lost(k.e, errors.New("no answer"))
			continue
		}
		k.p.sleep(w.between(k.think/4, 2*k.think))
	}
}

func (k *client) send(ops []*op) {
	if len(ops) == 0 || k.e == nil {
		return
	}
	var m ask
	for _, o := range ops {
		q := o.wireReq
		q.data = append([]byte(nil), q.data...) // the node's own
		m.reqs = append(m.reqs, q)
		o.since = k.c.w.now
	}
	k.e.post(m)
}

// invent makes a request; nil: the one that was thought of may not be sent now.
func (k *client) invent() *op {
	w, h := k.c.w, k.c.history
	run := hotRuns[w.rng.IntN(len(hotRuns))]
	o := &op{client: k.no}
	lo, n := run[0]*blockSectors, run[1]*blockSectors
	if k.replays { // a block of its own in each run
		lo, n = (run[0]+uint64(k.no)%run[1])*blockSectors, blockSectors
	} else if k.c.replayers > 0 { // the last blocks of each run are nobody's own
		lo += uint64(k.c.replayers) * blockSectors
		n -= uint64(k.c.replayers) * blockSectors
	}
	if w.one(4) { // parts of blocks
		o.first = lo + w.rng.Uint64N(n)
		o.count = 1 + w.rng.Uint64N(min(12, lo+n-o.first))
	} else {
		blocks := n / blockSectors
		first := w.rng.Uint64N(blocks)
		o.first, o.count = lo+first*blockSectors, blockSectors*(1+w.rng.Uint64N(blocks-first))
	}
	switch x := w.rng.IntN(20); {
	case x < 9:
		o.op = blockdev.OpWrite
	case x < 17:
		o.op = blockdev.OpRead
	case x < 18:
		o.op = blockdev.OpTrim
	case x < 19:
		o.op = blockdev.OpWriteZeroes
	default:
		o.op, o.first, o.count = blockdev.OpFlush, 0, 0
	}
	if o.op.Mutates() && w.one(6) {
		o.flags = blockdev.FlagFUA
	}
	if k.replays && o.op.Mutates() {
		for _, q := range k.pending { // G3 of the gateway
			if q.op.Mutates() && q.first < o.first+o.count && o.first < q.first+q.count {
				return nil
			}
		}
	}
	o.off, o.length = o.first*sector, uint32(o.count*sector)
	if o.op == blockdev.OpWrite {
		o.id = h.newID()
		o.data = make([]byte, o.length)
		for i := range o.count {
			stamp(o.data[i*sector:(i+1)*sector], o.first+i, o.id)
		}
	}
	h.call(o)
	w.tr("%v", o)
	return o
}

// connect finds the primary, attaches, and sends what is not answered again.
func (k *client) connect() bool {
	w := k.c.w
	if w.one(3) { // before the view service says so
		k.addr = k.c.machines[w.rng.IntN(len(k.c.machines))].name + ":" + clientPort
	} else if addr, err := k.c.views.primary(k.p, k.p.name); err == nil {
		k.addr = addr
	}
	if k.addr == "" {
		return false
	}
	e, err := k.c.net.Dial(nobody, k.p, k.p.name, k.addr)
	if err != nil {
		return false
	}
	k.gen++
	id := blockdev.SessionID{Name: k.p.name, Generation: k.gen}
	e.p = k.p
	e.post(attachMsg{k.no, id})
	e.deadline = w.now + clientTimeout
	m, err := e.recv()
	if err != nil || m.(attached).err != nil {
		e.Close()
		return false
	}
	e.deadline = 0
	k.e = e
	w.tr("%s attached to %s, generation %d, %d to send again", k.p.name, k.addr, k.gen, len(k.pending))
	if len(k.pending) > 0 {
		w.stats.note(replayed)
	}
	k.send(k.pending)
	k.p.Go(func() { k.receive(e) })
	return true
}

// receive takes answers until the connection ends.
func (k *client) receive(e *endpoint) {
	for {
		m, err := e.recv()
		if err != nil {
			k.lost(e, err)
			return
		}
		if k.e != e {
			return
		}
		k.answered(m.(answer))
	}
}

// lost gives a connection up. What was under way is sent again on the next, or may happen at any time.
func (k *client) lost(e *endpoint, why error) {
	e.Close()
	if k.e != e {
		return
	}
	k.c.w.tr("%s lost %s: %v", k.p.name, k.addr, why)
	k.e = nil
	keep := k.pending[:0]
	for _, o := range k.pending {
		if k.replays || o.op == blockdev.OpFlush {
			keep = append(keep, o)
		}
	}
	clear(k.pending[len(keep):])
	k.pending = keep
}

func (k *client) answered(a answer) {
	for i, o := range k.pending {
		if o.tag != a.tag {
			continue
		}
		k.pending = append(k.pending[:i:i], k.pending[i+1:]...)
		k.c.w.tr("c%d answered %d: %s", k.no, o.tag, errText(a.err))
		if a.err != nil {
			k.c.failed(o, a.err)
			return
		}
		if o.op == blockdev.OpRead {
			for i := range o.count {
				v, err := unstamp(a.data[i*sector:(i+1)*sector], o.first+i)
				if err != nil {
					k.c.w.fail("%v: %v", o, err)
				}
				o.vals = append(o.vals, v)
			}
		}
		k.c.history.done(o)
		return
	}
	k.c.w.fail("c%d is answered %d, which it did not ask", k.no, a.tag)
}
