package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// maxTurns ends a run in which somebody spins.
const maxTurns = 3_000_000

// epoch is what the clocks show when a run begins.
var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// event is something that happens at a time: f is called, or a coroutine goes on.
type event struct {
	at  time.Duration
	seq uint64 // those of one moment happen in the order in which they were planned
	f   func()
	co  *coro
	p   *proc         // whose clock the wait is measured by; nil: the world's
	due time.Duration // on that clock
}

// cancel makes an event not happen. It costs nothing if it already did.
func (e *event) cancel() { e.f, e.co = nil, nil }

// world is one run: a clock that jumps from event to event, and coroutines of which one runs at a time. Whatever is
// ready goes on before the clock moves, in an order that the seed decides: the processes are infinitely fast, and only
// waiting, the network and the disks take time.
type world struct {
	rng    *rand.Rand
	now    time.Duration
	seq    uint64
	events []*event // heap, by (at, seq)
	ready  []*coro
	cur    *coro // nil: the scheduler itself
	procs  []*proc
	turns  int
	bad    string // what went wrong first; the run ends

	trace func(string) // nil: nobody listens
	stats stats
}

func (w *world) tr(format string, args ...any) {
	if w.trace != nil {
		w.trace(fmt.Sprintf("%11.6f ", w.now.Seconds()) + fmt.Sprintf(format, args...))
	}
}

func (w *world) fail(format string, args ...any) {
	if w.bad == "" {
		w.bad = fmt.Sprintf(format, args...)
		w.tr("FAIL %s", w.bad)
	}
}

// one is true once in n times.
func (w *world) one(n int) bool { return w.rng.IntN(n) == 0 }

// between is a duration in [lo, hi).
func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)))
}

func (w *world) after(d time.Duration, f func()) *event { return w.plan(d, &event{f: f}) }

func (w *world) plan(d time.Duration, e *event) *event {
	w.seq++
	e.at, e.seq = w.now+max(d, 0), w.seq
	w.events = append(w.events, e)
	w.rise(len(w.events) - 1)
	return e
}

// rise moves an event up the heap to where it belongs.
func (w *world) rise(i int) {
	h := w.events
	for i > 0 {
		up := (i - 1) / 2
		if !h[i].before(h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

func (w *world) pop() *event {
	h := w.events
	e, last := h[0], len(h)-1
	h[0], h[last] = h[last], nil
	h = h[:last]
	for i := 0; ; {
		next := i
		for c := 2*i + 1; c <= 2*i+2 && c < last; c++ {
			if h[c].before(h[next]) {
				next = c
			}
		}
		if next == i {
			break
		}
		h[i], h[next] = h[next], h[i]
		i = next
	}
	w.events = h
	return e
}

// run lets the world go on until a moment, until something is wrong, or until stop says so.
func (w *world) run(until time.Duration, stop func() bool) {
	for w.bad == "" {
		if n := len(w.ready); n > 0 {
			i := w.rng.IntN(n)
			c := w.ready[i]
			w.ready[i] = w.ready[n-1]
			w.ready = w.ready[:n-1]
			w.resume(c)
			continue
		}
		if stop != nil && stop() {
			return
		}
		if len(w.events) == 0 || w.events[0].at > until {
			w.now = until
			return
		}
		e := w.pop()
		w.now = e.at
		switch {
		case e.co != nil:
			w.wake(e.co)
		case e.f != nil:
			e.f()
		}
	}
}

// coro is a goroutine of a simulated process.
type coro struct {
	p     *proc
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	woken bool // is in world.ready or proc.parked
	done  bool
}

func (w *world) resume(c *coro) {
	if c.done {
		return
	}
	if c.p.paused {
		c.p.parked = append(c.p.parked, c)
		return
	}
	if w.turns++; w.turns > maxTurns {
		w.fail("somebody spins: %d turns in %v", w.turns, w.now)
		return
	}
	c.woken = false
	w.cur = c
	_, more := c.next()
	w.cur = nil
	if !more {
		c.done = true
		c.p.live--
	}
}

// wake makes a waiting coroutine go on.
func (w *world) wake(c *coro) {
	if c == nil || c.done || c.woken {
		return
	}
	c.woken = true
	w.ready = append(w.ready, c)
}

// errKilled unwinds the coroutines of a process that is killed.
var errKilled = errors.New("killed")

// block gives the turn away until somebody wakes the coroutine.
func (w *world) block() {
	if !w.cur.yield(struct{}{}) {
		panic(errKilled)
	}
}
