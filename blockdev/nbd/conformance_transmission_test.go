package nbd_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync"
	"testing"
	"time"
)

var transmissionCases = []conformanceCase{
	{must, "what was written is read", func(t testing.TB, p *peer) {
		r := p.attach(t)
		for _, c := range []struct{ off, n int }{{0, 512}, {4096, 4096}, {12345, 6789}, {diskSize - 1, 1}, {1 << 20, 1 << 20}} {
			data := bytes.Repeat([]byte{byte(c.n), 7, 9}, c.n)[:c.n]
			r.request(0, cmdWrite, 1, uint64(c.off), uint32(c.n), data)
			r.wantSimple(0, 1)
			r.request(0, cmdRead, 2, uint64(c.off), uint32(c.n))
			r.wantSimple(0, 2, data)
		}
	}},
	{must, "a structured read covers its range", func(t testing.TB, p *peer) {
		r, _ := p.attachStructured(t)
		want := make([]byte, 64<<10)
		copy(want[20<<10:], bytes.Repeat([]byte("data"), 1<<10))
		r.request(0, cmdZeroes, 1, 1<<20, 64<<10)
		r.wantSuccess(1)
		r.request(0, cmdWrite, 2, 1<<20+20<<10, 4<<10, want[20<<10:24<<10])
		r.wantSuccess(2)
		r.request(0, cmdRead, 3, 1<<20, 64<<10)
		if got, _ := r.content(3, 1<<20, 64<<10); !bytes.Equal(got, want) {
			t.Fatal("it reads otherwise")
		}
	}},
	{must, "a read with DF comes in one chunk", func(t testing.TB, p *peer) {
		r, _ := p.attachStructured(t)
		r.request(0, cmdZeroes, 1, 0, 64<<10)
		r.wantSuccess(1)
		r.request(0, cmdWrite, 2, 32<<10, 4, "data")
		r.wantSuccess(2)
		r.request(flagDF, cmdRead, 3, 0, 64<<10)
		if _, chunks := r.content(3, 0, 64<<10); chunks != 1 {
			t.Fatalf("%d chunks", chunks)
		}
	}},
	{must, "FUA is accepted on every command", func(t testing.TB, p *peer) {
		r := p.attach(t)
		r.request(flagFUA, cmdWrite, 1, 0, 4, "data")
		r.wantSimple(0, 1)
		r.request(flagFUA, cmdRead, 2, 0, 4)
		r.wantSimple(0, 2, "data")
		r.request(flagFUA, cmdFlush, 3, 0, 0)
		r.wantSimple(0, 3)
		r.request(flagFUA, cmdTrim, 4, 0, 4096)
		r.wantSimple(0, 4)
		r.request(flagFUA, cmdZeroes, 5, 0, 4096)
		r.wantSimple(0, 5)
	}},
	{must, "written zeroes read as zeroes", func(t testing.TB, p *peer) {
		r := p.attach(t)
		for i, flags := range []uint16{0, flagNoHole, flagFUA, flagNoHole | flagFUA} {
			r.request(0, cmdWrite, 1, 4000, 9000, bytes.Repeat([]byte{1}, 9000))
			r.wantSimple(0, 1)
			r.request(flags, cmdZeroes, uint64(i), 4001, 8998)
			r.wantSimple(0, uint64(i))
			r.request(0, cmdRead, 2, 4000, 9000)
			r.wantSimple(0, 2, []byte{1}, make([]byte, 8998), []byte{1})
		}
	}},
	{must, "FAST_ZERO is done or refused with ENOTSUP", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		if flags := r.goIn(); flags&(1<<11) == 0 {
			t.Fatal("it is not offered")
		}
		r.request(0, cmdWrite, 1, 0, 4, "data")
		r.wantSimple(0, 1)
		for _, flags := range []uint16{flagFast, flagFast | flagNoHole} {
			r.request(flags, cmdZeroes, 2, 0, 4096)
			r.want(uint32(magicSimple))
			if errno := binary.BigEndian.Uint32(r.read(4)); errno != 0 && errno != enotsup {
				t.Fatalf("errno %d", errno)
			}
			r.want(uint64(2))
		}
	}},
	{must, "DISC ends the connection after what is pending", func(t testing.TB, p *peer) {
		r := p.attach(t)
		r.send(request(0, cmdRead, 1, 0, 4096), request(0, cmdRead, 2, 8192, 4096), request(0, cmdDisc, 3, 0, 0))
		r.wantReads(4096, 1, 2)
		r.wantEnd()
	}},
	{must, "cookies come back as they were", func(t testing.TB, p *peer) {
		r := p.attach(t)
		for _, cookie := range []uint64{0, 1<<64 - 1, 0x67446698_67446698, 0x25609513 << 32} {
			r.request(0, cmdWrite, cookie, 0, 4, "data")
			r.wantSimple(0, cookie)
			r.request(0, cmdRead, cookie, 0, 4)
			r.wantSimple(0, cookie, "data")
		}
	}},
	{must, "zeroes and trims are not bound by the largest payload", func(t testing.TB, p *peer) {
		r := p.attach(t)
		r.request(0, cmdWrite, 1, diskSize-4, 4, "data")
		r.wantSimple(0, 1)
		r.request(0, cmdTrim, 2, 0, diskSize)
		r.wantSimple(0, 2)
		r.request(0, cmdZeroes, 3, 0, diskSize)
		r.wantSimple(0, 3)
		r.request(0, cmdRead, 4, diskSize-4, 4)
		r.wantSimple(0, 4, make([]byte, 4))
	}},
	{should, "BLOCK_STATUS past the end gets EINVAL", func(t testing.TB, p *peer) {
		r, _ := p.attachStructured(t)
		r.request(0, cmdStatus, 1, diskSize-1, 2)
		r.wantError(einval, 1)
		r.request(0, cmdFlush, 2, 0, 0)
		r.wantSuccess(2)
	}},
	{should, "reading past the end gets EINVAL", refuses(cmdRead, 0, diskSize-1, 2, einval)},
	{should, "reading at the end gets EINVAL", refuses(cmdRead, 0, diskSize, 1, einval)},
	{should, "reading at an offset that wraps around gets EINVAL", refuses(cmdRead, 0, 1<<64-1, 2, einval)},
	{should, "reading at a negative offset gets EINVAL", refuses(cmdRead, 0, 1<<63, 2, einval)},
	{should, "writing past the end gets ENOSPC", refuses(cmdWrite, 0, diskSize-1, 2, enospc)},
	{should, "writing at an offset that wraps around gets ENOSPC", refuses(cmdWrite, 0, 1<<64-1, 2, enospc)},
	{should, "writing zeroes past the end gets ENOSPC", refuses(cmdZeroes, 0, diskSize-1, 2, enospc)},
	{should, "trimming past the end gets EINVAL", refuses(cmdTrim, 0, diskSize-1, 2, einval)},
	{should, "caching past the end gets EINVAL", refuses(cmdCache, 0, diskSize-1, 2, einval)},
	{should, "an unknown command gets EINVAL", refuses(4711, 0, 0, 512, einval)},
	{should, "a read with an unknown flag gets EINVAL", refuses(cmdRead, 1<<15, 0, 512, einval)},
	{should, "a write with an unknown flag gets EINVAL and stays in step", refuses(cmdWrite, 1<<15, 0, 512, einval)},
	{should, "a write with a read's flag gets EINVAL and stays in step", refuses(cmdWrite, flagReqOne, 0, 512, einval)},
	{should, "a flush with an unknown flag gets EINVAL", refuses(cmdFlush, 1<<15, 0, 0, einval)},
	{should, "DF without structured replies gets EINVAL", refuses(cmdRead, flagDF, 0, 512, einval)},
	{should, "BLOCK_STATUS without its context gets EINVAL", refuses(cmdStatus, 0, 0, 512, einval)},
	{quality, "a refused write changes nothing", func(t testing.TB, p *peer) {
		r := p.attach(t)
		r.request(0, cmdWrite, 1, diskSize-512, 512, make([]byte, 512))
		r.wantSimple(0, 1)
		r.request(0, cmdWrite, 2, diskSize-512, 513, bytes.Repeat([]byte{1}, 513))
		r.wantError(enospc, 2)
		r.request(0, cmdRead, 3, diskSize-512, 512)
		r.wantSimple(0, 3, make([]byte, 512))
	}},
	{should, "a request of length 0 does not disconnect", func(t testing.TB, p *peer) {
		r := p.attach(t)
		for i, kind := range []uint16{cmdRead, cmdWrite, cmdTrim, cmdZeroes, cmdCache} {
			r.request(0, kind, uint64(i), 0, 0)
			r.anyError(uint64(i))
		}
		r.request(0, cmdFlush, 9, 0, 0)
		r.wantSimple(0, 9)
	}},
	{must, "a structured error is in form", func(t testing.TB, p *peer) {
		r, _ := p.attachStructured(t)
		r.request(0, cmdRead, 1, diskSize, 512)
		r.wantErrorChunkOf(einval, 1)
		r.request(0, cmdStatus, 2, diskSize, 512)
		r.wantErrorChunkOf(einval, 2)
		r.request(0, cmdFlush, 3, 0, 0)
		r.wantSuccess(3)
	}},
	{must, "BLOCK_STATUS covers a part of the range from its start", func(t testing.TB, p *peer) {
		r, context := p.attachStructured(t)
		for _, c := range []struct {
			off uint64
			n   uint32
		}{{0, diskSize}, {4096, 4096}, {512, 100}, {diskSize - 1, 1}} {
			r.request(0, cmdStatus, 1, c.off, c.n)
			var sum, last uint64
			list := r.status(1, context)
			for _, e := range list {
				last = sum
				sum += uint64(e[0])
			}
			if len(list) == 0 || last >= uint64(c.n) {
				t.Fatalf("%d bytes at %d: %v", c.n, c.off, list)
			}
		}
	}},
	{must, "BLOCK_STATUS with REQ_ONE tells one extent within the request", func(t testing.TB, p *peer) {
		r, context := p.attachStructured(t)
		r.request(flagReqOne, cmdStatus, 1, 100, 1000)
		if list := r.status(1, context); len(list) != 1 || list[0][0] > 1000 {
			t.Fatal(list)
		}
	}},
	{should, "BLOCK_STATUS tells holes from data", func(t testing.TB, p *peer) {
		r, context := p.attachStructured(t)
		const at = 8 << 20
		r.request(0, cmdZeroes, 1, at, 4<<20)
		r.wantSuccess(1)
		r.request(0, cmdWrite, 2, at+1<<20, 1<<20, bytes.Repeat([]byte{1}, 1<<20))
		r.wantSuccess(2)
		r.request(0, cmdStatus, 3, at, 3<<20)
		list := r.status(3, context)
		if len(list) < 3 || list[0] != [2]uint32{1 << 20, holeZero} || list[1] != [2]uint32{1 << 20, 0} || list[2][1] != holeZero {
			t.Fatal(list)
		}
	}},
	{quality, "BLOCK_STATUS never tells of more than was asked", func(t testing.TB, p *peer) {
		r, context := p.attachStructured(t)
		r.request(0, cmdStatus, 1, 1000, 1000)
		var sum uint32
		for _, e := range r.status(1, context) {
			sum += e[0]
		}
		if sum > 1000 {
			t.Fatal(sum)
		}
	}},
	{should, "space that NO_HOLE keeps is no hole", func(t testing.TB, p *peer) {
		r, context := p.attachStructured(t)
		const at = 24 << 20
		r.request(flagNoHole, cmdZeroes, 1, at, 1<<20)
		r.wantSuccess(1)
		r.request(0, cmdStatus, 2, at, 1<<20)
		for _, e := range r.status(2, context) {
			if e[1]&1 != 0 {
				t.Fatal("it is told to be one")
			}
		}
	}},
	{should, "a payload of 32 MiB is taken and given", func(t testing.TB, p *peer) { transferWhole(t, p, 32<<20) }},
	{quality, "a payload of 48 MiB is taken and given", func(t testing.TB, p *peer) { transferWhole(t, p, 48<<20) }},
	{must, "multi-conn: what one connection has written and another flushed, all see", func(t testing.TB, p *peer) {
		a := p.dial(t)
		a.hello(3)
		if flags := a.goIn(); flags&(1<<8) == 0 {
			t.Fatal("it is not offered")
		}
		b, c := p.attach(t), p.attach(t)
		for i := range 20 {
			data := bytes.Repeat([]byte{byte(i + 1)}, 8192)
			a.request(0, cmdWrite, 1, 4096, 8192, data)
			a.wantSimple(0, 1)
			b.request(0, cmdFlush, 2, 0, 0)
			b.wantSimple(0, 2)
			c.request(0, cmdRead, 3, 4096, 8192)
			c.wantSimple(0, 3, data)
		}
	}},
	{quality, "200 requests may be under way at once", func(t testing.TB, p *peer) {
		r := p.attach(t)
		var cookies []uint64
		var burst []byte
		for i := range uint64(200) {
			cookies = append(cookies, i)
			burst = append(burst, request(0, cmdRead, i, i*4096, 4096)...)
		}
		r.send(burst)
		r.wantReads(4096, cookies...)
	}},
	{quality, "a half-closed peer gets its pending replies", func(t testing.TB, p *peer) {
		r := p.attach(t)
		r.send(request(0, cmdRead, 1, 0, 1<<20), request(0, cmdRead, 2, 0, 1<<20), request(0, cmdRead, 3, 0, 1<<20))
		r.closeWrite()
		r.wantReads(1<<20, 1, 2, 3)
		r.wantEnd()
	}},
	{quality, "a payload that is cut off changes nothing", func(t testing.TB, p *peer) {
		r := p.attach(t)
		r.request(0, cmdWrite, 1, 0, 1<<20, make([]byte, 1<<20))
		r.wantSimple(0, 1)
		r.send(uint32(magicRequest), uint16(0), uint16(cmdWrite), uint64(2), uint64(0), uint32(1<<20), bytes.Repeat([]byte{1}, 700<<10))
		r.nc.Close()
		r = p.attach(t)
		for range 3 { // a server that does it does it soon
			r.request(0, cmdRead, 1, 0, 1<<20)
			r.wantSimple(0, 1, make([]byte, 1<<20))
			time.Sleep(soon / 3)
		}
	}},
	{quality, "a bad request magic ends the connection", func(t testing.TB, p *peer) {
		r := p.attach(t)
		r.send(uint32(magicRequest+1), make([]byte, 24))
		r.wantEnd()
	}},
	{quality, "a client that reads nothing holds up nobody", func(t testing.TB, p *peer) {
		stuck := p.attach(t)
		stuck.nc.SetWriteDeadline(time.Now().Add(soon))
		for i := range uint64(64) {
			if _, err := stuck.nc.Write(request(0, cmdRead, i, 0, 1<<20)); err != nil {
				break // it does not read any more either
			}
		}
		r := p.attach(t)
		for i := range uint64(10) {
			r.request(0, cmdWrite, i, 1<<20, 4096, make([]byte, 4096))
			r.wantSimple(0, i)
		}
	}},
	{quality, "overlapping writes at the same time are not torn", func(t testing.TB, p *peer) {
		const n, rounds = 256 << 10, 20
		writer := func(fill byte) func() {
			r := p.attach(t)
			return func() {
				for range rounds {
					r.request(0, cmdWrite, 1, 0, n, bytes.Repeat([]byte{fill}, n))
					r.read(16)
				}
			}
		}
		var wg sync.WaitGroup
		reader := p.attach(t)
		reader.request(0, cmdWrite, 1, 0, n, make([]byte, n))
		reader.wantSimple(0, 1)
		for _, write := range []func(){writer(1), writer(2)} {
			wg.Go(write)
		}
		torn := 0
		for range 2 * rounds {
			reader.request(0, cmdRead, 2, 0, n)
			reader.wantSimple(0, 2)
			if data := reader.read(n); bytes.Count(data, data[:1]) != n {
				torn++
			}
		}
		wg.Wait()
		if torn > 0 {
			t.Fatalf("%d of %d reads saw parts of two writes", torn, 2*rounds)
		}
	}},
}

// request is a request without payload.
func request(flags, kind uint16, cookie, offset uint64, length uint32) []byte {
	return wire(uint32(magicRequest), flags, kind, cookie, offset, length)
}

// refuses is a test that a request gets an error, and the next one its answer.
func refuses(kind, flags uint16, offset uint64, length uint32, errno uint32) func(t testing.TB, p *peer) {
	return func(t testing.TB, p *peer) {
		r := p.attach(t)
		var payload []byte
		if kind == cmdWrite {
			payload = make([]byte, length)
		}
		r.request(flags, kind, 1, offset, length, payload)
		r.wantError(errno, 1)
		r.request(0, cmdFlush, 2, 0, 0)
		r.wantSimple(0, 2)
	}
}

// transferWhole writes and reads with one request each.
func transferWhole(t testing.TB, p *peer, n int) {
	r := p.attach(t)
	data := make([]byte, n)
	for i := 0; i < n; i += 512 {
		binary.BigEndian.PutUint32(data[i:], uint32(i))
	}
	r.request(0, cmdWrite, 1, 512, uint32(n), data)
	r.wantSimple(0, 1)
	r.request(0, cmdRead, 2, 512, uint32(n))
	r.wantSimple(0, 2)
	if !bytes.Equal(r.read(n), data) {
		t.Fatal("it comes back otherwise")
	}
	r.request(0, cmdZeroes, 3, 0, diskSize)
	r.wantSimple(0, 3)
}

// wantError takes an error reply, simple or structured.
func (r *raw) wantError(errno uint32, cookie uint64) {
	r.t.Helper()
	if got := r.anyError(cookie); got != errno {
		r.t.Fatalf("error %d, want %d", got, errno)
	}
}

// wantSuccess takes a reply without data, simple or structured.
func (r *raw) wantSuccess(cookie uint64) {
	r.t.Helper()
	if got := r.anyError(cookie); got != 0 {
		r.t.Fatalf("error %d", got)
	}
}

// anyError takes a reply without data and returns its error, or 0.
func (r *raw) anyError(cookie uint64) (errno uint32) {
	r.t.Helper()
	magic := binary.BigEndian.Uint32(r.read(4))
	if magic == magicSimple {
		errno = binary.BigEndian.Uint32(r.read(4))
		r.want(cookie)
		return errno
	}
	for {
		flags, kind, data := r.chunkBehind(magic, cookie)
		switch {
		case kind&(1<<15) != 0 && len(data) >= 6:
			errno = binary.BigEndian.Uint32(data)
		case kind != chunkNone:
			r.t.Fatalf("chunk of type %d", kind)
		}
		if flags&done != 0 {
			return errno
		}
		magic = binary.BigEndian.Uint32(r.read(4))
	}
}

// wantErrorChunkOf takes a structured error, with or without a text.
func (r *raw) wantErrorChunkOf(errno uint32, cookie uint64) {
	r.t.Helper()
	flags, kind, data := r.chunk(cookie)
	if kind&(1<<15) == 0 || len(data) < 6 || int(binary.BigEndian.Uint16(data[4:])) > len(data)-6 || binary.BigEndian.Uint32(data) != errno {
		r.t.Fatalf("chunk of type %#x: %x", kind, data)
	}
	if flags&done == 0 {
		r.wantChunk(done, chunkNone, cookie)
	}
}

// chunk takes one chunk.
func (r *raw) chunk(cookie uint64) (flags, kind uint16, data []byte) {
	r.t.Helper()
	return r.chunkBehind(binary.BigEndian.Uint32(r.read(4)), cookie)
}

// chunkBehind takes a chunk whose magic was taken.
func (r *raw) chunkBehind(magic uint32, cookie uint64) (flags, kind uint16, data []byte) {
	r.t.Helper()
	if magic != magicStructured {
		r.t.Fatalf("magic %#x", magic)
	}
	p := r.read(4)
	flags, kind = binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])
	r.want(cookie)
	n := binary.BigEndian.Uint32(r.read(4))
	if n > diskSize {
		r.t.Fatalf("chunk of %d bytes", n)
	}
	return flags, kind, r.read(int(n))
}

// content takes the chunks of a read, which cover it, each byte once, and counts them.
func (r *raw) content(cookie, offset uint64, n int) (data []byte, chunks int) {
	r.t.Helper()
	data = make([]byte, n)
	covered := make([]bool, n)
	for flags := uint16(0); flags&done == 0; {
		var kind uint16
		var p []byte
		flags, kind, p = r.chunk(cookie)
		if kind == chunkNone {
			continue
		}
		chunks++
		at := binary.BigEndian.Uint64(p) - offset
		piece := p[8:]
		switch kind {
		case chunkData:
		case chunkHole:
			piece = make([]byte, binary.BigEndian.Uint32(p[8:]))
		default:
			r.t.Fatalf("chunk of type %#x", kind)
		}
		if at > uint64(n) || uint64(len(piece)) > uint64(n)-at || len(piece) == 0 {
			r.t.Fatalf("%d bytes at %d", len(piece), at)
		}
		copy(data[at:], piece)
		for i := range piece {
			if covered[at+uint64(i)] {
				r.t.Fatalf("byte %d came twice", at+uint64(i))
			}
			covered[at+uint64(i)] = true
		}
	}
	if bytes.IndexByte(asBytes(covered), 0) >= 0 {
		r.t.Fatal("not all of it came")
	}
	return data, chunks
}

func asBytes(list []bool) []byte {
	p := make([]byte, len(list))
	for i, b := range list {
		if b {
			p[i] = 1
		}
	}
	return p
}

// status takes the reply to a block status.
func (r *raw) status(cookie uint64, context uint32) (list [][2]uint32) {
	r.t.Helper()
	flags, kind, data := r.chunk(cookie)
	if kind != chunkStatus || len(data)%8 != 4 || binary.BigEndian.Uint32(data) != context {
		r.t.Fatalf("chunk of type %d, %d bytes", kind, len(data))
	}
	for p := data[4:]; len(p) > 0; p = p[8:] {
		list = append(list, [2]uint32{binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:])})
	}
	if flags&done == 0 {
		r.wantChunk(done, chunkNone, cookie)
	}
	return list
}

// wantReads takes the simple replies to reads of n bytes in any order, each once.
func (r *raw) wantReads(n int, cookies ...uint64) {
	r.t.Helper()
	due := map[uint64]bool{}
	for _, c := range cookies {
		due[c] = true
	}
	for range cookies {
		r.want(uint32(magicSimple), uint32(0))
		c := binary.BigEndian.Uint64(r.read(8))
		if !due[c] {
			r.t.Fatalf("a reply with cookie %d", c)
		}
		delete(due, c)
		if _, err := io.CopyN(io.Discard, r.nc, int64(n)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// closeWrite ends what the client says, not what it hears.
func (r *raw) closeWrite() {
	r.t.Helper()
	if err := r.nc.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		r.t.Fatal(err)
	}
}
