package e2e

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// insults are what a port may get from somebody who does not speak its protocol, or half of it.
func insults(rng *rand.Rand, volume string) map[string][]byte {
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	option := func(number, length uint32, data string) []byte {
		b := []byte{0, 0, 0, 3} // client flags: fixed newstyle, no zeroes
		b = append(b, "IHAVEOPT"...)
		b = binary.BigEndian.AppendUint32(b, number)
		b = binary.BigEndian.AppendUint32(b, length)
		return append(b, data...)
	}
	request := func(flags, kind uint16, offset uint64, length uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, 0x25609513)
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint16(b, kind)
		b = binary.BigEndian.AppendUint64(b, 1)
		b = binary.BigEndian.AppendUint64(b, offset)
		return binary.BigEndian.AppendUint32(b, length)
	}
	export := option(1, uint32(len(volume)), volume) // EXPORT_NAME: transmission begins at once
	return map[string][]byte{
		"nothing":                     nil,
		"one byte":                    {0},
		"noise":                       noise(100),
		"much noise":                  noise(1 << 20),
		"zeroes":                      make([]byte, 8192),
		"ones":                        []byte(strings.Repeat("\xff", 8192)),
		"HTTP":                        []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"HTTP with a huge body":       []byte("POST /v1/ping HTTP/1.1\r\nHost: x\r\nContent-Length: 9223372036854775807\r\n\r\n{"),
		"HTTP with endless headers":   []byte("GET / HTTP/1.1\r\n" + strings.Repeat("X-A: b\r\n", 100_000)),
		"deep JSON":                   []byte(strings.Repeat("[", 100_000)),
		"an NBD option of 4 GiB":      option(7, 0xffffffff, ""),
		"an NBD name of 4 GiB":        option(7, 8, "\xff\xff\xff\xff\x00\x00\x00\x00"),
		"half an NBD option":          option(7, 100, "half"),
		"an unknown NBD option":       option(0xdead, 0, ""),
		"unknown NBD client flags":    {0xff, 0xff, 0xff, 0xff},
		"an NBD write of 4 GiB":       append(export, request(0, 1, 0, 0xffffffff)...),
		"an NBD read of 4 GiB":        append(export, request(0, 0, 0, 0xffffffff)...),
		"half an NBD write":           append(append(export, request(0, 1, 120<<20, 65536)...), noise(1000)...),
		"an unknown NBD command":      append(export, request(0, 99, 0, 4096)...),
		"an NBD write at the far end": append(append(export, request(0, 1, 1<<63, 4096)...), noise(4096)...),
		"noise after the handshake":   append(export, noise(5000)...),
	}
}

// insult sends bytes to a port and then hangs up: at once, after it shut its sending side, or much later.
func insult(addr string, b []byte, manner int, over <-chan struct{}) error {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = conn.Write(b) // the other side may well have hung up
	switch manner {
	case 0: // hang up with what was sent unread
	case 1:
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
	case 2: // never read, never close
		<-over
	}
	return nil
}

// P8: whatever arrives at any port, nothing ends, nothing is lost and clients notice nothing.
func TestGarbageOnEveryPortHarmsNobody(t *testing.T) {
	need(t, "fio")
	c := start(t, cluster.Options{})
	rng := rand.New(rand.NewPCG(seed(t), 0))
	gateway, _, err := stamped.ParseURI(c.URI)
	must(t, err)
	ports := map[string]string{"view server": c.View, "gateway": gateway}
	for _, n := range c.Nodes() {
		ports[n+" peer"], ports[n+" NBD"] = c.PeerAddr(n), c.NBDAddr(n)
	}
	pids := make(map[string]int)
	for _, p := range c.Processes() {
		pids[p.Name] = p.PID()
	}

	j := fio(t, c.URI, 48, 4000)
	awaitCommits(t, c, 500)
	over := make(chan struct{})
	var senders sync.WaitGroup
	for range times(3, 30) {
		for name, b := range insults(rng, c.Volume()) {
			for port, addr := range ports {
				manner := rng.IntN(3)
				senders.Go(func() {
					if err := insult(addr, b, manner, over); err != nil {
						t.Errorf("%s at %s: %v", name, port, err)
					}
				})
			}
		}
		if !j.running() {
			break
		}
		awaitCommits(t, c, 1)
	}
	finish(t, j)
	close(over)
	senders.Wait()
	for _, p := range c.Processes() {
		if p.PID() != pids[p.Name] {
			t.Errorf("%s has ended", p.Name)
		}
	}
	must(t, c.AwaitSafe(t.Context()))
	sameImages(t, c)
}
