package nbd_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lockstep/blockdev"
)

// wireTimeout bounds every wait for the other side; a test that meets it has failed.
const wireTimeout = 10 * time.Second

// Numbers of the specification, written down again so that a slip in the package does not hide in its tests.
const (
	magicNBD        = 0x4e42444d41474943
	magicOption     = 0x49484156454f5054
	magicReply      = 0x3e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	optExportName, optAbort, optList, optStartTLS, optInfo, optGo = 1, 2, 3, 5, 6, 7
	optStructured, optListMeta, optSetMeta                        = 8, 9, 10

	repAck, repServer, repInfo, repMeta                      = 1, 2, 3, 4
	errTLSReqd, errTooBig                                    = 1<<31 | 5, 1<<31 | 9
	errUnsup, errPolicy, errInvalid, errUnknown, errShutdown = 1<<31 | 1, 1<<31 | 2, 1<<31 | 3, 1<<31 | 6, 1<<31 | 7

	cmdRead, cmdWrite, cmdDisc, cmdFlush, cmdTrim, cmdCache, cmdZeroes, cmdStatus = 0, 1, 2, 3, 4, 5, 6, 7

	flagFUA, flagNoHole, flagDF, flagReqOne, flagFast = 1, 2, 4, 8, 16

	chunkNone, chunkData, chunkHole, chunkStatus, chunkError, done = 0, 1, 2, 5, 1<<15 | 1, 1

	allocation = 1 // this server's number for base:allocation

	eperm, eio, einval, enospc, enotsup = 1, 5, 22, 28, 95
)

// raw is the client's end of a connection, bytes only.
type raw struct {
	t  testing.TB
	nc net.Conn
}

func dialRaw(t testing.TB, addr string) *raw {
	t.Helper()
	network, local := "tcp", strings.HasPrefix(addr, "unix:")
	if local {
		network = "unix"
	}
	nc, err := net.Dial(network, strings.TrimPrefix(addr, "unix:"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(wireTimeout))
	return &raw{t, nc}
}

// wire puts numbers side by side, big-endian, by their types' width.
func wire(parts ...any) []byte {
	var p []byte
	for _, part := range parts {
		switch v := part.(type) {
		case string:
			p = append(p, v...)
		case []byte:
			p = append(p, v...)
		default:
			var err error
			if p, err = binary.Append(p, binary.BigEndian, v); err != nil {
				panic(err)
			}
		}
	}
	return p
}

func (r *raw) send(parts ...any) {
	r.t.Helper()
	if _, err := r.nc.Write(wire(parts...)); err != nil {
		r.t.Fatalf("send: %v", err)
	}
}

func (r *raw) read(n int) []byte {
	r.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(r.nc, p); err != nil {
		r.t.Fatalf("read of %d bytes: %v", n, err)
	}
	return p
}

// want reads as many bytes as parts have, and compares.
func (r *raw) want(parts ...any) {
	r.t.Helper()
	want := wire(parts...)
	if got := r.read(len(want)); !slices.Equal(got, want) {
		r.t.Fatalf("got  %x\nwant %x", got, want)
	}
}

// wantEnd checks that the server closes the connection and says nothing before.
func (r *raw) wantEnd() {
	r.t.Helper()
	rest, err := io.ReadAll(r.nc)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		r.t.Fatal("server keeps the connection open")
	}
	if len(rest) > 0 {
		r.t.Fatalf("server sends %x before it closes", rest)
	}
}

// hello does the start of the handshake.
func (r *raw) hello(flags uint32) {
	r.t.Helper()
	r.want(uint64(magicNBD), uint64(magicOption), uint16(3))
	r.send(flags)
}

// byExportName gets in by EXPORT_NAME, whose answer has so many zeroes at its end, and makes one request.
func (r *raw) byExportName(flags uint32, zeroes int) {
	r.t.Helper()
	r.hello(flags)
	r.option(optExportName, []byte("disk"))
	r.want(uint64(diskSize))
	r.read(2)
	r.want(make([]byte, zeroes))
	r.request(0, cmdFlush, 1, 0, 0)
	r.wantSimple(0, 1)
}

func (r *raw) option(option uint32, data []byte) {
	r.t.Helper()
	r.send(uint64(magicOption), option, uint32(len(data)), data)
}

// reply reads one option reply.
func (r *raw) reply(option uint32) (kind uint32, data []byte) {
	r.t.Helper()
	r.want(uint64(magicReply), option)
	kind = binary.BigEndian.Uint32(r.read(4))
	return kind, r.read(int(binary.BigEndian.Uint32(r.read(4))))
}

// wantReply checks one option reply; the text of an error reply is free.
func (r *raw) wantReply(option, kind uint32, parts ...any) {
	r.t.Helper()
	got, data := r.reply(option)
	if got != kind || kind>>31 == 0 && !slices.Equal(data, wire(parts...)) {
		r.t.Fatalf("option %d: reply %#x %q, want %#x %q", option, got, data, kind, wire(parts...))
	}
}

// goData is the data of INFO and GO.
func goData(name string, infos ...uint16) []byte {
	return wire(uint32(len(name)), name, uint16(len(infos)), infos)
}

// attach goes through the handshake by GO.
func (r *raw) attach(name string) {
	r.t.Helper()
	r.hello(3)
	r.option(optGo, goData(name))
	if kind, data := r.reply(optGo); kind != repInfo {
		r.t.Fatalf("GO: reply %#x %q", kind, data)
	}
	r.wantReply(optGo, repAck)
}

func (r *raw) request(flags, kind uint16, cookie, offset uint64, length uint32, payload ...any) {
	r.t.Helper()
	r.send(uint32(magicRequest), flags, kind, cookie, offset, length, wire(payload...))
}

// wantSimple checks a simple reply.
func (r *raw) wantSimple(errno uint32, cookie uint64, payload ...any) {
	r.t.Helper()
	r.want(uint32(magicSimple), errno, cookie, wire(payload...))
}

// wantErrorChunk checks a structured error reply, which has a text for people.
func (r *raw) wantErrorChunk(errno uint32, cookie uint64) {
	r.t.Helper()
	r.want(uint32(magicStructured), uint16(1), uint16(1<<15|1), cookie)
	n := binary.BigEndian.Uint32(r.read(4))
	r.want(errno, uint16(n-6))
	if len(r.read(int(n-6))) == 0 {
		r.t.Fatalf("error %d without a text", errno)
	}
}

// wantChunk checks one chunk of a structured reply.
func (r *raw) wantChunk(flags, kind uint16, cookie uint64, parts ...any) {
	r.t.Helper()
	data := wire(parts...)
	r.want(uint32(magicStructured), flags, kind, cookie, uint32(len(data)), data)
}

// attachWith negotiates structured replies and a context before it attaches.
func (r *raw) attachWith(name string) {
	r.t.Helper()
	r.hello(3)
	r.option(optStructured, nil)
	r.wantReply(optStructured, repAck)
	r.option(optSetMeta, metaData(name, "base:allocation"))
	r.wantReply(optSetMeta, repMeta, uint32(allocation), "base:allocation")
	r.wantReply(optSetMeta, repAck)
	r.option(optGo, goData(name))
	r.reply(optGo)
	r.wantReply(optGo, repAck)
}

// metaData is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func metaData(name string, queries ...string) []byte {
	p := wire(uint32(len(name)), name, uint32(len(queries)))
	for _, q := range queries {
		p = append(p, wire(uint32(len(q)), q)...)
	}
	return p
}

// puppet is a device whose requests are completed by the test.
type puppet struct {
	size     uint64
	readOnly bool
	block    chan struct{} // its sessions'

	mu        sync.Mutex
	attachErr error
	attached  chan *puppetSession
}

func newPuppet(size uint64) *puppet {
	return &puppet{size: size, attached: make(chan *puppetSession, 100)}
}

func (p *puppet) Geometry() blockdev.Geometry {
	return blockdev.Geometry{Size: p.size, ReadOnly: p.readOnly}
}

func (p *puppet) Attach(_ context.Context, id blockdev.SessionID, c blockdev.Client) (blockdev.Session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.attachErr != nil {
		return nil, p.attachErr
	}
	s := &puppetSession{id: id, client: c, arrived: make(chan []*blockdev.Request, 1000), closed: make(chan struct{}), block: p.block}
	p.attached <- s
	return s, nil
}

// puppetSession shows the bursts that were submitted.
type puppetSession struct {
	id      blockdev.SessionID
	client  blockdev.Client
	arrived chan []*blockdev.Request
	closed  chan struct{}
	block   chan struct{} // if not nil, Submit waits for it
}

func (s *puppetSession) Submit(burst []*blockdev.Request) {
	s.arrived <- slices.Clone(burst)
	if s.block != nil {
		<-s.block
	}
}

func (s *puppetSession) Close() { close(s.closed) }

// take waits for n requests.
func (s *puppetSession) take(t testing.TB, n int) []*blockdev.Request {
	t.Helper()
	var all []*blockdev.Request
	for len(all) < n {
		select {
		case burst := <-s.arrived:
			all = append(all, burst...)
		case <-time.After(wireTimeout):
			t.Fatalf("device got %d requests, want %d", len(all), n)
		}
	}
	if len(all) > n {
		t.Fatalf("device got %d requests, want %d", len(all), n)
	}
	return all
}

// within waits for a channel.
func within[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(wireTimeout):
		t.Fatalf("%s did not happen", what)
		panic("unreachable")
	}
}
