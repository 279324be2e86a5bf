package main

import (
	"context"
	"iter"
	"runtime/debug"
	"sync"
	"time"

	"lockstep/replication"
)

// proc is a process: what its coroutines wait in ends with it. It is the replication.Runtime of what runs in it.
type proc struct {
	w      *world
	name   string
	dead   bool
	paused bool
	parked []*coro
	coros  []*coro
	live   int

	// work tells how long the I/O took that was done since the last call, or a part of it. The next coroutine that takes a
	// lock waits so long: which is the one that did it, on its way back.
	work func() time.Duration

	// jitter is how long a coroutine waits, at most, now and then, where it takes a lock: the machine has other work.
	jitter time.Duration

	// The clock: it showed local at the moment since, and runs at rate.
	local, since time.Duration
	rate         float64
}

func (w *world) newProc(name string) *proc {
	p := &proc{w: w, name: name, rate: 1, since: w.now, local: w.now}
	w.procs = append(w.procs, p)
	return p
}

// shut kills what still runs, so that a run leaves nothing behind.
func (w *world) shut() {
	for _, p := range w.procs {
		p.kill()
	}
}

// kill ends the process at once.
func (p *proc) kill() {
	if p.w.cur != nil {
		panic("sim: kill within a coroutine")
	}
	if p.dead {
		return
	}
	p.dead = true
	for _, c := range p.coros {
		if !c.done {
			c.done = true
			c.stop()
		}
	}
	p.coros, p.parked = nil, nil
}

func (p *proc) pause() { p.paused = true }

func (p *proc) resume() {
	p.paused = false
	p.w.ready = append(p.w.ready, p.parked...)
	p.parked = nil
}

// setRate makes the clock run faster or slower.
func (p *proc) setRate(rate float64) {
	p.local, p.since, p.rate = p.clock(), p.w.now, rate
	for i, e := range p.w.events {
		if e.p == p {
			e.at = p.w.now + p.real(e.due-p.local)
		}
		p.w.rise(i) // what is before i is in order
	}
}

// timer wakes the running coroutine after d on the process's clock.
func (p *proc) timer(d time.Duration) *event {
	return p.w.plan(p.real(d), &event{co: p.w.cur, p: p, due: p.clock() + d})
}

func (p *proc) clock() time.Duration {
	return p.local + time.Duration(float64(p.w.now-p.since)*p.rate)
}

// real is how long a wait takes that this process's clock measures: no less, lest somebody who waits for a reading waits
// again and again for the rest of a nanosecond.
func (p *proc) real(d time.Duration) time.Duration {
	if p.rate == 1 {
		return d
	}
	return time.Duration(float64(d)/p.rate) + 2
}

// Go implements replication.Runtime.
func (p *proc) Go(f func()) {
	if p.dead {
		return
	}
	c := &coro{p: p}
	c.next, c.stop = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if e := recover(); e != nil && e != errKilled {
				p.w.tr("%s", debug.Stack())
				p.w.fail("panic in %s: %v", p.name, e)
			}
		}()
		c.yield = yield
		f()
	})
	if p.live*2+32 < len(p.coros) {
		alive := p.coros[:0]
		for _, o := range p.coros {
			if !o.done {
				alive = append(alive, o)
			}
		}
		clear(p.coros[len(alive):])
		p.coros = alive
	}
	p.coros = append(p.coros, c)
	p.live++
	p.w.wake(c)
}

// Now implements replication.Runtime.
func (p *proc) Now() time.Time { return epoch.Add(p.clock()) }

// sleep lets d pass on this process's clock.
func (p *proc) sleep(d time.Duration) {
	if p.dead {
		panic(errKilled)
	}
	p.timer(d)
	p.w.block()
}

// mutex is a lock. Taking it is where a coroutine may lose its turn.
type mutex struct {
	p       *proc
	held    bool
	waiting []*coro
}

// Mutex implements replication.Runtime.
func (p *proc) Mutex() sync.Locker { return &mutex{p: p} }

// turnChance: one Lock in so many gives the turn away.
const turnChance = 24

func (m *mutex) Lock() {
	p := m.p
	w := p.w
	if p.dead || w.cur == nil { // the scheduler only looks
		return
	}
	if p.work != nil {
		for d := p.work(); d > 0; d = p.work() {
			p.sleep(d)
		}
	}
	if w.one(turnChance) {
		if p.jitter > 0 && w.one(3) {
			p.sleep(w.between(0, p.jitter))
		} else {
			w.wake(w.cur)
			w.block()
		}
	}
	for m.held {
		m.waiting = append(m.waiting, w.cur)
		w.block()
	}
	m.held = true
}

func (m *mutex) Unlock() {
	if m.p.dead || m.p.w.cur == nil {
		return
	}
	if !m.held {
		panic("sim: unlock of a lock that nobody holds")
	}
	m.held = false
	if len(m.waiting) > 0 {
		c := m.waiting[0]
		m.waiting = m.waiting[1:]
		m.p.w.wake(c)
	}
}

type cond struct {
	p       *proc
	l       sync.Locker
	waiting []*coro
}

// Cond implements replication.Runtime.
func (p *proc) Cond(l sync.Locker) replication.Cond { return &cond{p: p, l: l} }

func (c *cond) Wait() {
	if c.p.dead {
		panic(errKilled)
	}
	c.waiting = append(c.waiting, c.p.w.cur)
	c.l.Unlock()
	c.p.w.block()
	c.l.Lock()
}

func (c *cond) Signal() {
	if len(c.waiting) > 0 {
		c.p.w.wake(c.waiting[0])
		c.waiting = c.waiting[1:]
	}
}

func (c *cond) Broadcast() {
	for _, co := range c.waiting {
		c.p.w.wake(co)
	}
	c.waiting = nil
}

type alarm struct {
	p       *proc
	rung    bool
	waiting *coro
}

// Alarm implements replication.Runtime.
func (p *proc) Alarm() replication.Alarm { return &alarm{p: p} }

func (a *alarm) Ring() {
	a.rung = true
	a.p.w.wake(a.waiting)
}

// Wait does not notice that ctx ends before its time is over: nobody is in a hurry then.
func (a *alarm) Wait(ctx context.Context, d time.Duration) bool {
	if a.p.dead {
		panic(errKilled)
	}
	w := a.p.w
	if !a.rung && ctx.Err() == nil {
		a.waiting = w.cur
		var e *event
		if d < 1<<60 {
			e = a.p.timer(d)
		}
		w.block()
		if e != nil {
			e.cancel()
		}
		a.waiting = nil
	}
	rung := a.rung
	a.rung = false
	return rung
}
