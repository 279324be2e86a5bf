package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// loader keeps a number of requests under way on a connection.
type loader struct {
	conn   *nbd.Conn
	left   int // requests still to be submitted
	flying int
	round  chan struct{}
	closed chan struct{}
}

func newLoader(t testing.TB, addr string, depth int) *loader {
	t.Helper()
	c, err := nbd.Dial(context.Background(), addr, nbd.ClientOptions{Export: "disk", MaxInFlight: depth})
	if err != nil {
		t.Fatal(err)
	}
	l := &loader{conn: c, round: make(chan struct{}), closed: make(chan struct{})}
	c.Start(l)
	t.Cleanup(func() { c.Close(); <-l.closed })
	return l
}

func (l *loader) Complete(done []*blockdev.Request) {
	for _, r := range done {
		if r.Err != nil {
			panic(r.Err)
		}
	}
	again := min(len(done), l.left)
	l.left -= again
	l.flying += again - len(done)
	if again > 0 {
		l.conn.Submit(done[:again])
	}
	if l.flying == 0 {
		l.round <- struct{}{}
	}
}

func (l *loader) Closed(error) { close(l.closed) }

// run does n requests with those of burst under way at once.
func (l *loader) run(burst []*blockdev.Request, n int) {
	first := min(len(burst), n)
	l.flying, l.left = first, n-first
	if err := l.conn.Submit(burst[:first]); err != nil {
		panic(err)
	}
	<-l.round
}

func requests(op blockdev.Op, depth, size int) []*blockdev.Request {
	burst := make([]*blockdev.Request, depth)
	for i := range burst {
		burst[i] = &blockdev.Request{Op: op, Offset: uint64(i * size), Length: uint32(size), Data: make([]byte, size)}
	}
	return burst
}

// No request allocates, in neither the server nor the client.
func TestRequestsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const depth, n = 32, 3200
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "disk", Device: memory(t, 16<<20)}}})
	for _, op := range []blockdev.Op{blockdev.OpRead, blockdev.OpWrite} {
		l := newLoader(t, addr, depth)
		burst := requests(op, depth, 4096)
		l.run(burst, n)
		// A garbage collection in between empties the buffer pool; hence not exactly 0.
		if per := testing.AllocsPerRun(20, func() { l.run(burst, n) }) / n; per > 0.02 {
			t.Errorf("%v: %.3f allocations for each request", op, per)
		}
	}
}

func benchmark(b *testing.B, op blockdev.Op, depth, size int) {
	const disk = 64 << 20
	_, addr := serve(b, nbd.ServerOptions{Exporter: exports{{Name: "disk", Device: memory(b, disk)}}})
	fill(b, addr, disk)
	l := newLoader(b, addr, depth)
	burst := requests(op, depth, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	began := cpuTime(b)
	l.run(burst, b.N)
	b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N), "cpu-ns/req") // of both sides, kernel included
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

// fill writes data, as reads of zeroes are answered without.
func fill(b *testing.B, addr string, size int) {
	d := openDisk(b, addr, "disk")
	for at := 0; at < size; at += 16 << 20 {
		if _, err := d.WriteAt(bytes.Repeat([]byte("data"), 4<<20), int64(at)); err != nil {
			b.Fatal(err)
		}
	}
}

// cpuTime is what this process has used, in ns. It tells more than the time that passed when others work beside.
func cpuTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// Server and client in one process, over loopback, on a memory backend.
func BenchmarkServer(b *testing.B) {
	for _, op := range []blockdev.Op{blockdev.OpRead, blockdev.OpWrite} {
		for _, c := range []struct{ depth, size int }{{1, 4096}, {32, 4096}, {128, 4096}, {16, 128 << 10}, {4, 1 << 20}} {
			b.Run(fmt.Sprintf("%v/size=%dk/depth=%d", op, c.size>>10, c.depth), func(b *testing.B) {
				benchmark(b, op, c.depth, c.size)
			})
		}
	}
}
