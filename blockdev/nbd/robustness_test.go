package nbd_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// N3: replies that nobody reads hold up neither the device's goroutine nor another client; and they are all there when
// the client reads at last.
func TestClientThatDoesNotReadHoldsUpNobody(t *testing.T) {
	const n, size = 64, 1 << 20
	dev := newPuppet(n * size)
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	stuck := dialRaw(t, addr)
	stuck.attach("a")
	s := within(t, "attach", dev.attached)
	for i := range n {
		stuck.request(0, cmdRead, uint64(i), uint64(i)*size, size)
	}
	completed := make(chan struct{})
	reqs := s.take(t, n)
	for i, r := range reqs {
		for j := range r.Data {
			r.Data[j] = byte(i)
		}
	}
	go func() {
		for i := range reqs {
			s.client.Complete(reqs[i : i+1])
		}
		close(completed)
	}()
	within(t, "Complete while the client does not read", completed)

	other := dialRaw(t, addr)
	other.attach("a")
	s2 := within(t, "attach", dev.attached)
	other.request(0, cmdFlush, 1, 0, 0)
	s2.client.Complete(s2.take(t, 1))
	other.wantSimple(0, 1)

	for i := range n {
		stuck.wantSimple(0, uint64(i))
		for j, b := range stuck.read(size) {
			if b != byte(i) {
				t.Fatalf("reply %d byte %d is %d", i, j, b)
			}
		}
	}
}

// N2: requests over the limits stay in the socket until replies have left, in number and in bytes.
func TestRequestsInFlightAreBounded(t *testing.T) {
	t.Run("number", func(t *testing.T) {
		r, s := attachPuppet(t, testSize, nbd.ServerOptions{MaxInFlight: 128})
		for i := range 200 {
			r.request(0, cmdTrim, uint64(i), 0, 512)
		}
		first := s.take(t, 128)
		wantQuiet(t, s)
		s.client.Complete(first[:1])
		next := s.take(t, 1)
		s.client.Complete(append(first[1:], next...))
		s.client.Complete(s.take(t, 71))
		r.read(200 * 16)
	})
	t.Run("bytes", func(t *testing.T) {
		r, s := attachPuppet(t, testSize, nbd.ServerOptions{MaxInFlightBytes: 64 << 20})
		r.nc.(*net.TCPConn).SetReadBuffer(64 << 10)
		for i := range 100 {
			r.request(0, cmdRead, uint64(i), 0, 1<<20)
		}
		first := s.take(t, 64)
		wantQuiet(t, s)
		// Completed is not enough: the payload is there until the socket has it, which takes a few MiB.
		s.client.Complete(first)
		var more []*blockdev.Request
		for quiet := false; !quiet; {
			select {
			case burst := <-s.arrived:
				more = append(more, burst...)
			case <-time.After(50 * time.Millisecond):
				quiet = true
			}
		}
		if len(more) > 24 {
			t.Fatalf("%d more requests of 1 MiB while 64 replies are unread", len(more))
		}
		go io.Copy(io.Discard, r.nc)
		s.client.Complete(append(more, s.take(t, 36-len(more))...))
	})
}

// N2: clients that do not read their replies can use up the server's memory for payload, but no more; others go on then,
// with one request at a time, and as before when they have read.
func TestBytesInFlightOfAllClientsAreBounded(t *testing.T) {
	const limit, size = 64 << 20, 1 << 20
	dev := newPuppet(testSize)
	srv, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}, MaxInFlightBytes: limit, MaxBytes: limit})
	var stuck []*raw
	var sessions []*puppetSession
	for range 3 {
		r := dialRaw(t, addr)
		r.attach("a")
		stuck, sessions = append(stuck, r), append(sessions, within(t, "attach", dev.attached))
		for i := range 100 {
			r.request(0, cmdRead, uint64(i), 0, size)
		}
	}
	held := func() (n int) {
		for _, s := range sessions {
			n += len(s.arrived) // bursts, which have requests
		}
		return n
	}
	until(t, "all is used", func() bool { return srv.Stats().InFlight >= limit && held() >= 3 })
	if n := srv.Stats().InFlight; n > limit+3*size {
		t.Fatalf("%d bytes in flight", n)
	}
	other := dialRaw(t, addr)
	other.attach("a")
	s := within(t, "attach", dev.attached)
	for i := range uint64(5) {
		other.request(0, cmdRead, 2*i, 0, size)
		other.request(0, cmdRead, 2*i+1, 0, size)
		s.client.Complete(s.take(t, 1))
		other.wantSimple(0, 2*i)
		other.read(size)
		s.client.Complete(s.take(t, 1))
		other.wantSimple(0, 2*i+1)
		other.read(size)
	}
	for i, r := range stuck {
		var reading sync.WaitGroup
		reading.Go(func() { r.read(100 * (16 + size)) })
		for left := 100; left > 0; {
			burst := within(t, "submit", sessions[i].arrived)
			sessions[i].client.Complete(burst)
			left -= len(burst)
		}
		reading.Wait()
	}
	until(t, "all is given back", func() bool { return srv.Stats().InFlight == 0 })
	for i := range uint64(20) {
		other.request(0, cmdRead, i, 0, size)
	}
	s.client.Complete(s.take(t, 20))
}

// wantQuiet checks that nothing more reaches the device. It can only wait a while: what is wrong here may pass, what is
// right never fails.
func wantQuiet(t *testing.T, s *puppetSession) {
	t.Helper()
	select {
	case burst := <-s.arrived:
		t.Fatalf("%d more requests than the limit allows", len(burst))
	case <-time.After(50 * time.Millisecond):
	}
}

// A Submit that blocks does not keep back the replies to earlier requests.
func TestRepliesLeaveWhileSubmitBlocks(t *testing.T) {
	dev := newPuppet(testSize)
	dev.block = make(chan struct{}, 2)
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	r := dialRaw(t, addr)
	r.attach("a")
	s := within(t, "attach", dev.attached)
	dev.block <- struct{}{}
	r.request(0, cmdTrim, 1, 0, 512)
	first := s.take(t, 1)
	r.request(0, cmdTrim, 2, 0, 512)
	second := s.take(t, 1) // Submit blocks now
	time.Sleep(time.Millisecond)
	s.client.Complete(first)
	r.wantSimple(0, 1)
	dev.block <- struct{}{}
	s.client.Complete(second)
	r.wantSimple(0, 2)
}

// leftUnread is a session of which back-pressure kept the second request unread for longer than MaxUnread.
func leftUnread(t *testing.T, id blockdev.SessionID) (*raw, *puppetSession) {
	t.Helper()
	dev := newPuppet(testSize)
	dev.block = make(chan struct{})
	e := nbd.Export{Name: "a", Device: dev, Session: id}
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{e}, MaxUnread: 20 * time.Millisecond})
	r := dialRaw(t, addr)
	r.attach("a")
	s := within(t, "attach", dev.attached)
	r.request(0, cmdTrim, 1, 0, 512)
	s.take(t, 1)
	r.request(0, cmdTrim, 2, 0, 512)
	time.Sleep(30 * time.Millisecond)
	close(dev.block)
	return r, s
}

// A connection that back-pressure kept unread for longer than MaxUnread is closed, and what came meanwhile is not
// ordered; replies of before are not owed either. A named session's next attachment fences the one before: it goes on.
func TestConnectionUnreadForTooLongIsClosed(t *testing.T) {
	r, s := leftUnread(t, blockdev.SessionID{})
	r.wantEnd()
	within(t, "Session.Close", s.closed)
	if len(s.arrived) != 0 {
		t.Fatal("a request that may be stale reached the device")
	}
}

func TestNamedSessionUnreadForLongGoesOn(t *testing.T) {
	_, s := leftUnread(t, blockdev.SessionID{Name: "s", Generation: 1})
	s.take(t, 1)
}

// slowClose is a puppet whose sessions take their time to close.
type slowClose struct {
	blockdev.Session
	closing chan struct{}
	closed  chan struct{}
}

func (s slowClose) Close() { close(s.closing); <-s.closed; s.Session.Close() }

type slowCloser struct {
	*puppet
	next chan slowClose
}

func (d slowCloser) Attach(ctx context.Context, id blockdev.SessionID, c blockdev.Client) (blockdev.Session, error) {
	inner, err := d.puppet.Attach(ctx, id, c)
	if err != nil {
		return nil, err
	}
	s := slowClose{inner, make(chan struct{}), make(chan struct{})}
	d.next <- s
	return s, nil
}

// N6: a payload buffer that a device still has is not given to another request, though its client is gone.
func TestBuffersAreNotReusedBeforeTheSessionIsFenced(t *testing.T) {
	dev := slowCloser{newPuppet(testSize), make(chan slowClose, 10)}
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	gone := dialRaw(t, addr)
	gone.attach("a")
	fence := within(t, "attach", dev.next)
	const n = 64
	for i := range n {
		gone.request(0, cmdRead, uint64(i), 0, 4096)
	}
	held := map[*byte]bool{}
	for _, r := range within(t, "attach", dev.attached).take(t, n) {
		held[unsafe.SliceData(r.Data)] = true
	}
	gone.nc.(*net.TCPConn).SetLinger(0) // reset: nothing to drain for
	gone.nc.Close()
	within(t, "Session.Close", fence.closing)

	other := dialRaw(t, addr)
	other.attach("a")
	fence2 := within(t, "attach", dev.next)
	s := within(t, "attach", dev.attached)
	for i := range 200 {
		other.request(0, cmdRead, uint64(i), 0, 4096)
		reqs := s.take(t, 1)
		if held[unsafe.SliceData(reqs[0].Data)] {
			t.Fatal("a request got a buffer that the device of a fenced session still has")
		}
	}
	close(fence.closed)
	close(fence2.closed)
}

// N1: random bytes, at every stage and cut anywhere, neither crash the server nor wedge it nor leak anything.
func TestGarbageHarmsNobody(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	s, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: memory(t, testSize)}}, MaxClients: 10000})
	before := openFiles(t)
	prefixes := [][]byte{
		nil,
		wire(uint32(3)),
		wire(uint32(3), uint64(magicOption), uint32(optGo)),
		wire(uint32(3), uint64(magicOption), uint32(optGo), uint32(7), goData("a")),
		wire(uint32(3), uint64(magicOption), uint32(optGo), uint32(7), goData("a"), uint32(magicRequest), uint16(0), uint16(1)),
		wire(uint32(3), uint64(magicOption), uint32(optGo), uint32(7), goData("a"), uint32(magicRequest), uint16(0), uint16(1),
			uint64(1), uint64(0), uint32(1<<20)),
	}
	n := 3000
	if testing.Short() {
		n = 300
	}
	work := make(chan []byte)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for p := range work {
				nc, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					continue
				}
				nc.Write(p)
				nc.(*net.TCPConn).SetLinger(0)
				nc.Close()
			}
		})
	}
	for range n {
		p := prefixes[rnd.IntN(len(prefixes))]
		junk := make([]byte, rnd.IntN(200))
		for i := range junk {
			junk[i] = byte(rnd.Uint32())
		}
		p = append(p[:len(p):len(p)], junk...)
		work <- p[:len(p)-rnd.IntN(min(len(p), 20)+1)]
	}
	close(work)
	wg.Wait()
	d := openDisk(t, addr, "a")
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	d.Close()
	until(t, "all connections are gone", func() bool { return s.Stats().Clients == 0 })
	until(t, "all descriptors are closed", func() bool { return openFiles(t) <= before })
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("cannot count open files: ", err)
	}
	return len(list)
}

// until polls for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(wireTimeout); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so after %v: %s", wireTimeout, what)
		}
	}
}

// Clients that vanish in the middle of everything, with requests under way and replies unread, leave the others alone.
func TestVanishingClientsLeaveOthersAlone(t *testing.T) {
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: memory(t, 4<<20)}}, MaxClients: 10000})
	d := openDisk(t, addr, "a")
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 20 {
				r := dialRaw(t, addr)
				r.attach("a")
				for j := range 20 {
					r.request(0, cmdRead, uint64(j), uint64(j)<<16, 256<<10)
				}
				r.send(uint32(magicRequest), uint16(0), uint16(cmdWrite), uint64(99), uint64(0), uint32(1<<20), make([]byte, n*100))
				if n%2 == i%2 {
					r.nc.(*net.TCPConn).SetLinger(0)
				}
				r.nc.Close()
			}
		})
	}
	p := make([]byte, 4096)
	for i := range 300 {
		if _, err := d.ReadAt(p, int64(i)*4096); err != nil {
			t.Error(err)
			break
		}
	}
	wg.Wait()
}

// Shutdown answers what it has, takes nothing new, and ends idle and half-open connections.
func TestShutdownAnswersWhatItHas(t *testing.T) {
	dev := newPuppet(testSize)
	srv, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	r := dialRaw(t, addr)
	r.attach("a")
	s := within(t, "attach", dev.attached)
	halfOpen := dialRaw(t, addr)
	halfOpen.hello(3)
	r.request(0, cmdTrim, 1, 0, 512)
	reqs := s.take(t, 1)
	done := make(chan error, 1)
	go func() { done <- srv.Shutdown(context.Background()) }()
	halfOpen.wantEnd()
	if _, err := net.Dial("tcp", addr); err == nil {
		until(t, "the listener is closed", func() bool { _, err := net.Dial("tcp", addr); return err != nil })
	}
	s.client.Complete(reqs)
	r.wantSimple(0, 1)
	r.wantEnd()
	if err := within(t, "end of Shutdown", done); err != nil {
		t.Fatal(err)
	}
}

// Shutdown gives up on a device that does not answer when its context ends.
func TestShutdownEndsWithItsContext(t *testing.T) {
	dev := newPuppet(testSize)
	srv, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	r := dialRaw(t, addr)
	r.attach("a")
	r.request(0, cmdTrim, 1, 0, 512)
	within(t, "attach", dev.attached).take(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Shutdown returned %v", err)
	}
	r.wantEnd()
}
