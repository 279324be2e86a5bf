package gateway

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"lockstep/blockdev"
)

// model is a flight written for obviousness: one list of requests in order of arrival, and every rule a loop over it.
type model struct {
	all []*modelRequest
}

type modelRequest struct {
	req        *blockdev.Request
	lane       int
	since      int64
	sent       bool // a primary has it now
	sentBefore bool
	ghost      bool
}

func (m *modelRequest) overlaps(o *modelRequest) bool {
	a, b := m.req, o.req
	return a.Op.Mutates() && b.Op.Mutates() &&
		a.Offset < b.Offset+uint64(b.Length) && b.Offset < a.Offset+uint64(a.Length)
}

// waits is G3: an earlier request that overlaps is still there.
func (m *model) waits(r *modelRequest) bool {
	for _, o := range m.all {
		if o == r {
			return false
		}
		if o.overlaps(r) {
			return true
		}
	}
	panic("not in the model")
}

func (m *model) ready(lane int) (ready []*modelRequest) {
	for _, r := range m.all {
		if r.lane == lane && !r.sent && !r.ghost && !m.waits(r) {
			ready = append(ready, r)
		}
	}
	return ready
}

func (m *model) waiting() (waiting []*modelRequest) {
	for _, r := range m.all {
		if !r.ghost && m.waits(r) {
			waiting = append(waiting, r)
		}
	}
	return waiting
}

// drop takes a request out, or leaves its ghost (G5).
func (m *model) drop(r *modelRequest) {
	if r.sentBefore && r.req.Op.Mutates() {
		r.ghost, r.sent = true, false
		return
	}
	m.all = slices.DeleteFunc(m.all, func(o *modelRequest) bool { return o == r })
}

func (m *model) ofLane(lane int) (rs []*modelRequest) {
	for _, r := range m.all {
		if r.lane == lane {
			rs = append(rs, r)
		}
	}
	return rs
}

// TestFlightAgreesWithTheModel drives both with the same random events.
func TestFlightAgreesWithTheModel(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			play(t, 600, func(n int) int { return rnd.IntN(n) })
		})
	}
}

// FuzzFlight lets the fuzzer choose the events.
func FuzzFlight(f *testing.F) {
	f.Add([]byte("0123456789abcdefghijklmnopqrstuvwxyz"))
	f.Fuzz(func(t *testing.T, script []byte) {
		play(t, len(script), func(n int) int {
			if len(script) == 0 {
				return 0
			}
			c := int(script[0])
			script = script[1:]
			return c % n
		})
	})
}

const modelLanes = 3

// play runs steps events that choose (a number below n) decides.
func play(t *testing.T, steps int, choose func(n int) int) {
	var (
		f     flight
		lanes [modelLanes]lane
		m     model
		now   int64
		// ordered: nothing became ready in the lane out of order since its last rewind
		ordered [modelLanes]bool
	)
	take := func(k, limit int) {
		want := m.ready(k)
		got := f.take(&lanes[k], nil, limit)
		if len(got) != min(limit, len(want)) {
			t.Fatalf("lane %d: took %d, want %d of %d", k, len(got), limit, len(want))
		}
		for i, r := range got {
			j := slices.IndexFunc(want, func(w *modelRequest) bool { return w.req == r })
			if j < 0 {
				t.Fatalf("lane %d: took %v, which must wait", k, r)
			}
			if ordered[k] && want[j] != want[i] {
				t.Fatalf("lane %d: request %d out of order", k, i)
			}
			want[j].sent, want[j].sentBefore = true, true
		}
	}
	for range steps {
		now++
		k := choose(modelLanes)
		l := &lanes[k]
		waited := m.waiting()
		switch choose(12) {
		case 0, 1, 2, 3:
			ops := []blockdev.Op{blockdev.OpWrite, blockdev.OpWrite, blockdev.OpTrim, blockdev.OpWriteZeroes, blockdev.OpRead, blockdev.OpFlush}
			r := &blockdev.Request{Op: ops[choose(len(ops))]}
			if r.Op != blockdev.OpFlush {
				lengths := []uint32{4096, 4096, 512, 64 << 10, 100 << 10, 256 << 10, 1 << 20}
				r.Offset, r.Length = uint64(choose(200))*4096*uint64(1+choose(3)), lengths[choose(len(lengths))]
			}
			f.admit(l, r, now)
			m.all = append(m.all, &modelRequest{req: r, lane: k, since: now})
		case 4, 5:
			take(k, 1+choose(4))
		case 6, 7, 8, 9:
			var sent []*modelRequest
			for _, r := range m.all {
				if r.sent {
					sent = append(sent, r)
				}
			}
			if len(sent) == 0 {
				continue
			}
			r := sent[choose(len(sent))]
			f.complete(&lanes[r.lane], r.req)
			m.all = slices.DeleteFunc(m.all, func(o *modelRequest) bool { return o == r })
			ordered = [modelLanes]bool{}
		case 10:
			for _, r := range m.ofLane(k) {
				r.sent = false
			}
			f.rewind(l)
			ordered[k] = true
		case 11:
			switch choose(4) {
			case 0: // Timeout passed, without a connection
				before := now - int64(choose(20))
				var want []*blockdev.Request
				for _, r := range m.ofLane(k) {
					r.sent = false
					if r.since < before && !r.ghost {
						want = append(want, r.req)
						m.drop(r)
					}
				}
				if got := f.expire(l, before, nil); !slices.Equal(got, want) {
					t.Fatalf("expired %d requests, want %d", len(got), len(want))
				}
				ordered = [modelLanes]bool{}
				ordered[k] = true
			case 1: // the session ends
				for _, r := range m.ofLane(k) {
					if !r.ghost {
						m.drop(r)
					}
				}
				f.abandon(l)
				ordered = [modelLanes]bool{}
			case 2, 3: // it is fenced
				for _, r := range m.ofLane(k) {
					if r.ghost {
						m.all = slices.DeleteFunc(m.all, func(o *modelRequest) bool { return o == r })
					}
				}
				f.bury(l)
				ordered = [modelLanes]bool{}
			}
		}
		checkFlight(t, &f, &lanes, &m, waited)
	}
	// Everything can end: nothing waits for what is not there.
	for k := range lanes {
		f.bury(&lanes[k])
	}
	m.all = slices.DeleteFunc(m.all, func(r *modelRequest) bool { return r.ghost })
	for len(m.all) > 0 {
		ordered = [modelLanes]bool{}
		for k := range lanes {
			take(k, 1000)
		}
		var left []*modelRequest
		for _, r := range m.all {
			if r.sent {
				f.complete(&lanes[r.lane], r.req)
			} else {
				left = append(left, r)
			}
		}
		if len(left) == len(m.all) {
			t.Fatalf("%d requests wait for each other", len(left))
		}
		m.all = left
	}
	if f.index.taken != 0 || f.index.buckets != [numBuckets]index{} || f.index.wide != 0 {
		t.Fatal("the index of overlaps is not empty at the end")
	}
}

func takeWoken(f *flight) (woken []*lane) {
	for l := f.nextWoken(); l != nil; l = f.nextWoken() {
		woken = append(woken, l)
	}
	return woken
}

// checkFlight compares all that can be seen, and asserts G3 on what primaries have. waited are the requests that had to
// wait before the last event.
func checkFlight(t *testing.T, f *flight, lanes *[modelLanes]lane, m *model, waited []*modelRequest) {
	t.Helper()
	var writing []*modelRequest
	for _, r := range m.all {
		if r.ghost {
			writing = append(writing, r)
			continue
		}
		e := &f.entries[r.req.Scratch.LSN]
		want := stateReady
		switch {
		case r.sent:
			want = stateSent
			writing = append(writing, r)
		case m.waits(r):
			want = stateWaiting
		}
		if e.req != r.req || e.state != want || e.blockers < 0 {
			t.Fatalf("%v %d+%d: state %d with %d blockers, want state %d", r.req.Op, r.req.Offset, r.req.Length, e.state, e.blockers, want)
		}
	}
	for i, a := range writing {
		for _, b := range writing[i+1:] {
			if a.overlaps(b) {
				t.Fatalf("G3: %d+%d and %d+%d are both with a primary", a.req.Offset, a.req.Length, b.req.Offset, b.req.Length)
			}
		}
	}
	woken := takeWoken(f)
	for _, r := range waited {
		if slices.Contains(m.all, r) && !r.ghost && !m.waits(r) && !slices.Contains(woken, &lanes[r.lane]) {
			t.Fatalf("lane %d was not woken for %v %d+%d", r.lane, r.req.Op, r.req.Offset, r.req.Length)
		}
	}
	for k := range lanes {
		count, ghosts := 0, 0
		for _, r := range m.ofLane(k) {
			if r.ghost {
				ghosts++
			} else {
				count++
			}
		}
		if lanes[k].count != count || lanes[k].ghosts != ghosts {
			t.Fatalf("lane %d has %d requests and %d ghosts, want %d and %d", k, lanes[k].count, lanes[k].ghosts, count, ghosts)
		}
		since, ok := f.oldest(&lanes[k])
		i := slices.IndexFunc(m.all, func(r *modelRequest) bool { return r.lane == k && !r.ghost })
		if ok != (i >= 0) || ok && since != m.all[i].since {
			t.Fatalf("lane %d: oldest is %d, %v", k, since, ok)
		}
	}
}

func TestLaneIsWokenWhenItsRequestBecomesReadyElsewhere(t *testing.T) {
	var f flight
	var a, b lane
	write := func() *blockdev.Request { return &blockdev.Request{Op: blockdev.OpWrite, Offset: 8192, Length: 4096} }
	first, second, third := write(), write(), write()
	f.admit(&a, first, 0)
	f.admit(&b, second, 0)
	f.admit(&b, third, 0)
	if len(f.take(&a, nil, 9)) != 1 || len(f.take(&b, nil, 9)) != 0 {
		t.Fatal("the later write did not wait")
	}
	f.complete(&a, first)
	if w := takeWoken(&f); len(w) != 1 || w[0] != &b {
		t.Fatalf("woken: %v, want lane b once", w)
	}
	if got := f.take(&b, nil, 9); len(got) != 1 || got[0] != second {
		t.Fatalf("took %v, want the second write alone", got)
	}
	if w := takeWoken(&f); len(w) != 0 {
		t.Fatal("woken without cause")
	}
}

func TestFlightPanicsOnAnAnswerNobodyWaitsFor(t *testing.T) {
	for name, prepare := range map[string]func(f *flight, l *lane, r *blockdev.Request){
		"never sent":     func(f *flight, l *lane, r *blockdev.Request) { f.admit(l, r, 0) },
		"answered twice": func(f *flight, l *lane, r *blockdev.Request) { f.admit(l, r, 0); f.take(l, nil, 1); f.complete(l, r) },
		"rewound":        func(f *flight, l *lane, r *blockdev.Request) { f.admit(l, r, 0); f.take(l, nil, 1); f.rewind(l) },
		"abandoned":      func(f *flight, l *lane, r *blockdev.Request) { f.admit(l, r, 0); f.take(l, nil, 1); f.abandon(l) },
		"another lane's": func(f *flight, l *lane, r *blockdev.Request) {
			other := new(lane)
			f.admit(other, r, 0)
			f.take(other, nil, 1)
		},
		"unknown": func(f *flight, l *lane, r *blockdev.Request) { r.Scratch.LSN = 1 << 40 },
	} {
		t.Run(name, func(t *testing.T) {
			var f flight
			var l lane
			r := &blockdev.Request{Op: blockdev.OpWrite, Length: 4096}
			prepare(&f, &l, r)
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f.complete(&l, r)
		})
	}
}

func TestFlightAllocatesNothingInSteadyState(t *testing.T) {
	var f flight
	var l lane
	rnd := rand.New(rand.NewPCG(1, 2))
	reqs := make([]blockdev.Request, 128)
	for i := range reqs {
		// A few ranges, so that many requests have to wait; some are wide.
		reqs[i] = blockdev.Request{Op: blockdev.OpWrite, Offset: rnd.Uint64N(64) * 4096, Length: 4096 << rnd.IntN(7)}
	}
	sent := make([]*blockdev.Request, 0, len(reqs))
	round := func() {
		for i := range reqs {
			f.admit(&l, &reqs[i], 0)
		}
		for done := 0; done < len(reqs); done += len(sent) {
			sent = f.take(&l, sent[:0], len(reqs))
			for _, r := range sent {
				f.complete(&l, r)
			}
			f.nextWoken()
		}
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations for 128 requests, want none", n)
	}
}

// BenchmarkFlight is one request through the flight with depth others in it; the budget is 1 µs.
func BenchmarkFlight(b *testing.B) {
	for _, bench := range []struct {
		name   string
		depth  int
		length uint32
		next   func(rnd *rand.Rand, n int) uint64
	}{
		{"random4k/qd128", 128, 4096, func(rnd *rand.Rand, _ int) uint64 { return rnd.Uint64N(100<<30/4096) * 4096 }},
		{"random4k/qd4096", 4096, 4096, func(rnd *rand.Rand, _ int) uint64 { return rnd.Uint64N(100<<30/4096) * 4096 }},
		{"sequential4k/qd128", 128, 4096, func(_ *rand.Rand, n int) uint64 { return uint64(n) * 4096 }},
		{"sequential128k/qd32", 32, 128 << 10, func(_ *rand.Rand, n int) uint64 { return uint64(n) * (128 << 10) }},
		{"sequential1m/qd32", 32, 1 << 20, func(_ *rand.Rand, n int) uint64 { return uint64(n) * (1 << 20) }},
		{"sameblock4k/qd128", 128, 4096, func(*rand.Rand, int) uint64 { return 0 }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var f flight
			var l lane
			rnd := rand.New(rand.NewPCG(1, 2))
			reqs := make([]blockdev.Request, bench.depth)
			sent := make([]*blockdev.Request, 0, bench.depth)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				r := &reqs[n%bench.depth]
				if n >= bench.depth {
					sent = f.take(&l, sent[:0], 1)
					r = sent[0]
					f.complete(&l, r)
				}
				*r = blockdev.Request{Op: blockdev.OpWrite, Offset: bench.next(rnd, n), Length: bench.length}
				f.admit(&l, r, 0)
				n++
			}
		})
	}
}
