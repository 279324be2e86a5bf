package nbd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

const (
	testSize  = 1 << 20
	wantFlags = uint16(0x1 | 0x4 | 0x8 | 0x20 | 0x40 | 0x100 | 0x400 | 0x800)
	flagDFBit = uint16(0x80)
)

// refusing is an Exporter that has one good export, and names that fail.
type refusing struct{ good nbd.Export }

func (x refusing) List(context.Context) ([]nbd.ExportInfo, error) {
	second := x.good.Info()
	second.Name, second.Description = "b", ""
	return []nbd.ExportInfo{x.good.Info(), second}, nil
}

func (x refusing) Open(_ context.Context, name string) (nbd.Export, error) {
	switch name {
	case "", x.good.Name:
		return x.good, nil
	case "passive":
		return nbd.Export{}, fmt.Errorf("open: %w", blockdev.ErrNotPrimary)
	case "forbidden":
		return nbd.Export{}, errors.New("no access on Sundays")
	}
	return nbd.Export{}, fmt.Errorf("open: %w", nbd.ErrUnknownExport)
}

func serveRefusing(t testing.TB) string {
	_, addr := serve(t, nbd.ServerOptions{Exporter: refusing{nbd.Export{Name: "a", Description: "about a", Device: memory(t, testSize)}}})
	return addr
}

func infoExport(flags uint16) []byte { return wire(uint16(0), uint64(testSize), flags) }

// Every option, well-formed and not, gets the reply that the specification wants, and the handshake goes on in step:
// each case ends with a LIST that must be understood, unless it ends otherwise.
func TestHandshakeOptions(t *testing.T) {
	addr := serveRefusing(t)
	long := strings.Repeat("x", 4097)
	for _, c := range []struct {
		name string
		do   func(r *raw)
	}{
		{"info of the default export", func(r *raw) {
			r.option(optInfo, goData(""))
			r.wantReply(optInfo, repInfo, infoExport(wantFlags))
			r.wantReply(optInfo, repAck)
		}},
		{"info with everything asked for, unknown types too", func(r *raw) {
			r.option(optInfo, goData("a", 1, 2, 3, 77))
			r.wantReply(optInfo, repInfo, infoExport(wantFlags))
			r.wantReply(optInfo, repInfo, uint16(1), "a")
			r.wantReply(optInfo, repInfo, uint16(2), "about a")
			r.wantReply(optInfo, repInfo, uint16(3), uint32(1), uint32(4096), uint32(32<<20))
			r.wantReply(optInfo, repAck)
		}},
		{"info of an unknown export", func(r *raw) {
			r.option(optInfo, goData("nope"))
			r.wantReply(optInfo, errUnknown)
		}},
		{"info of a refused export carries the reason", func(r *raw) {
			r.option(optInfo, goData("forbidden"))
			if kind, text := r.reply(optInfo); kind != errPolicy || string(text) != "no access on Sundays" {
				t.Errorf("reply %#x %q", kind, text)
			}
		}},
		{"go to an unknown export, then go on", func(r *raw) {
			r.option(optGo, goData("nope"))
			r.wantReply(optGo, errUnknown)
		}},
		{"go with no data", func(r *raw) { r.option(optGo, nil); r.wantReply(optGo, errInvalid) }},
		{"go with a name longer than the option", func(r *raw) {
			r.option(optGo, wire(uint32(100), "a", uint16(0)))
			r.wantReply(optGo, errInvalid)
		}},
		{"go with the longest name length", func(r *raw) {
			r.option(optGo, wire(uint32(1<<32-1), "a", uint16(0)))
			r.wantReply(optGo, errInvalid)
		}},
		{"go with fewer information requests than counted", func(r *raw) {
			r.option(optGo, wire(uint32(1), "a", uint16(2), uint16(3)))
			r.wantReply(optGo, errInvalid)
		}},
		{"go with bytes left over", func(r *raw) {
			r.option(optGo, append(goData("a"), 0))
			r.wantReply(optGo, errInvalid)
		}},
		{"info with too long a name", func(r *raw) { r.option(optInfo, goData(long)); r.wantReply(optInfo, errInvalid) }},
		{"info with a NUL in the name", func(r *raw) { r.option(optInfo, goData("a\x00")); r.wantReply(optInfo, errInvalid) }},
		{"list with data", func(r *raw) { r.option(optList, []byte("x")); r.wantReply(optList, errInvalid) }},
		{"structured replies with data", func(r *raw) { r.option(optStructured, []byte("x")); r.wantReply(optStructured, errInvalid) }},
		{"structured replies show in the flags", func(r *raw) {
			r.option(optStructured, nil)
			r.wantReply(optStructured, repAck)
			r.option(optInfo, goData("a"))
			r.wantReply(optInfo, repInfo, infoExport(wantFlags|flagDFBit))
			r.wantReply(optInfo, repAck)
		}},
		{"unknown option", func(r *raw) { r.option(4711, nil); r.wantReply(4711, errUnsup) }},
		{"unknown option with much data", func(r *raw) {
			r.option(1<<32-1, make([]byte, 64<<10))
			r.wantReply(1<<32-1, errUnsup)
		}},
		{"option longer than the limit", func(r *raw) {
			r.option(4711, make([]byte, 64<<10+1))
			r.wantReply(4711, errTooBig)
			r.option(optGo, make([]byte, 32<<20))
			r.wantReply(optGo, errTooBig)
		}},
		{"starttls", func(r *raw) { r.option(optStartTLS, nil); r.wantReply(optStartTLS, errPolicy) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := dialRaw(t, addr)
			r.hello(3)
			c.do(r)
			r.option(optList, nil)
			r.wantReply(optList, repServer, uint32(1), "a", "about a")
			r.wantReply(optList, repServer, uint32(1), "b")
			r.wantReply(optList, repAck)
			r.option(optAbort, []byte("data that is to be ignored"))
			r.wantReply(optAbort, repAck)
			r.wantEnd()
		})
	}
}

// What ends the handshake ends it, and nothing that looks like an answer is sent before.
func TestHandshakeThatMustEndTheConnection(t *testing.T) {
	addr := serveRefusing(t)
	for _, c := range []struct {
		name  string
		flags uint32
		do    func(r *raw)
	}{
		{"unknown client flag", 7, func(*raw) {}},
		{"all client flags", 1<<32 - 1, func(*raw) {}},
		{"bad option magic", 3, func(r *raw) { r.send(uint64(magicOption+1), uint32(optList), uint32(0)) }},
		{"option too long to be dropped", 3, func(r *raw) { r.send(uint64(magicOption), uint32(4711), uint32(32<<20+1)) }},
		{"export name longer than the limit", 3, func(r *raw) { r.send(uint64(magicOption), uint32(optExportName), uint32(64<<10+1)) }},
		{"option of 4 GiB", 3, func(r *raw) { r.send(uint64(magicOption), uint32(optGo), uint32(1<<32-1)) }},
		{"export name unknown", 3, func(r *raw) { r.option(optExportName, []byte("nope")) }},
		{"export name refused", 3, func(r *raw) { r.option(optExportName, []byte("forbidden")) }},
		{"export name too long", 3, func(r *raw) { r.option(optExportName, make([]byte, 4097)) }},
		{"export name while not primary", 3, func(r *raw) { r.option(optExportName, []byte("passive")) }},
		{"go while not primary", 3, func(r *raw) { r.option(optGo, goData("passive")) }},
		{"info while not primary", 3, func(r *raw) { r.option(optInfo, goData("passive")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := dialRaw(t, addr)
			r.hello(c.flags)
			c.do(r)
			r.wantEnd()
		})
	}
}

// EXPORT_NAME is followed by 124 zeroes unless the client asked for none.
func TestExportNameWithAndWithoutZeroes(t *testing.T) {
	addr := serveRefusing(t)
	for flags, zeroes := range map[uint32]int{0: 124, 1: 124, 2: 0, 3: 0} {
		r := dialRaw(t, addr)
		r.hello(flags)
		r.option(optExportName, []byte("a"))
		r.want(uint64(testSize), wantFlags, make([]byte, zeroes))
		r.request(0, cmdFlush, 9, 0, 0)
		r.wantSimple(0, 9)
	}
}

// A request that is sent together with GO, before its acknowledgement, is not lost.
func TestRequestRightBehindGo(t *testing.T) {
	r := dialRaw(t, serveRefusing(t))
	r.hello(3)
	r.send(uint64(magicOption), uint32(optGo), uint32(7), goData("a"),
		uint32(magicRequest), uint16(0), uint16(cmdFlush), uint64(5), uint64(0), uint32(0))
	r.wantReply(optGo, repInfo, infoExport(wantFlags))
	r.wantReply(optGo, repAck)
	r.wantSimple(0, 5)
}

// A client that asks for ever is cut off.
func TestOptionsOfOneHandshakeAreLimited(t *testing.T) {
	r := dialRaw(t, serveRefusing(t))
	r.hello(3)
	for range 64 {
		r.option(4711, nil)
		r.wantReply(4711, errUnsup)
	}
	r.wantEnd()
}

// A client that dawdles is cut off when the time for the handshake is over, wherever it stopped.
func TestSlowHandshakeTimesOut(t *testing.T) {
	whole := wire(uint32(3), uint64(magicOption), uint32(optGo), uint32(7), goData("a"))
	for sent := range whole {
		synctest.Test(t, func(t *testing.T) {
			var events []nbd.Event
			s, err := nbd.NewServer(nbd.ServerOptions{
				Exporter: refusing{nbd.Export{Name: "a", Device: memory(t, testSize)}},
				OnEvent:  func(e nbd.Event) { events = append(events, e) },
			})
			if err != nil {
				t.Fatal(err)
			}
			client, server := net.Pipe()
			go s.ServeConn(server)
			began := time.Now()
			io.ReadFull(client, make([]byte, 18))
			for _, b := range whole[:sent] { // a byte each 100 ms
				time.Sleep(100 * time.Millisecond)
				client.Write([]byte{b})
			}
			if n, err := client.Read(make([]byte, 1)); err == nil {
				t.Errorf("after %d bytes: read %d bytes instead of the end", sent, n)
			}
			if d := time.Since(began); d != nbd.DefaultHandshakeTimeout {
				t.Errorf("after %d bytes: cut off after %v", sent, d)
			}
			s.Close()
			if len(events) != 1 || events[0].Kind != nbd.EventHandshakeFailed {
				t.Errorf("events %v", events)
			}
		})
	}
}

// N7: when the client reads the acknowledgement of GO, the session is attached, under the name that the Exporter gave.
func TestSessionIsAttachedBeforeGoIsAcknowledged(t *testing.T) {
	dev := newPuppet(testSize)
	id := blockdev.SessionID{Name: "gw1", Generation: 7}
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev, Session: id}}})
	r := dialRaw(t, addr)
	r.attach("a")
	select {
	case s := <-dev.attached:
		if s.id != id {
			t.Fatalf("attached as %v", s.id)
		}
	default:
		t.Fatal("GO was acknowledged before Attach returned")
	}
}

// N4: a device that refuses to attach closes the connection; it gives no NBD error.
func TestAttachRefusedByRoleClosesTheConnection(t *testing.T) {
	for _, reason := range []error{blockdev.ErrNotPrimary, blockdev.ErrSessionClosed} {
		dev := newPuppet(testSize)
		dev.attachErr = fmt.Errorf("attach: %w", reason)
		_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
		r := dialRaw(t, addr)
		r.hello(3)
		r.option(optGo, goData("a"))
		r.wantEnd()
	}
}

// N4: one that knows who serves says so before the connection is closed.
func TestAttachRefusedByRoleTellsWhoServes(t *testing.T) {
	dev := newPuppet(testSize)
	dev.attachErr = fmt.Errorf("attach: %w", &blockdev.MovedError{To: "over there"})
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	_, err := nbd.Dial(t.Context(), addr, nbd.ClientOptions{Export: "a"})
	var option *nbd.OptionError
	if !errors.As(err, &option) || !errors.Is(err, nbd.ErrUnknownExport) || option.Text != "over there" {
		t.Errorf("the client was told %v", err)
	}
	r := dialRaw(t, addr)
	r.hello(3)
	r.option(optGo, goData("a"))
	r.wantReply(optGo, 1<<31|6)
	r.wantEnd()
}

// Clients over the limits are turned away, in all and per export; a place that becomes free is given again.
func TestClientsAreLimited(t *testing.T) {
	dev := memory(t, testSize)
	detached := make(chan struct{}, 10)
	_, addr := serve(t, nbd.ServerOptions{
		Exporter: exports{{Name: "a", Device: dev}, {Name: "b", Device: dev}}, MaxClients: 3, MaxClientsPerExport: 1,
		OnEvent: func(e nbd.Event) {
			if e.Kind == nbd.EventDetached {
				detached <- struct{}{}
			}
		},
	})
	first := dialRaw(t, addr)
	first.attach("a")
	second := dialRaw(t, addr)
	second.hello(3)
	second.option(optGo, goData("a"))
	second.wantReply(optGo, errPolicy)
	second.option(optGo, goData("b"))
	second.reply(optGo)
	second.wantReply(optGo, repAck)
	third := dialRaw(t, addr)
	third.hello(3)
	dialRaw(t, addr).wantEnd()
	first.request(0, cmdDisc, 0, 0, 0)
	first.wantEnd()
	within(t, "end of the first client", detached)
	third.option(optGo, goData("a"))
	third.reply(optGo)
	third.wantReply(optGo, repAck)
}
