package replication

import (
	"context"
	"math/rand/v2"
	"testing"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// loadClient keeps a number of requests in flight on a device.
type loadClient struct {
	done chan *blockdev.Request
}

func (l *loadClient) Complete(done []*blockdev.Request) {
	for _, q := range done {
		l.done <- q
	}
}

func (l *loadClient) Abort(error) {}

// attach waits for the volume to be safe and attaches to its primary's device.
func attach(tb testing.TB, c *cluster, name string, members int, l *loadClient) (*Replica, blockdev.Session) {
	tb.Helper()
	v := c.safe(name, members)
	r := c.nodes[nodeOf(v, v.View.Primary).Node].replicaOf(v.Volume.ID)
	s, err := r.Attach(context.Background(), blockdev.SessionID{}, l)
	if err != nil {
		tb.Fatal(err)
	}
	return r, s
}

// run does n requests, depth of them in flight.
func (l *loadClient) run(tb testing.TB, s blockdev.Session, reqs []*blockdev.Request, n int, next func(*blockdev.Request)) {
	tb.Helper()
	burst := make([]*blockdev.Request, 0, len(reqs))
	flight := 0
	for _, q := range reqs[:min(n, len(reqs))] {
		next(q)
		burst = append(burst, q)
		flight++
		n--
	}
	for flight > 0 {
		s.Submit(burst)
		burst = burst[:0]
		q := <-l.done
		for more := true; more; {
			if q.Err != nil {
				tb.Fatal(q.Err)
			}
			flight--
			if n > 0 {
				next(q)
				burst = append(burst, q)
				flight++
				n--
			}
			select {
			case q = <-l.done:
			default:
				more = false
			}
		}
	}
}

func requests(op blockdev.Op, depth, bytes int) []*blockdev.Request {
	reqs := make([]*blockdev.Request, depth)
	for i := range reqs {
		reqs[i] = &blockdev.Request{Op: op, Length: uint32(bytes), Data: make([]byte, bytes)}
	}
	return reqs
}

func benchmarkDevice(b *testing.B, members int, sync viewsvc.SyncMode, op blockdev.Op, depth, bytes int) {
	c := startCluster(b, members)
	c.create(viewsvc.Volume{Name: "vol0", Size: 256 << 20, Copies: members, MinCopies: 1, Sync: sync})
	l := &loadClient{done: make(chan *blockdev.Request, depth)}
	_, s := attach(b, c, "vol0", members, l)
	defer s.Close()
	reqs := requests(op, depth, bytes)
	rng := rand.New(rand.NewPCG(1, 2))
	b.SetBytes(int64(bytes))
	b.ReportAllocs()
	b.ResetTimer()
	l.run(b, s, reqs, b.N, func(q *blockdev.Request) { q.Offset = uint64(rng.IntN(256<<20/bytes) * bytes) })
	b.StopTimer()
}

// The whole of ordering, mirroring and committing, between two replicas in this process over loopback.
func BenchmarkWrite4KAlwaysQD1(b *testing.B) {
	benchmarkDevice(b, 2, viewsvc.SyncAlways, blockdev.OpWrite, 1, 4096)
}
func BenchmarkWrite4KAlwaysQD32(b *testing.B) {
	benchmarkDevice(b, 2, viewsvc.SyncAlways, blockdev.OpWrite, 32, 4096)
}
func BenchmarkWrite4KFlushQD32(b *testing.B) {
	benchmarkDevice(b, 2, viewsvc.SyncFlush, blockdev.OpWrite, 32, 4096)
}
func BenchmarkRead4KQD1(b *testing.B) {
	benchmarkDevice(b, 2, viewsvc.SyncAlways, blockdev.OpRead, 1, 4096)
}
func BenchmarkRead4KQD32(b *testing.B) {
	benchmarkDevice(b, 2, viewsvc.SyncAlways, blockdev.OpRead, 32, 4096)
}

// A primary that has nobody to ask.
func BenchmarkRead4KAloneQD32(b *testing.B) {
	benchmarkDevice(b, 1, viewsvc.SyncAlways, blockdev.OpRead, 32, 4096)
}

// A request costs no memory in steady state; a frame may cost a little.
func TestARequestAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const depth, n = 64, 6400
	for _, op := range []blockdev.Op{blockdev.OpWrite, blockdev.OpRead} {
		t.Run(op.String(), func(t *testing.T) {
			c := startCluster(t, 2)
			c.create(viewsvc.Volume{Name: "vol0", Size: 64 << 20, Copies: 2, MinCopies: 1, Sync: viewsvc.SyncAlways})
			l := &loadClient{done: make(chan *blockdev.Request, depth)}
			_, s := attach(t, c, "vol0", 2, l)
			defer s.Close()
			reqs := requests(op, depth, 4096)
			i := uint64(0)
			next := func(q *blockdev.Request) {
				i++
				q.Offset = i * 4096 % (64 << 20)
			}
			l.run(t, s, reqs, n, next) // the pools fill
			allocs := testing.AllocsPerRun(1, func() { l.run(t, s, reqs, n, next) })
			if per := allocs / n; per > 0.5 {
				t.Errorf("%v: %.2f allocations per request", op, per)
			} else {
				t.Logf("%v: %.3f allocations per request, both replicas and the view server included", op, per)
			}
		})
	}
}
