package nbd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// Each command gets the reply that doc.go promises, on a disk of 1 MiB of 0x5a; afterwards the stream is in step.
func TestCommands(t *testing.T) {
	const end = testSize
	fill := bytes.Repeat([]byte{0x5a}, 1<<10)
	type fault struct {
		name             string
		flags, kind      uint16
		offset           uint64
		length           uint32
		payload          []byte
		errno            uint32
		data             []byte
		readOnly, noFast bool
	}
	for _, c := range []fault{
		{name: "read", kind: cmdRead, offset: 3, length: 5, data: fill[:5]},
		{name: "read up to the end", kind: cmdRead, offset: end - 1024, length: 1024, data: fill},
		{name: "read past the end", kind: cmdRead, offset: end - 1023, length: 1024, errno: einval},
		{name: "read at the end", kind: cmdRead, offset: end, length: 1, errno: einval},
		{name: "read at the last offset", kind: cmdRead, offset: 1<<64 - 1, length: 1, errno: einval},
		{name: "read that wraps around", kind: cmdRead, offset: 1<<64 - 512, length: 1024, errno: einval},
		{name: "read of 4 GiB", kind: cmdRead, length: 1<<32 - 1, errno: einval},
		{name: "read over the limit", kind: cmdRead, length: 64<<20 + 1, errno: einval},
		{name: "read of nothing", kind: cmdRead, errno: einval},
		{name: "read with FUA, which means nothing", kind: cmdRead, flags: flagFUA, length: 1, data: fill[:1]},
		{name: "read with DF, not negotiated", kind: cmdRead, flags: flagDF, length: 1, errno: einval},
		{name: "read with an unknown flag", kind: cmdRead, flags: 1 << 15, length: 1, errno: einval},
		{name: "write", kind: cmdWrite, offset: 7, length: 3, payload: []byte("abc")},
		{name: "write with FUA", kind: cmdWrite, flags: flagFUA, offset: 7, length: 3, payload: []byte("abc")},
		{name: "write up to the end", kind: cmdWrite, offset: end - 3, length: 3, payload: []byte("abc")},
		{name: "write past the end", kind: cmdWrite, offset: end - 2, length: 3, payload: []byte("abc"), errno: enospc},
		{name: "write that wraps around", kind: cmdWrite, offset: 1<<64 - 2, length: 3, payload: []byte("abc"), errno: enospc},
		{name: "write of nothing", kind: cmdWrite, errno: einval},
		{name: "write over the limit", kind: cmdWrite, length: 64<<20 + 1, payload: make([]byte, 64<<20+1), errno: einval},
		{name: "write with an unknown flag", kind: cmdWrite, flags: flagNoHole, length: 3, payload: []byte("abc"), errno: einval},
		{name: "write to a read-only disk", kind: cmdWrite, length: 3, payload: []byte("abc"), errno: eperm, readOnly: true},
		{name: "flush", kind: cmdFlush},
		{name: "flush with FUA", kind: cmdFlush, flags: flagFUA},
		{name: "flush with a range", kind: cmdFlush, offset: 1, errno: einval},
		{name: "flush with a length", kind: cmdFlush, length: 1, errno: einval},
		{name: "flush of a read-only disk", kind: cmdFlush, readOnly: true},
		{name: "trim", kind: cmdTrim, length: 4096},
		{name: "trim past the end", kind: cmdTrim, offset: end, length: 1, errno: einval},
		{name: "trim of a read-only disk", kind: cmdTrim, length: 1, errno: eperm, readOnly: true},
		{name: "cache", kind: cmdCache, length: end},
		{name: "cache past the end", kind: cmdCache, length: end + 1, errno: einval},
		{name: "write zeroes", kind: cmdZeroes, length: end},
		{name: "write zeroes with FUA and NO_HOLE", kind: cmdZeroes, flags: flagFUA | flagNoHole, length: 1},
		{name: "write zeroes past the end", kind: cmdZeroes, length: end + 1, errno: enospc},
		{name: "write zeroes of 4 GiB", kind: cmdZeroes, length: 1<<32 - 1, errno: enospc},
		{name: "write zeroes to a read-only disk", kind: cmdZeroes, length: 1, errno: eperm, readOnly: true},
		{name: "fast zeroes", kind: cmdZeroes, flags: flagFast, length: 4096},
		{name: "fast zeroes that are not fast", kind: cmdZeroes, flags: flagFast, length: 4096, errno: enotsup, noFast: true},
		{name: "fast zeroes without holes", kind: cmdZeroes, flags: flagFast | flagNoHole, length: 4096, errno: enotsup},
		{name: "fast zeroes past the end", kind: cmdZeroes, flags: flagFast, offset: end, length: 1, errno: enospc},
		{name: "block status, not negotiated", kind: 7, length: 1, errno: einval},
		{name: "unknown command", kind: 4711, offset: 1, length: 1 << 31, errno: einval},
	} {
		for _, structured := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s structured=%v", c.name, structured), func(t *testing.T) {
				dev := memory(t, testSize)
				_, addr := serve(t, nbd.ServerOptions{Exporter: exports{
					{Name: "rw", Device: dev, FastZero: !c.noFast}, {Name: "a", Device: dev, FastZero: !c.noFast, ReadOnly: c.readOnly}}})
				if _, err := openDisk(t, addr, "rw").WriteAt(bytes.Repeat(fill, end/len(fill)), 0); err != nil {
					t.Fatal(err)
				}
				r := dialRaw(t, addr)
				r.hello(3)
				if structured {
					r.option(optStructured, nil)
					r.wantReply(optStructured, repAck)
				}
				r.option(optGo, goData("a"))
				r.reply(optGo)
				r.wantReply(optGo, repAck)
				if structured && c.flags == flagDF { // is negotiated now
					c.errno, c.data = 0, fill[:1]
				}

				const cookie = 0x0123456789abcdef
				r.request(c.flags, c.kind, cookie, c.offset, c.length, c.payload)
				switch {
				case structured && c.errno != 0:
					r.wantErrorChunk(c.errno, cookie)
				case !structured || c.kind != cmdRead:
					r.wantSimple(c.errno, cookie, c.data)
				default:
					r.want(uint32(magicStructured), uint16(1), uint16(1), uint64(cookie), 8+c.length, c.offset, c.data)
				}
				r.request(0, cmdFlush, 1, 0, 0)
				r.wantSimple(0, 1)
				r.request(0, cmdDisc, 0, 0, 0)
				r.wantEnd()
			})
		}
	}
}

// attachPuppet serves a puppet and attaches to it.
func attachPuppet(t *testing.T, size uint64, opts nbd.ServerOptions) (*raw, *puppetSession) {
	t.Helper()
	dev := newPuppet(size)
	opts.Exporter = exports{{Name: "a", Device: dev}}
	_, addr := serve(t, opts)
	r := dialRaw(t, addr)
	r.attach("a")
	return r, within(t, "attach", dev.attached)
}

// A device's errors become the NBD errors of the table.
func TestDeviceErrorsAreMapped(t *testing.T) {
	r, s := attachPuppet(t, testSize, nbd.ServerOptions{})
	for i, c := range []struct {
		err   error
		kind  uint16
		errno uint32
	}{
		{blockdev.ErrOutOfRange, cmdRead, einval},
		{blockdev.ErrOutOfRange, cmdTrim, einval},
		{blockdev.ErrOutOfRange, cmdZeroes, enospc},
		{blockdev.ErrInvalid, cmdTrim, einval},
		{blockdev.ErrReadOnly, cmdTrim, eperm},
		{blockdev.ErrNoSpace, cmdZeroes, enospc},
		{blockdev.ErrIO, cmdRead, eio},
		{errors.New("something else"), cmdRead, eio},
	} {
		r.request(0, c.kind, uint64(i), 0, 512)
		reqs := s.take(t, 1)
		reqs[0].Err = fmt.Errorf("wrapped: %w", c.err)
		s.client.Complete(reqs)
		r.wantSimple(c.errno, uint64(i))
	}
}

// The range is checked before the device sees it, with offsets at which sums overflow too.
func TestDeviceNeverSeesRequestsOutOfRange(t *testing.T) {
	r, s := attachPuppet(t, testSize, nbd.ServerOptions{})
	n := uint64(0)
	for _, kind := range []uint16{cmdRead, cmdTrim, cmdCache, cmdZeroes} {
		for _, offset := range []uint64{testSize - 511, testSize, 1 << 63, 1<<64 - 512, 1<<64 - 1} {
			r.request(0, kind, n, offset, 512)
			errno := uint32(einval)
			if kind == cmdZeroes {
				errno = enospc
			}
			r.wantSimple(errno, n)
			n++
		}
	}
	r.request(0, cmdFlush, n, 0, 0)
	if got := s.take(t, 1); got[0].Op != blockdev.OpFlush {
		t.Fatalf("the device got %v at %d", got[0].Op, got[0].Offset)
	}
}

// What the device is given is what the client sent, and flags that mean something arrive.
func TestRequestsReachTheDeviceWhole(t *testing.T) {
	r, s := attachPuppet(t, testSize, nbd.ServerOptions{})
	r.request(flagFUA, cmdWrite, 1, 4096, 3, "abc")
	r.request(flagFUA, cmdRead, 2, 8192, 512)
	r.request(flagNoHole, cmdZeroes, 3, 0, 1<<20)
	r.request(flagFUA, cmdFlush, 4, 0, 0)
	got := s.take(t, 4)
	for i, want := range []blockdev.Request{
		{Op: blockdev.OpWrite, Flags: blockdev.FlagFUA, Offset: 4096, Length: 3, Data: []byte("abc")},
		{Op: blockdev.OpRead, Offset: 8192, Length: 512, Data: got[1].Data[:512:512]},
		{Op: blockdev.OpWriteZeroes, Flags: blockdev.FlagNoHole, Length: 1 << 20},
		{Op: blockdev.OpFlush},
	} {
		g := got[i]
		if g.Op != want.Op || g.Flags != want.Flags || g.Offset != want.Offset || g.Length != want.Length || !bytes.Equal(g.Data, want.Data) || g.Err != nil {
			t.Errorf("request %d: %v %v %d+%d %q", i, g.Op, g.Flags, g.Offset, g.Length, g.Data)
		}
	}
}

// Replies leave in the order of completion, whatever the order of requests.
func TestRepliesMayOvertake(t *testing.T) {
	r, s := attachPuppet(t, testSize, nbd.ServerOptions{})
	for i := range 128 {
		r.request(0, cmdRead, uint64(i), uint64(i)*512, 512)
	}
	reqs := s.take(t, 128)
	for i := range reqs {
		for j := range reqs[i].Data {
			reqs[i].Data[j] = byte(i)
		}
	}
	slices.Reverse(reqs)
	s.client.Complete(reqs[:1])
	r.wantSimple(0, 127, bytes.Repeat([]byte{127}, 512))
	s.client.Complete(reqs[1:])
	for i := 126; i >= 0; i-- {
		r.wantSimple(0, uint64(i), bytes.Repeat([]byte{byte(i)}, 512))
	}
}

// Requests that arrive together are submitted together.
func TestOneReadMakesOneBurst(t *testing.T) {
	r, s := attachPuppet(t, testSize, nbd.ServerOptions{})
	var p []byte
	for i := range 20 {
		p = append(p, wire(uint32(magicRequest), uint16(0), uint16(cmdWrite), uint64(i), uint64(i)*512, uint32(512), make([]byte, 512))...)
	}
	r.send(p)
	if burst := within(t, "submit", s.arrived); len(burst) != 20 {
		t.Fatalf("a burst of %d, want 20", len(burst))
	}
}

// N4: a request that failed because the session is over gets no reply, nor does any completed with it.
func TestClosedSessionIsNeverAnNBDError(t *testing.T) {
	r, s := attachPuppet(t, testSize, nbd.ServerOptions{})
	r.request(0, cmdWrite, 1, 0, 1, "x")
	r.request(0, cmdWrite, 2, 0, 1, "x")
	reqs := s.take(t, 2)
	reqs[1].Err = fmt.Errorf("demoted: %w", blockdev.ErrSessionClosed)
	s.client.Complete(reqs)
	r.wantEnd()
	within(t, "Session.Close", s.closed)
}

// Abort closes the connection without an answer to anything, from whatever goroutine.
func TestAbortClosesWithoutAnswers(t *testing.T) {
	r, s := attachPuppet(t, testSize, nbd.ServerOptions{})
	r.request(0, cmdWrite, 1, 0, 1, "x")
	s.take(t, 1)
	s.client.Abort(blockdev.ErrSessionClosed)
	r.wantEnd()
	within(t, "Session.Close", s.closed)
}

// N5: after DISC, and after the client has shut only its sending side, what was received is still answered.
func TestOutstandingRequestsAreAnsweredAtTheEnd(t *testing.T) {
	for name, finish := range map[string]func(*raw){
		"disc":       func(r *raw) { r.request(0, cmdDisc, 0, 0, 0) },
		"half close": func(r *raw) { r.nc.(*net.TCPConn).CloseWrite() },
		"half close within a request": func(r *raw) {
			r.send(uint32(magicRequest), uint16(0), uint16(cmdWrite), uint64(9), uint64(0), uint32(100), "partial")
			r.nc.(*net.TCPConn).CloseWrite()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := attachPuppet(t, testSize, nbd.ServerOptions{})
			r.request(0, cmdRead, 1, 0, 4096)
			r.request(0, cmdFlush, 2, 0, 0)
			reqs := s.take(t, 2)
			finish(r)
			clear(reqs[0].Data)
			s.client.Complete(reqs[:1])
			r.wantSimple(0, 1, make([]byte, 4096))
			s.client.Complete(reqs[1:])
			r.wantSimple(0, 2)
			r.wantEnd()
			within(t, "Session.Close", s.closed)
		})
	}
}

// A request behind DISC is not taken.
func TestNothingIsTakenAfterDisc(t *testing.T) {
	r, s := attachPuppet(t, testSize, nbd.ServerOptions{})
	r.send(wire(uint32(magicRequest), uint16(0), uint16(cmdDisc), uint64(0), uint64(0), uint32(0),
		uint32(magicRequest), uint16(0), uint16(cmdTrim), uint64(1), uint64(0), uint32(512)))
	within(t, "Session.Close", s.closed)
	if len(s.arrived) != 0 {
		t.Fatal("a request behind DISC reached the device")
	}
}

// N1: after bytes that are no request the connection ends.
func TestBadRequestMagicEndsTheConnection(t *testing.T) {
	r, s := attachPuppet(t, testSize, nbd.ServerOptions{})
	p := make([]byte, 28)
	binary.BigEndian.PutUint32(p, magicRequest+1)
	r.send(p)
	r.wantEnd()
	within(t, "Session.Close", s.closed)
}
