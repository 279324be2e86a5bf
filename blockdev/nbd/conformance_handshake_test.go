package nbd_test

import (
	"bytes"
	"strings"
	"testing"
)

var handshakeCases = []conformanceCase{
	{must, "greets with fixed newstyle and NO_ZEROES", func(t testing.TB, p *peer) { p.dial(t).hello(3) }},
	{must, "drops a client with unknown flags", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(1<<31 | 3)
		r.wantEnd()
	}},
	{must, "EXPORT_NAME has 124 zeroes behind it", func(t testing.TB, p *peer) {
		p.dial(t).byExportName(1, 124)
	}},
	{must, "EXPORT_NAME has none after NO_ZEROES", func(t testing.TB, p *peer) {
		p.dial(t).byExportName(3, 0)
	}},
	{quality, "a client without fixed newstyle gets in by EXPORT_NAME", func(t testing.TB, p *peer) {
		p.dial(t).byExportName(0, 124)
	}},
	{must, "EXPORT_NAME of an unknown export closes", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optExportName, []byte("no such export"))
		r.wantEnd()
	}},
	{must, "an unknown option gets ERR_UNSUP and stays in step", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		for _, data := range [][]byte{nil, {1}, make([]byte, 1000)} {
			r.option(4711, data)
			r.wantReply(4711, errUnsup)
		}
		r.goIn()
	}},
	{must, "LIST names the export", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optList, nil)
		found := false
		for {
			kind, data := r.reply(optList)
			if kind == repAck {
				break
			}
			if kind != repServer {
				t.Fatalf("reply %#x", kind)
			}
			found = found || bytes.HasPrefix(data, wire(uint32(4), "disk"))
		}
		if !found {
			t.Fatal("it does not")
		}
		r.goIn()
	}},
	{must, "LIST with data gets ERR_INVALID", refusesOption(optList, []byte("x"), errInvalid)},
	{must, "ABORT is acknowledged, then the end", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optAbort, nil)
		r.wantReply(optAbort, repAck)
		r.wantEnd()
	}},
	{must, "INFO tells size and flags, and the handshake goes on", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		for range 2 {
			r.option(optInfo, goData("disk"))
			told := false
			for kind := uint32(repInfo); kind == repInfo; {
				var data []byte
				kind, data = r.reply(optInfo)
				told = told || bytes.HasPrefix(data, wire(uint16(0), uint64(diskSize)))
			}
			if !told {
				t.Fatal("it does not tell the size")
			}
		}
		r.goIn()
	}},
	{must, "INFO of an unknown export gets ERR_UNKNOWN", refusesOption(optInfo, goData("no such export"), errUnknown)},
	{must, "GO to an unknown export gets ERR_UNKNOWN", refusesOption(optGo, goData("no such export"), errUnknown)},
	{must, "GO with a name beyond the option gets ERR_INVALID", refusesOption(optGo, wire(uint32(100), "disk", uint16(0)), errInvalid)},
	{should, "GO with bytes left over gets ERR_INVALID", refusesOption(optGo, append(goData("disk"), 0, 0), errInvalid)},
	{must, "GO with fewer requests than counted gets ERR_INVALID", refusesOption(optGo, wire(uint32(4), "disk", uint16(3), uint16(3)), errInvalid)},
	{must, "GO ignores requests for unknown information", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optGo, goData("disk", 4711, 3, 999))
		r.infos(optGo)
		r.request(0, cmdFlush, 1, 0, 0)
		r.wantSimple(0, 1)
	}},
	{should, "block sizes make sense", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optInfo, goData("disk", 3))
		for {
			kind, data := r.reply(optInfo)
			if kind == repAck {
				t.Fatal("they are not told when asked for")
			}
			if data[1] != 3 {
				continue
			}
			size := func(i int) uint32 {
				return uint32(data[i])<<24 | uint32(data[i+1])<<16 | uint32(data[i+2])<<8 | uint32(data[i+3])
			}
			least, preferred, most := size(2), size(6), size(10)
			if len(data) != 14 || least == 0 || least&(least-1) != 0 || least > 1<<16 || preferred < max(least, 512) ||
				preferred&(preferred-1) != 0 || most < 1<<20 {
				t.Fatalf("%d, %d, %d", least, preferred, most)
			}
			return
		}
	}},
	{quality, "name and description are told when asked for", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optInfo, goData("disk", 1, 2))
		told := map[byte]string{}
		for {
			kind, data := r.reply(optInfo)
			if kind == repAck {
				break
			}
			told[data[1]] = string(data[2:])
		}
		if told[1] != "disk" || told[2] != p.description {
			t.Fatal(told)
		}
	}},
	{must, "DF is offered with structured replies only", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optInfo, goData("disk"))
		before := r.infos(optInfo)
		r.option(optStructured, nil)
		r.wantReply(optStructured, repAck)
		if after := r.goIn(); before&(1<<7) != 0 || after&(1<<7) == 0 {
			t.Fatalf("flags %#x before, %#x after", before, after)
		}
	}},
	{must, "STRUCTURED_REPLY with data gets ERR_INVALID", refusesOption(optStructured, []byte("x"), errInvalid)},
	{quality, "STRUCTURED_REPLY a second time is answered in step", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optStructured, nil)
		r.wantReply(optStructured, repAck)
		r.option(optStructured, nil)
		if kind, _ := r.reply(optStructured); kind != repAck && kind != errInvalid {
			t.Fatalf("reply %#x", kind)
		}
		r.goIn()
		r.request(0, cmdFlush, 1, 0, 0)
		r.wantSuccess(1)
	}},
	{must, "SET_META_CONTEXT for an unknown export gets ERR_UNKNOWN", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optStructured, nil)
		r.wantReply(optStructured, repAck)
		for _, option := range []uint32{optListMeta, optSetMeta} {
			r.option(option, metaData("no such export", "base:allocation"))
			r.wantReply(option, errUnknown)
		}
		r.goIn()
	}},
	{quality, "a name of 5000 bytes is refused in step", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optGo, goData(strings.Repeat("x", 5000)))
		if kind, _ := r.reply(optGo); kind&(1<<31) == 0 {
			t.Fatalf("reply %#x", kind)
		}
		r.goIn()
	}},
	{should, "SET_META_CONTEXT before structured replies gets ERR_INVALID", refusesOption(optSetMeta, metaData("disk", "base:allocation"), errInvalid)},
	{must, "LIST_META_CONTEXT without queries lists base:allocation", listsContext()},
	{must, "LIST_META_CONTEXT takes base: for all of the namespace", listsContext("base:")},
	{must, "LIST_META_CONTEXT takes a full name", listsContext("x-unknown:leaf", "base:allocation")},
	{must, "LIST_META_CONTEXT ignores an unknown namespace", noContext(optListMeta, "x-unknown:", "x-unknown:leaf")},
	{must, "LIST_META_CONTEXT ignores an unknown leaf", noContext(optListMeta, "base:unknown")},
	{must, "SET_META_CONTEXT selects base:allocation", func(t testing.TB, p *peer) { p.attachStructured(t) }},
	{must, "SET_META_CONTEXT ignores an unknown namespace", noContext(optSetMeta, "x-unknown:leaf")},
	{must, "SET_META_CONTEXT ignores an unknown leaf", noContext(optSetMeta, "base:unknown")},
	{must, "SET_META_CONTEXT ignores base:", noContext(optSetMeta, "base:")},
	{must, "SET_META_CONTEXT without queries selects nothing", noContext(optSetMeta)},
	{must, "SET_META_CONTEXT with a query beyond the option gets ERR_INVALID", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optStructured, nil)
		r.wantReply(optStructured, repAck)
		r.option(optSetMeta, wire(uint32(4), "disk", uint32(1), uint32(100), "base:allocation"))
		r.wantReply(optSetMeta, errInvalid)
		r.goIn()
	}},
	{should, "BLOCK_STATUS after SET_META_CONTEXT was undone gets EINVAL", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optStructured, nil)
		r.wantReply(optStructured, repAck)
		r.option(optSetMeta, metaData("disk", "base:allocation"))
		r.reply(optSetMeta)
		r.wantReply(optSetMeta, repAck)
		r.option(optSetMeta, metaData("disk"))
		r.wantReply(optSetMeta, repAck)
		r.goIn()
		r.request(0, cmdStatus, 1, 0, 4096)
		r.wantError(einval, 1)
		r.request(0, cmdFlush, 2, 0, 0)
		r.wantSimple(0, 2)
	}},
	{should, "STARTTLS without TLS is refused in step", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optStartTLS, nil)
		if kind, _ := r.reply(optStartTLS); kind != errPolicy && kind != errUnsup && kind != 1<<31|4 {
			t.Fatalf("reply %#x", kind)
		}
		r.goIn()
	}},
	{quality, "options may come in any pieces", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.want(uint64(magicNBD), uint64(magicOption), uint16(3))
		for _, b := range wire(uint32(3), uint64(magicOption), uint32(optStructured), uint32(0), uint64(magicOption), uint32(optGo), uint32(10), goData("disk")) {
			r.send([]byte{b})
		}
		r.wantReply(optStructured, repAck)
		r.infos(optGo)
	}},
	{quality, "options may come all at once", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.send(uint32(3), uint64(magicOption), uint32(optStructured), uint32(0), uint64(magicOption), uint32(optGo), uint32(10), goData("disk"),
			uint32(magicRequest), uint16(0), uint16(cmdFlush), uint64(5), uint64(0), uint32(0))
		r.want(uint64(magicNBD), uint64(magicOption), uint16(3))
		r.wantReply(optStructured, repAck)
		r.infos(optGo)
		r.wantSimple(0, 5)
	}},
	{quality, "an option of 100 KiB is refused in step", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(4711, make([]byte, 100<<10))
		if kind, _ := r.reply(4711); kind != errUnsup && kind != errTooBig && kind != errInvalid {
			t.Fatalf("reply %#x", kind)
		}
		r.goIn()
	}},
	{quality, "an option of 4 GiB is not waited for", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.send(uint64(magicOption), uint32(4711), uint32(1<<32-1))
		r.wantEnd()
	}},
	{quality, "a bad option magic ends the connection", func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.send(uint64(magicOption)+1, uint32(optList), uint32(0))
		r.wantEnd()
	}},
	{quality, "half a handshake holds up nobody", func(t testing.TB, p *peer) {
		for range 20 {
			p.dial(t).hello(3)
		}
		p.attach(t)
	}},
}

// refusesOption is a test that an option gets an error, after which the handshake goes on.
func refusesOption(option uint32, data []byte, kind uint32) func(t testing.TB, p *peer) {
	return func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(option, data)
		r.wantReply(option, kind)
		r.goIn()
	}
}

// listsContext is a test that LIST_META_CONTEXT with these queries names base:allocation, once.
func listsContext(queries ...string) func(t testing.TB, p *peer) {
	return func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optStructured, nil)
		r.wantReply(optStructured, repAck)
		r.option(optListMeta, metaData("disk", queries...))
		count := 0
		for {
			kind, data := r.reply(optListMeta)
			if kind == repAck {
				break
			}
			if kind != repMeta {
				t.Fatalf("reply %#x %q", kind, data)
			}
			if string(data[4:]) == "base:allocation" {
				count++
			}
		}
		if count != 1 {
			t.Fatalf("%d times", count)
		}
		r.goIn()
	}
}

// noContext is a test that these queries find nothing.
func noContext(option uint32, queries ...string) func(t testing.TB, p *peer) {
	return func(t testing.TB, p *peer) {
		r := p.dial(t)
		r.hello(3)
		r.option(optStructured, nil)
		r.wantReply(optStructured, repAck)
		r.option(option, metaData("disk", queries...))
		r.wantReply(option, repAck)
		r.goIn()
	}
}
