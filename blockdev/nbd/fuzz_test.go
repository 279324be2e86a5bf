package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// talk sends data to a server's end of a pipe and closes it, while what comes back is read and dropped.
func talk(data []byte, serve func(net.Conn)) {
	near, far := net.Pipe()
	served := make(chan struct{})
	go func() { defer close(served); serve(far) }()
	go func() { near.Write(data); near.Close() }()
	io.Copy(io.Discard, near)
	<-served
}

func fuzzServer(f *testing.F) (*nbd.Server, nbd.Export) {
	e := nbd.Export{Name: "a", Device: memory(f, 64<<10)}
	srv, err := nbd.NewServer(nbd.ServerOptions{Exporter: exports{e}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { srv.Close() })
	return srv, e
}

// Whatever a client says, the server neither panics nor hangs.
func FuzzServerHandshake(f *testing.F) {
	srv, _ := fuzzServer(f)
	option := func(option uint32, data []byte) []byte {
		return wire(uint64(magicOption), option, uint32(len(data)), data)
	}
	for _, rest := range [][]byte{
		nil, option(optList, nil), option(optGo, goData("a", 1, 2, 3)), option(optInfo, goData("")), option(optAbort, nil),
		option(optExportName, []byte("a")), option(optStructured, nil), option(optListMeta, metaData("a")),
		append(option(optStructured, nil), option(optSetMeta, metaData("a", "base:allocation", "x:"))...), option(5, nil), option(optGo, wire(uint32(9), "a", uint16(0))),
	} {
		f.Add(append(wire(uint32(3)), rest...))
	}
	f.Fuzz(func(t *testing.T, data []byte) { talk(data, srv.ServeConn) })
}

// Whatever a client asks for, the server neither panics nor hangs, and the device never sees a request out of range (its
// memory would panic).
func FuzzServerTransmission(f *testing.F) {
	srv, e := fuzzServer(f)
	request := func(flags, kind uint16, offset uint64, length uint32, payload string) []byte {
		return wire(uint32(magicRequest), flags, kind, uint64(7), offset, length, payload)
	}
	f.Add(request(0, cmdRead, 0, 4096, ""))
	f.Add(append(request(1, cmdWrite, 4096, 5, "hello"), request(0, cmdFlush, 0, 0, "")...))
	f.Add(request(0, cmdWrite, 1<<63, 3, "abc"))
	f.Add(request(16, cmdZeroes, 0, 1<<16, ""))
	f.Add(request(8, cmdStatus, 0, 1<<16, ""))
	f.Add(append(request(0, cmdDisc, 0, 0, ""), request(0, cmdTrim, 0, 1, "")...))
	f.Fuzz(func(t *testing.T, data []byte) {
		talk(data, func(nc net.Conn) {
			if err := srv.ServeTransmission(nc, e); err != nil {
				t.Error(err)
			}
		})
	})
}

// Whatever a server greets and answers with, Dial returns.
func FuzzClientHandshake(f *testing.F) {
	info := wire(uint64(magicReply), uint32(optGo), uint32(repInfo), uint32(12), infoExport(wantFlags))
	hello := wire(uint64(magicNBD), uint64(magicOption), uint16(3),
		uint64(magicReply), uint32(optStructured), uint32(repAck), uint32(0),
		uint64(magicReply), uint32(optSetMeta), uint32(repMeta), uint32(19), uint32(7), "base:allocation",
		uint64(magicReply), uint32(optSetMeta), uint32(repAck), uint32(0))
	f.Add(wire(hello, info, uint64(magicReply), uint32(optGo), uint32(repAck), uint32(0)))
	f.Add(wire(hello, uint64(magicReply), uint32(optGo), uint32(errUnsup), uint32(0), uint64(testSize), wantFlags))
	f.Add(wire(hello, uint64(magicReply), uint32(optGo), uint32(errUnknown), uint32(4), "none"))
	f.Fuzz(func(t *testing.T, data []byte) {
		talk(data, func(nc net.Conn) {
			if c, err := nbd.NewConn(context.Background(), nc, nbd.ClientOptions{Export: "a"}); err == nil {
				c.Close()
			}
		})
	})
}

// Whatever a server answers, every request is completed at most once, Closed comes once, last, and a read that succeeds
// was filled.
func FuzzClientReplies(f *testing.F) {
	const n = 8
	// The client's first cookies are known: generation 1, slots from 0. Requests are in turn a read, a block status, a flush.
	cookie := func(slot int) uint64 { return 1<<16 | uint64(slot) }
	chunk := func(flags, kind uint16, slot int, parts ...any) []byte {
		data := wire(parts...)
		return wire(uint32(magicStructured), flags, kind, cookie(slot), uint32(len(data)), data)
	}
	simple := func(errno uint32, slot int) []byte { return wire(uint32(magicSimple), errno, cookie(slot)) }
	f.Add(true, wire(chunk(0, chunkHole, 0, uint64(0), uint32(100)), chunk(done, chunkData, 0, uint64(100), make([]byte, 412))))
	f.Add(true, wire(chunk(done, chunkStatus, 1, uint32(7), uint32(512), uint32(3)), simple(0, 2), chunk(done, chunkError, 3, uint32(5), uint16(1), "x")))
	f.Add(true, chunk(done, chunkData, 0, uint64(1), make([]byte, 511)))
	f.Add(false, wire(simple(0, 0), make([]byte, 512)))
	f.Add(false, wire(simple(0, 2), simple(eio, 5)))
	f.Add(false, wire(simple(0, 2), simple(0, 2)))
	f.Fuzz(func(t *testing.T, structured bool, data []byte) {
		near, far := net.Pipe()
		r := &raw{t, near}
		kinds := []blockdev.Op{blockdev.OpRead, blockdev.OpExtents, blockdev.OpFlush}
		var burst []*blockdev.Request
		for i := range n {
			q := &blockdev.Request{Op: kinds[i%3]}
			switch q.Op {
			case blockdev.OpRead:
				q.Length, q.Data = 512, bytes.Repeat([]byte{0xaa}, 512)
			case blockdev.OpExtents:
				if !structured {
					continue
				}
				q.Length, q.Extents = 512, make([]blockdev.Extent, 0, 4)
			}
			burst = append(burst, q)
		}
		go func() {
			if structured {
				r.letInStructured()
			} else {
				r.letIn()
			}
			io.ReadFull(near, make([]byte, 28*len(burst))) // answer only when all requests are here
			near.Write(data)
			near.Close()
		}()
		c, err := nbd.NewConn(context.Background(), far, nbd.ClientOptions{Export: "a"})
		if err != nil {
			t.Fatal(err)
		}
		h := newRecorder()
		c.Start(h)
		if err := c.Submit(burst); err != nil {
			t.Fatal(err)
		}
		within(t, "Closed", h.closed)
		seen := map[*blockdev.Request]bool{}
		for _, q := range h.done {
			if seen[q] {
				t.Fatal("a request was completed twice")
			}
			seen[q] = true
			var told uint32
			for _, e := range q.Extents {
				told += e.Length
			}
			switch {
			case q.Err != nil:
			case q.Op == blockdev.OpRead && bytes.Contains(q.Data, []byte{0xaa}) && !bytes.Contains(data, []byte{0xaa}):
				t.Fatal("a read succeeded with bytes that nobody sent")
			case q.Op == blockdev.OpExtents && (told == 0 || told > q.Length):
				t.Fatalf("extents of %d bytes", told)
			}
		}
		if h.after || len(h.closed) != 0 {
			t.Fatal("something came after Closed")
		}
	})
}

// Cookies that the fuzzing above relies on.
func TestFirstCookies(t *testing.T) {
	got := make(chan uint64, 1)
	addr := fakeServer(t, func(r *raw) {
		r.letIn()
		r.want(uint32(magicRequest))
		got <- binary.BigEndian.Uint64(r.read(24)[4:])
	})
	d := openDisk(t, addr, "a")
	d.Flush()
	if c := <-got; c != 1<<16 {
		t.Fatalf("first cookie %#x", c)
	}
}
