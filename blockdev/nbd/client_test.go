package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// fakeServer runs the server's end of each connection by hand.
func fakeServer(t *testing.T, serve func(r *raw)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.SetDeadline(time.Now().Add(wireTimeout))
			serve(&raw{t, nc})
			nc.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// takeAsk reads what a client asks for all at once, and refuses structured replies.
func (r *raw) takeAsk() {
	for range 3 {
		r.takeOption()
	}
	r.answer(optStructured, errUnsup)
	r.answer(optSetMeta, errInvalid)
}

// letInStructured accepts a client to an export of 1 MiB, with structured replies and base:allocation as number 7.
func (r *raw) letInStructured() {
	r.greet()
	for range 3 {
		r.takeOption()
	}
	r.answer(optStructured, repAck)
	r.answer(optSetMeta, repMeta, uint32(7), "base:allocation")
	r.answer(optSetMeta, repAck)
	r.answer(optGo, repInfo, infoExport(wantFlags))
	r.answer(optGo, repAck)
}

// greet is the server's side of hello.
func (r *raw) greet() {
	r.send(uint64(magicNBD), uint64(magicOption), uint16(3))
	r.want(uint32(3))
}

// takeOption reads an option as a server.
func (r *raw) takeOption() (option uint32, data []byte) {
	r.want(uint64(magicOption))
	option = binary.BigEndian.Uint32(r.read(4))
	return option, r.read(int(binary.BigEndian.Uint32(r.read(4))))
}

func (r *raw) answer(option, kind uint32, parts ...any) {
	data := wire(parts...)
	r.send(uint64(magicReply), option, kind, uint32(len(data)), data)
}

// letIn accepts a client to an export of 1 MiB.
func (r *raw) letIn() {
	r.greet()
	r.takeAsk()
	r.answer(optGo, repInfo, infoExport(wantFlags))
	r.answer(optGo, repAck)
}

// takeRequest reads a request as a server.
func (r *raw) takeRequest() (kind uint16, cookie uint64, payload []byte) {
	r.want(uint32(magicRequest))
	p := r.read(24)
	kind, cookie = binary.BigEndian.Uint16(p[2:]), binary.BigEndian.Uint64(p[4:])
	if kind == cmdWrite {
		payload = r.read(int(binary.BigEndian.Uint32(p[20:])))
	}
	return kind, cookie, payload
}

// recorder is a Handler that keeps what it gets.
type recorder struct {
	mu     sync.Mutex
	done   []*blockdev.Request
	after  bool // something was completed after Closed
	closed chan error
	hook   func(done []*blockdev.Request)
}

func newRecorder() *recorder { return &recorder{closed: make(chan error, 2)} }

func (h *recorder) Complete(done []*blockdev.Request) {
	h.mu.Lock()
	h.done = append(h.done, done...)
	h.after = h.after || len(h.closed) > 0
	hook := h.hook
	h.mu.Unlock()
	if hook != nil {
		hook(done)
	}
}

func (h *recorder) Closed(err error) { h.closed <- err }

func (h *recorder) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.done)
}

// Dial's errors tell apart what a caller must do different things about.
func TestDialErrorsAreTyped(t *testing.T) {
	for name, c := range map[string]struct {
		serve func(r *raw)
		want  error
	}{
		"hangs up at once":  {func(r *raw) {}, nbd.ErrHungUp},
		"hangs up after GO": {func(r *raw) { r.greet(); r.takeAsk() }, nbd.ErrHungUp},
		"hangs up before":   {func(r *raw) { r.greet() }, nbd.ErrHungUp},
		"unknown export":    {func(r *raw) { r.greet(); r.takeAsk(); r.answer(optGo, errUnknown, "none") }, nbd.ErrUnknownExport},
		"not an NBD server": {func(r *raw) { r.send("SSH-2.0-OpenSSH_9.2p1 Debian-2") }, nbd.ErrProtocol},
		"old handshake":     {func(r *raw) { r.send(uint64(magicNBD), uint64(0x420281861253), make([]byte, 136)) }, nbd.ErrProtocol},
		"reply of 4 GiB": {func(r *raw) {
			r.greet()
			r.takeAsk()
			r.send(uint64(magicReply), uint32(optGo), uint32(repInfo), uint32(1<<32-1))
		}, nbd.ErrProtocol},
		"reply to another":     {func(r *raw) { r.greet(); r.takeAsk(); r.answer(optInfo, repAck) }, nbd.ErrProtocol},
		"bad reply magic":      {func(r *raw) { r.greet(); r.takeAsk(); r.send(uint64(1), uint32(optGo), uint32(repAck), uint32(0)) }, nbd.ErrProtocol},
		"ack without the size": {func(r *raw) { r.greet(); r.takeAsk(); r.answer(optGo, repAck) }, nbd.ErrProtocol},
		"short information":    {func(r *raw) { r.greet(); r.takeAsk(); r.answer(optGo, repInfo, uint16(0), uint64(1)) }, nbd.ErrProtocol},
		"a negative size": {func(r *raw) {
			r.greet()
			r.takeAsk()
			r.answer(optGo, repInfo, uint16(0), uint64(1<<63), wantFlags)
			r.answer(optGo, repAck)
		}, nbd.ErrProtocol},
		"information for ever": {func(r *raw) {
			r.greet()
			r.takeAsk()
			for range 100 {
				r.nc.Write(wire(uint64(magicReply), uint32(optGo), uint32(repInfo), uint32(2), uint16(9)))
			}
		}, nbd.ErrProtocol},
		"unexpected reply type": {func(r *raw) { r.greet(); r.takeAsk(); r.answer(optGo, repServer) }, nbd.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := nbd.Dial(context.Background(), fakeServer(t, c.serve), nbd.ClientOptions{Export: "a"})
			if !errors.Is(err, c.want) {
				t.Fatalf("Dial returned %v, want %v", err, c.want)
			}
		})
	}
	var refusal *nbd.OptionError
	_, err := nbd.Dial(context.Background(), serveRefusing(t), nbd.ClientOptions{Export: "forbidden"})
	if !errors.As(err, &refusal) || refusal.Text != "no access on Sundays" || errors.Is(err, nbd.ErrUnknownExport) {
		t.Fatalf("refusal: %v", err)
	}
	if _, err := nbd.Dial(context.Background(), serveRefusing(t), nbd.ClientOptions{Export: "passive"}); !errors.Is(err, nbd.ErrHungUp) {
		t.Fatalf("export of a replica that is not primary: %v", err)
	}
}

// A server that says nothing is given up on, at the timeout or when the caller loses patience.
func TestDialEndsInTime(t *testing.T) {
	silent := fakeServer(t, func(r *raw) { io.Copy(io.Discard, r.nc) })
	_, err := nbd.Dial(context.Background(), silent, nbd.ClientOptions{HandshakeTimeout: 20 * time.Millisecond})
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("timeout: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := nbd.Dial(ctx, silent, nbd.ClientOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("context: %v", err)
	}
}

// A server that does not know GO is asked by EXPORT_NAME.
func TestClientFallsBackToExportName(t *testing.T) {
	addr := fakeServer(t, func(r *raw) {
		r.greet()
		r.takeAsk()
		r.answer(optGo, errUnsup)
		if option, name := r.takeOption(); option != optExportName || string(name) != "a" {
			t.Errorf("option %d %q", option, name)
		}
		r.send(uint64(testSize), wantFlags)
		_, cookie, _ := r.takeRequest()
		r.send(uint32(magicSimple), uint32(0), cookie)
	})
	d := openDisk(t, addr, "a")
	if d.Size() != testSize {
		t.Errorf("size %d", d.Size())
	}
	if err := d.Flush(); err != nil {
		t.Error(err)
	}
}

// List gives names and descriptions; a Unix socket is an address like another.
func TestListOverUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, nbd.ServerOptions{Exporter: refusing{nbd.Export{Name: "a", Description: "about a", Device: memory(t, testSize)}}})
	list, err := nbd.List(context.Background(), "unix:"+path, nbd.ClientOptions{})
	if err != nil || len(list) != 2 || list[0].Name != "a" || list[0].Description != "about a" || list[1].Name != "b" {
		t.Fatalf("%v, %v", list, err)
	}
	if err := openDisk(t, "unix:"+path, "a").Flush(); err != nil {
		t.Fatal(err)
	}
}

// NBD errors come back as blockdev's, and the connection goes on.
func TestServerErrorsAreMapped(t *testing.T) {
	cases := map[uint32]error{
		eperm: blockdev.ErrReadOnly, eio: blockdev.ErrIO, 12: blockdev.ErrIO, einval: blockdev.ErrInvalid,
		enospc: blockdev.ErrNoSpace, 75: blockdev.ErrInvalid, enotsup: nbd.ErrNotSupported, 4711: blockdev.ErrInvalid, 0: nil,
	}
	errnos := make(chan uint32, 1)
	addr := fakeServer(t, func(r *raw) {
		r.letIn()
		for e := range errnos {
			_, cookie, _ := r.takeRequest()
			r.send(uint32(magicSimple), e, cookie)
		}
	})
	d := openDisk(t, addr, "a")
	for e, want := range cases {
		errnos <- e
		if err := d.Flush(); !errors.Is(err, want) {
			t.Errorf("errno %d: %v, want %v", e, err, want)
		}
	}
	errnos <- 108
	if err := d.Flush(); !errors.Is(err, nbd.ErrHungUp) {
		t.Errorf("ESHUTDOWN: %v, must end the connection", err)
	}
	close(errnos)
}

// What a server may not send ends the connection: Closed is called once, the request is not completed.
func TestProtocolViolationsEndTheConnection(t *testing.T) {
	for name, violate := range map[string]func(r *raw, cookie uint64){
		"bad magic":          func(r *raw, cookie uint64) { r.send(uint32(magicSimple+1), uint32(0), cookie) },
		"structured reply":   func(r *raw, cookie uint64) { r.send(uint32(magicStructured), uint16(1), uint16(0), cookie, uint32(0)) },
		"slot that is free":  func(r *raw, cookie uint64) { r.send(uint32(magicSimple), uint32(0), cookie+1) },
		"slot out of range":  func(r *raw, cookie uint64) { r.send(uint32(magicSimple), uint32(0), cookie|0xffffffff) },
		"other generation":   func(r *raw, cookie uint64) { r.send(uint32(magicSimple), uint32(0), cookie+1<<32) },
		"end":                func(r *raw, cookie uint64) {},
		"end within a reply": func(r *raw, cookie uint64) { r.send(uint32(magicSimple), uint32(0)) },
		"end within data":    func(r *raw, cookie uint64) { r.send(uint32(magicSimple), uint32(0), cookie, make([]byte, 100)) },
	} {
		t.Run(name, func(t *testing.T) {
			addr := fakeServer(t, func(r *raw) {
				r.letIn()
				_, cookie, _ := r.takeRequest()
				violate(r, cookie)
			})
			c, err := nbd.Dial(context.Background(), addr, nbd.ClientOptions{})
			if err != nil {
				t.Fatal(err)
			}
			h := newRecorder()
			c.Start(h)
			if err := c.Submit([]*blockdev.Request{{Op: blockdev.OpRead, Length: 4096, Data: make([]byte, 4096)}}); err != nil {
				t.Fatal(err)
			}
			err = within(t, "Closed", h.closed)
			if !errors.Is(err, nbd.ErrProtocol) && !errors.Is(err, nbd.ErrHungUp) {
				t.Errorf("Closed(%v)", err)
			}
			if h.count() != 0 {
				t.Error("the request was completed")
			}
			if err := c.Submit([]*blockdev.Request{{Op: blockdev.OpFlush}}); !errors.Is(err, nbd.ErrClosed) {
				t.Errorf("Submit after the end: %v", err)
			}
			c.Close()
			if len(h.closed) != 0 {
				t.Error("Closed was called twice")
			}
		})
	}
}

// A second answer to a request is found out, though its slot is in use again.
func TestSecondAnswerIsAProtocolError(t *testing.T) {
	addr := fakeServer(t, func(r *raw) {
		r.letIn()
		_, first, _ := r.takeRequest()
		r.send(uint32(magicSimple), uint32(0), first)
		r.takeRequest()
		r.send(uint32(magicSimple), uint32(0), first)
	})
	c, err := nbd.Dial(context.Background(), addr, nbd.ClientOptions{MaxInFlight: 1})
	if err != nil {
		t.Fatal(err)
	}
	h := newRecorder()
	c.Start(h)
	c.Submit([]*blockdev.Request{{Op: blockdev.OpFlush}, {Op: blockdev.OpFlush}})
	if err := within(t, "Closed", h.closed); !errors.Is(err, nbd.ErrProtocol) || h.count() != 1 {
		t.Fatalf("%v after %d completions", err, h.count())
	}
}

// Submit does not wait for a server that does not read, and Close ends it all at once.
func TestStuckServerHoldsUpNeitherSubmitNorClose(t *testing.T) {
	release := make(chan struct{})
	addr := fakeServer(t, func(r *raw) { r.letIn(); <-release })
	defer close(release)
	c, err := nbd.Dial(context.Background(), addr, nbd.ClientOptions{MaxInFlight: 64})
	if err != nil {
		t.Fatal(err)
	}
	h := newRecorder()
	c.Start(h)
	payload := make([]byte, 1<<20)
	submitted := make(chan struct{})
	go func() {
		for range 100 {
			c.Submit([]*blockdev.Request{{Op: blockdev.OpWrite, Length: 1 << 20, Data: payload}})
		}
		close(submitted)
	}()
	within(t, "Submit to a stuck server", submitted)
	c.Close()
	if err := within(t, "Closed", h.closed); !errors.Is(err, nbd.ErrClosed) {
		t.Fatalf("Closed(%v)", err)
	}
}

// An answer to a request that the server cannot have read is no answer: a write that was not sent is not acknowledged.
func TestAnswerToAnUnsentRequestIsAProtocolError(t *testing.T) {
	const n = 64
	for name, first := range map[string]int{"never begun": n - 1, "sent in part": 0} {
		t.Run(name, func(t *testing.T) {
			submitted, over := make(chan struct{}), make(chan struct{})
			addr := fakeServer(t, func(r *raw) {
				r.letIn()
				<-submitted // without reading any of it: what fits in the sockets' buffers is sent
				for slot := first; slot < n; slot++ {
					r.nc.Write(wire(uint32(magicSimple), uint32(0), 1<<16|uint64(slot)))
				}
				<-over
			})
			defer close(over)
			c, err := nbd.Dial(context.Background(), addr, nbd.ClientOptions{})
			if err != nil {
				t.Fatal(err)
			}
			h := newRecorder()
			c.Start(h)
			for range n {
				c.Submit([]*blockdev.Request{{Op: blockdev.OpWrite, Length: 1 << 20, Data: make([]byte, 1<<20)}})
			}
			close(submitted)
			if err := within(t, "Closed", h.closed); !errors.Is(err, nbd.ErrProtocol) {
				t.Errorf("Closed(%v)", err)
			}
			if done := h.count(); done > 24 || first > 0 && done > 0 {
				t.Errorf("%d of %d writes acknowledged, unsent ones among them", done, n)
			}
		})
	}
}

// More requests than slots wait their turn, in order; a handler may submit from Complete.
func TestRequestsWaitForSlotsInOrder(t *testing.T) {
	const n = 500
	dev := newPuppet(n * 4096)
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	c, err := nbd.Dial(context.Background(), addr, nbd.ClientOptions{MaxInFlight: 7})
	if err != nil {
		t.Fatal(err)
	}
	h := newRecorder()
	last := &blockdev.Request{Op: blockdev.OpFlush}
	all := make(chan struct{})
	h.hook = func(done []*blockdev.Request) {
		if done[len(done)-1] == last {
			close(all)
		} else if h.count() == n {
			c.Submit([]*blockdev.Request{last})
		}
	}
	c.Start(h)
	defer func() { c.Close(); within(t, "Closed", h.closed) }()
	var burst []*blockdev.Request
	for i := range n {
		burst = append(burst, &blockdev.Request{Op: blockdev.OpTrim, Offset: uint64(i) * 4096, Length: 4096})
	}
	if err := c.Submit(burst); err != nil {
		t.Fatal(err)
	}
	s := within(t, "attach", dev.attached)
	for i := 0; i < n; {
		got := within(t, "submit", s.arrived)
		for _, r := range got {
			if r.Offset != uint64(i)*4096 {
				t.Fatalf("request %d came as number %d", r.Offset/4096, i)
			}
			i++
		}
		s.client.Complete(got)
	}
	s.client.Complete(s.take(t, 1))
	within(t, "completion of all", all)
}

// A slot whose answer overtook the end of its sending is used for the next request that waits: nothing gets stuck when
// all the others are answered by then.
func TestSlotsThatBecomeFreeLateAreUsed(t *testing.T) {
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "disk", Device: memory(t, testSize)}}})
	l := newLoader(t, addr, 2)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		burst := requests(blockdev.OpWrite, 16, 4096)
		for range 500 {
			l.run(burst, 16)
		}
	}()
	within(t, "completion of all requests", finished)
}

// The client is at home on a connection that is not a socket, and writes arrive whole.
func TestClientAndServerOverAPipe(t *testing.T) {
	srv, err := nbd.NewServer(nbd.ServerOptions{Exporter: exports{{Name: "a", Device: memory(t, 4<<20)}}})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	near, far := net.Pipe()
	go srv.ServeConn(far)
	c, err := nbd.NewConn(context.Background(), near, nbd.ClientOptions{Export: "a"})
	if err != nil {
		t.Fatal(err)
	}
	d := nbd.NewDisk(c)
	defer d.Close()
	want, got := bytes.Repeat([]byte("0123456789abcdef"), 1<<16), make([]byte, 1<<20)
	if _, err := d.WriteAt(want, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(got, 4096); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read differs (%v)", err)
	}
}

// The kernel's end of a socket pair has no handshake to do.
func TestServeTransmissionSkipsTheHandshake(t *testing.T) {
	e := nbd.Export{Name: "a", Device: memory(t, testSize)}
	srv, err := nbd.NewServer(nbd.ServerOptions{Exporter: exports{e}})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	near, far := net.Pipe()
	near.SetDeadline(time.Now().Add(wireTimeout))
	served := make(chan error, 1)
	go func() { served <- srv.ServeTransmission(far, e) }()
	r := &raw{t, near}
	r.request(0, cmdRead, 1, 0, 16)
	r.wantSimple(0, 1, make([]byte, 16))
	near.Close()
	if err := within(t, "end", served); err != nil {
		t.Fatal(err)
	}
}
