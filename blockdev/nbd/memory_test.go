package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

const (
	optMemory     = 0x4c4f434b
	cmdFlagMemory = 1 << 15
	replyMemory   = 0x4c4b
	allSeals      = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
)

// serveLocal serves a disk of testSize on a unix socket.
func serveLocal(t *testing.T) (d blockdev.Device, addr string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	d = memory(t, testSize)
	serveOn(t, l, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: d}}})
	return d, "unix:" + path
}

// lender is a client that reads into memory that is lent to it.
type lender struct {
	t    *testing.T
	conn *nbd.Conn
	h    *recorder
	done chan *blockdev.Request
}

func newLender(t *testing.T, addr string) *lender {
	t.Helper()
	conn, err := nbd.Dial(context.Background(), addr, nbd.ClientOptions{Export: "a", Lend: true})
	if err != nil {
		t.Fatal(err)
	}
	l := &lender{t: t, conn: conn, h: newRecorder(), done: make(chan *blockdev.Request, 1024)}
	l.h.hook = func(done []*blockdev.Request) {
		for _, r := range done {
			l.done <- r
		}
	}
	conn.Start(l.h)
	return l
}

func (l *lender) do(op blockdev.Op, offset uint64, data []byte) *blockdev.Request {
	l.t.Helper()
	r := &blockdev.Request{Op: op, Offset: offset, Length: uint32(len(data)), Data: data}
	if err := l.conn.Submit([]*blockdev.Request{r}); err != nil {
		l.t.Fatal(err)
	}
	if r = within(l.t, "an answer", l.done); r.Err != nil {
		l.t.Fatal(r.Err)
	}
	return r
}

func (l *lender) end() {
	l.t.Helper()
	l.conn.Close()
	within(l.t, "the end", l.h.closed)
}

// mappings counts what both ends of all connections have mapped.
func mappings(t *testing.T) int {
	t.Helper()
	p, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(p), "memfd:lockstep-nbd")
}

// TestLentMemoryIsNobodyElses: what a completed read was lent does not change, whatever is read meanwhile; when all is lent,
// data comes through the socket; and what was given back is lent again.
func TestLentMemoryIsNobodyElses(t *testing.T) {
	_, addr := serveLocal(t)
	l := newLender(t, addr)
	defer l.end()
	const slots = 128
	var held []*blockdev.Request
	for i := range slots + 8 {
		content := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		l.do(blockdev.OpWrite, 0, content)
		own := make([]byte, 4096)
		r := l.do(blockdev.OpRead, 0, own)
		if lent := r.GiveBack != nil; lent != (i < slots) || lent == (&r.Data[0] == &own[0]) {
			t.Fatalf("read %d: lent: %v", i, lent)
		}
		held = append(held, r)
	}
	for i, r := range held {
		if !bytes.Equal(r.Data, bytes.Repeat([]byte{byte(i + 1)}, 4096)) {
			t.Fatalf("what read %d was lent holds another's data: %d", i, r.Data[0])
		}
	}
	held[7].GiveBack()
	if l.do(blockdev.OpRead, 0, make([]byte, 4096)).GiveBack == nil {
		t.Fatal("memory that was given back is not used again")
	}
}

// Reads that do not fit into a slot, and reads of clients that did not ask for it, are sent.
func TestWhatIsNotLentIsSent(t *testing.T) {
	_, addr := serveLocal(t)
	l := newLender(t, addr)
	defer l.end()
	for n, want := range map[int]bool{1: true, 64 << 10: true, 64<<10 + 1: false} {
		content := pattern(uint64(n), n)
		l.do(blockdev.OpWrite, 512, content)
		r := l.do(blockdev.OpRead, 512, make([]byte, n))
		if (r.GiveBack != nil) != want || !bytes.Equal(r.Data, content) {
			t.Errorf("%d bytes: lent: %v, right: %v", n, r.GiveBack != nil, bytes.Equal(r.Data, content))
		}
		if r.GiveBack != nil {
			r.GiveBack()
		}
	}
	before := mappings(t)
	openDisk(t, addr, "a")
	if now := mappings(t); now != before {
		t.Errorf("a client that does not lend has %d mappings", now-before)
	}
}

// TestMemoryGoesWithItsLastUser: after the end of the connection lent memory can be looked at until it is given back, and
// then nothing is mapped any more, at either end.
func TestMemoryGoesWithItsLastUser(t *testing.T) {
	before := mappings(t)
	_, addr := serveLocal(t)
	l := newLender(t, addr)
	l.do(blockdev.OpWrite, 0, []byte("kept"))
	r := l.do(blockdev.OpRead, 0, make([]byte, 4))
	if n := mappings(t) - before; n != 2 {
		t.Fatalf("%d mappings, want one at each end", n)
	}
	l.end()
	if string(r.Data) != "kept" {
		t.Errorf("%q", r.Data)
	}
	r.GiveBack()
	unstarted, err := nbd.Dial(context.Background(), addr, nbd.ClientOptions{Export: "a", Lend: true})
	if err != nil {
		t.Fatal(err)
	}
	unstarted.Close()
	until(t, "both ends to unmap", func() bool { return mappings(t) == before })
}

// memfd makes memory as a client does, but with these seals.
func memfd(t *testing.T, size int64, seals int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("lockstep-nbd", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return f
}

// optionWith sends an option and a descriptor.
func (r *raw) optionWith(option uint32, data []byte, f *os.File) {
	r.t.Helper()
	p := wire(uint64(magicOption), option, uint32(len(data)), data)
	if _, _, err := r.nc.(*net.UnixConn).WriteMsgUnix(p, unix.UnixRights(int(f.Fd())), nil); err != nil {
		r.t.Fatal(err)
	}
}

// TestMemoryThatCouldHarmIsRefused: whatever is wrong with an offer, the server says so and goes on; it maps nothing that
// could get shorter under it.
func TestMemoryThatCouldHarmIsRefused(t *testing.T) {
	before := mappings(t)
	_, local := serveLocal(t)
	announce := func(each, count int) []byte { return wire(uint32(each), uint32(count)) }
	for name, c := range map[string]struct {
		data  []byte
		f     *os.File
		reply uint32
	}{
		"right":             {announce(4096, 4), memfd(t, 4*4096, allSeals), repAck},
		"could shrink":      {announce(4096, 4), memfd(t, 4*4096, unix.F_SEAL_GROW|unix.F_SEAL_SEAL), errInvalid},
		"could be unsealed": {announce(4096, 4), memfd(t, 4*4096, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK), errInvalid},
		"shorter":           {announce(4096, 4), memfd(t, 3*4096, allSeals), errInvalid},
		"nothing":           {announce(4096, 0), memfd(t, 0, allSeals), errInvalid},
		"slots of 0":        {announce(0, 4), memfd(t, 4096, allSeals), errInvalid},
		"slots of 100":      {announce(100, 4), memfd(t, 400, allSeals), errInvalid},
		"huge":              {announce(1<<30, 4), memfd(t, 4<<30, allSeals), errInvalid},
		"overflows":         {announce(1<<31, 1<<31), memfd(t, 4096, allSeals), errInvalid},
		"short option":      {announce(4096, 4)[:7], memfd(t, 4*4096, allSeals), errInvalid},
		"no descriptor":     {announce(4096, 4), nil, errInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			until(t, "the connection before to end", func() bool { return mappings(t) == before })
			r := dialRaw(t, local)
			r.hello(3)
			r.option(optStructured, nil)
			r.wantReply(optStructured, repAck)
			send := func() {
				if c.f != nil {
					r.optionWith(optMemory, c.data, c.f)
				} else {
					r.option(optMemory, c.data)
				}
			}
			send()
			if kind, text := r.reply(optMemory); kind != c.reply || (kind != repAck && len(text) == 0) {
				t.Fatalf("answer %#x %q, want %#x", kind, text, c.reply)
			}
			if send(); c.reply == repAck {
				if kind, _ := r.reply(optMemory); kind != errInvalid {
					t.Fatalf("the second offer: answer %#x", kind)
				}
			} else if kind, _ := r.reply(optMemory); kind != c.reply {
				t.Fatalf("once more: answer %#x", kind)
			}
			r.option(optGo, goData("a"))
			r.reply(optGo)
			r.wantReply(optGo, repAck)
			if n := mappings(t) - before; n != 0 && c.reply != repAck || n != 1 && c.reply == repAck {
				t.Fatalf("%d mappings", n)
			}
		})
	}
	_, tcp := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: memory(t, testSize)}}})
	r := dialRaw(t, tcp)
	r.hello(3)
	r.option(optStructured, nil)
	r.wantReply(optStructured, repAck)
	r.option(optMemory, announce(4096, 4))
	if kind, _ := r.reply(optMemory); kind != errUnsup {
		t.Errorf("over TCP: answer %#x", kind)
	}
	r = dialRaw(t, local)
	r.hello(3)
	r.optionWith(optMemory, announce(4096, 4), memfd(t, 4*4096, allSeals))
	if kind, _ := r.reply(optMemory); kind != errInvalid {
		t.Errorf("before structured replies: answer %#x", kind)
	}
}

// Requests that name no slot, or one that there is not, are refused, and the stream stays in step.
func TestSlotsThatThereAreNotAreRefused(t *testing.T) {
	_, local := serveLocal(t)
	r := dialRaw(t, local)
	r.hello(3)
	r.option(optStructured, nil)
	r.wantReply(optStructured, repAck)
	f := memfd(t, 4*4096, allSeals)
	r.optionWith(optMemory, wire(uint32(4096), uint32(4)), f)
	r.wantReply(optMemory, repAck)
	r.option(optGo, goData("a"))
	r.reply(optGo)
	r.wantReply(optGo, repAck)

	r.request(0, cmdWrite, 1, 0, 5, "hello")
	r.wantSimple(0, 1)
	r.request(cmdFlagMemory, cmdRead, 2, 0, 5, uint32(4))
	r.wantErrorChunk(einval, 2)
	r.request(cmdFlagMemory, cmdRead, 3, 0, 5, uint32(1<<32-1))
	r.wantErrorChunk(einval, 3)
	r.request(cmdFlagMemory, cmdRead, 4, 0, 4097, uint32(3))
	r.wantErrorChunk(einval, 4)
	r.request(cmdFlagMemory, cmdRead, 5, testSize, 5, uint32(3))
	r.wantErrorChunk(einval, 5)
	r.request(cmdFlagMemory, cmdFlush, 6, 0, 0)
	r.wantErrorChunk(einval, 6)
	r.request(cmdFlagMemory, cmdRead, 7, 0, 5, uint32(3))
	r.wantChunk(1, replyMemory, 7)
	got := make([]byte, 5)
	if _, err := f.ReadAt(got, 3*4096); err != nil || string(got) != "hello" {
		t.Errorf("in the slot: %q, %v", got, err)
	}

	r = dialRaw(t, local) // without memory the flag means nothing, and nothing follows
	r.attachWith("a")
	r.request(cmdFlagMemory, cmdRead, 8, 0, 5)
	r.wantErrorChunk(einval, 8)
	r.request(0, cmdFlush, 9, 0, 0)
	r.wantSimple(0, 9)
}

// rightsOf takes a client's options with the descriptor that comes along.
func (r *raw) rightsOf() *os.File {
	r.t.Helper()
	p, oob := make([]byte, 4096), make([]byte, 64)
	n, k, _, _, err := r.nc.(*net.UnixConn).ReadMsgUnix(p, oob)
	if err != nil {
		r.t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:k])
	if err != nil || len(messages) != 1 || !bytes.Contains(p[:n], binary.BigEndian.AppendUint32(nil, optMemory)) {
		r.t.Fatalf("%d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		r.t.Fatalf("%v, %v", fds, err)
	}
	return os.NewFile(uintptr(fds[0]), "memory")
}

// TestAServerThatWasLeftCannotTouchALaterAnswer: a primary that was paused, and is no primary any more, carries out what it
// was asked before: it writes into memory that nobody reads (N12).
func TestAServerThatWasLeftCannotTouchALaterAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type taken struct {
		nc   net.Conn
		mem  *os.File
		slot uint32
	}
	took := make(chan taken, 1)
	serveOne := func(answer string) {
		nc, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		r := &raw{t, nc}
		r.greet()
		x := taken{nc: nc, mem: r.rightsOf()}
		r.answer(optStructured, repAck)
		r.answer(optSetMeta, repAck)
		r.answer(optMemory, repAck)
		r.answer(optGo, repInfo, infoExport(wantFlags))
		r.answer(optGo, repAck)
		r.want(uint32(magicRequest), uint16(cmdFlagMemory), uint16(cmdRead))
		cookie := binary.BigEndian.Uint64(r.read(8))
		r.read(12)
		x.slot = binary.BigEndian.Uint32(r.read(4))
		if answer != "" {
			if _, err := x.mem.WriteAt([]byte(answer), int64(x.slot)<<16); err != nil {
				t.Error(err)
			}
			r.send(uint32(0x668e33ef), uint16(1), uint16(replyMemory), cookie, uint32(0))
		}
		took <- x
	}
	read := &blockdev.Request{Op: blockdev.OpRead, Length: 5, Data: make([]byte, 5)}

	go serveOne("")
	c := newLender(t, "unix:"+path)
	if err := c.conn.Submit([]*blockdev.Request{read}); err != nil {
		t.Fatal(err)
	}
	old := within(t, "the first request", took)
	defer old.nc.Close()
	defer old.mem.Close()
	c.end()

	go serveOne("right")
	c = newLender(t, "unix:"+path)
	if err := c.conn.Submit([]*blockdev.Request{read}); err != nil {
		t.Fatal(err)
	}
	within(t, "an answer", c.done)
	now := within(t, "the second request", took)
	defer now.nc.Close()
	defer now.mem.Close()
	for slot := range int64(128) {
		if _, err := old.mem.WriteAt([]byte("wrong"), slot<<16); err != nil {
			t.Fatal(err)
		}
	}
	if string(read.Data) != "right" {
		t.Errorf("the answer is %q", read.Data)
	}
	read.GiveBack()
	c.end()
}
