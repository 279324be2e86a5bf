package gateway

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// pipeline keeps a number of requests under way on a connection, for ever the same ones.
type pipeline struct {
	conn  *nbd.Conn
	reqs  []blockdev.Request
	spare []*blockdev.Request // the handler's own
	left  int                 // the handler's own, while a run is on
	under int
	done  chan struct{} // a run is over
	quit  chan struct{}
	rnd   *rand.Rand
}

func newPipeline(tb testing.TB, addr string, op blockdev.Op, depth, length int) *pipeline {
	tb.Helper()
	conn, err := nbd.Dial(tb.Context(), addr, nbd.ClientOptions{Export: "vol0"})
	if err != nil {
		tb.Fatal(err)
	}
	p := &pipeline{
		conn: conn, reqs: make([]blockdev.Request, depth), done: make(chan struct{}, 1), quit: make(chan struct{}),
		rnd: rand.New(rand.NewPCG(1, 2)),
	}
	for i := range p.reqs {
		p.reqs[i] = blockdev.Request{Op: op, Length: uint32(length), Data: make([]byte, length)}
	}
	conn.Start(p)
	tb.Cleanup(func() { conn.Close(); <-p.quit })
	return p
}

// run does n requests.
func (p *pipeline) run(n int) {
	p.left, p.under = n, 0
	p.spare = p.spare[:0]
	for i := range p.reqs {
		p.spare = append(p.spare, &p.reqs[i])
	}
	p.next(p.spare)
	<-p.done
}

func (p *pipeline) next(free []*blockdev.Request) {
	free = free[:min(len(free), p.left)]
	for _, r := range free {
		r.Offset = p.rnd.Uint64N(fakeDiskBytes/uint64(r.Length)) * uint64(r.Length)
	}
	p.left -= len(free)
	p.under += len(free)
	if len(free) > 0 {
		p.conn.Submit(free)
	}
}

func (p *pipeline) Complete(done []*blockdev.Request) {
	for _, r := range done {
		if r.Err != nil {
			panic(r.Err)
		}
	}
	p.under -= len(done)
	p.next(done)
	if p.under == 0 {
		p.done <- struct{}{}
	}
}

func (p *pipeline) Closed(error) { close(p.quit) }

// TestARequestAllocatesNothing is over the whole path: client, gateway, node and back.
func TestARequestAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("sync.Pool forgets on purpose under the race detector")
	}
	c := startCluster(t, 1, nil)
	for _, op := range []blockdev.Op{blockdev.OpRead, blockdev.OpWrite} {
		p := newPipeline(t, c.addr, op, 32, 4096)
		p.run(2000)
		const requests = 1000
		if n := testing.AllocsPerRun(20, func() { p.run(requests) }) / requests; n > 0.05 {
			t.Errorf("%v: %.2f allocations per request, want none", op, n)
		}
	}
}

// BenchmarkHop is what the gateway costs: the same load directly at the node, and through a gateway.
func BenchmarkHop(b *testing.B) {
	c := startCluster(b, 1, nil)
	for _, shape := range []struct {
		op            blockdev.Op
		depth, length int
	}{
		{blockdev.OpWrite, 1, 4096}, {blockdev.OpRead, 1, 4096},
		{blockdev.OpWrite, 32, 4096}, {blockdev.OpRead, 32, 4096},
		{blockdev.OpWrite, 8, 128 << 10}, {blockdev.OpRead, 8, 128 << 10},
	} {
		for _, way := range []struct{ name, addr string }{{"direct", c.nodes[0].addr}, {"gateway", c.addr}} {
			b.Run(fmt.Sprintf("%v/%d/qd%d/%s", shape.op, shape.length, shape.depth, way.name), func(b *testing.B) {
				p := newPipeline(b, way.addr, shape.op, shape.depth, shape.length)
				b.SetBytes(int64(shape.length))
				b.ReportAllocs()
				b.ResetTimer()
				p.run(b.N)
			})
		}
	}
}
