package nbd_test

import (
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
		option(optExportName, []byte("a")), option(optStructured, nil), option(5, nil), option(optGo, wire(uint32(9), "a", uint16(0))),
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
	hello := wire(uint64(magicNBD), uint64(magicOption), uint16(3))
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

// Whatever a server answers, every request is completed at most once, and Closed comes once, last.
func FuzzClientReplies(f *testing.F) {
	const n = 8
	// The client's first cookies are known: generation 1, slots from 0.
	cookie := func(slot int) uint64 { return 1<<32 | uint64(slot) }
	f.Add(wire(uint32(magicSimple), uint32(0), cookie(0), make([]byte, 512)))
	f.Add(wire(uint32(magicSimple), uint32(0), cookie(1), uint32(magicSimple), uint32(eio), cookie(2)))
	f.Add(wire(uint32(magicSimple), uint32(0), cookie(1), uint32(magicSimple), uint32(0), cookie(1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		hello := wire(uint64(magicNBD), uint64(magicOption), uint16(3),
			uint64(magicReply), uint32(optGo), uint32(repInfo), uint32(12), infoExport(wantFlags),
			uint64(magicReply), uint32(optGo), uint32(repAck), uint32(0))
		near, far := net.Pipe()
		go func() {
			near.Write(hello)
			// Answer only when all requests are here.
			io.ReadFull(near, make([]byte, 4+16+len(goData("a", 3))+28*n))
			near.Write(data)
			near.Close()
		}()
		c, err := nbd.NewConn(context.Background(), far, nbd.ClientOptions{Export: "a"})
		if err != nil {
			t.Fatal(err)
		}
		h := newRecorder()
		var burst []*blockdev.Request
		for i := range n {
			r := &blockdev.Request{Op: blockdev.OpFlush}
			if i%2 == 0 {
				r = &blockdev.Request{Op: blockdev.OpRead, Length: 512, Data: make([]byte, 512)}
			}
			burst = append(burst, r)
		}
		c.Start(h)
		c.Submit(burst)
		within(t, "Closed", h.closed)
		seen := map[*blockdev.Request]bool{}
		for _, r := range h.done {
			if seen[r] {
				t.Fatal("a request was completed twice")
			}
			seen[r] = true
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
	if c := <-got; c != 1<<32 {
		t.Fatalf("first cookie %#x", c)
	}
}
