package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// pattern is what pieceServer answers to a read at an offset.
func pattern(offset uint64, n int) []byte {
	p := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], (offset+uint64(i))*0x9e3779b97f4a7c15)
	}
	return p[:n]
}

// pieceServer answers reads, and cuts the stream of its answers into pieces wherever chance has it.
func pieceServer(t *testing.T, rnd *rand.Rand) string {
	return fakeServer(t, func(r *raw) {
		r.letInStructured()
		for {
			header := make([]byte, 28)
			for n := 0; n < len(header); {
				k, err := r.nc.Read(header[n:])
				if err != nil {
					return
				}
				n += k
			}
			cookie, offset := binary.BigEndian.Uint64(header[8:]), binary.BigEndian.Uint64(header[16:])
			data := pattern(offset, int(binary.BigEndian.Uint32(header[24:])))
			p := wire(uint32(0x668e33ef), uint16(1), uint16(1), cookie, uint32(8+len(data)), offset, data)
			for len(p) > 0 {
				n := min(len(p), 1+rnd.IntN(1<<rnd.IntN(19)))
				if _, err := r.nc.Write(p[:n]); err != nil {
					return
				}
				p = p[n:]
			}
		}
	})
}

// pollingReads submits reads again and again, and checks what comes.
type pollingReads struct {
	t      *testing.T
	inside atomic.Bool  // somebody is in Complete or Closed
	polled atomic.Int64 // completed by Poll
	woken  atomic.Int64 // completed by the Conn's goroutine
	done   chan []*blockdev.Request
	closed chan struct{}
}

func (h *pollingReads) Complete(done []*blockdev.Request) {
	if h.inside.Swap(true) {
		h.t.Error("the handler was called by two goroutines at a time")
	}
	select {
	case <-h.closed:
		h.t.Error("N9: completed after Closed")
	default:
	}
	stack := make([]byte, 4<<10)
	if strings.Contains(string(stack[:runtime.Stack(stack, false)]), "(*Conn).Poll") {
		h.polled.Add(int64(len(done)))
	} else {
		h.woken.Add(int64(len(done)))
	}
	h.done <- append([]*blockdev.Request(nil), done...)
	h.inside.Store(false)
}

func (h *pollingReads) Closed(err error) {
	if h.inside.Swap(true) {
		h.t.Error("closed while somebody is in Complete")
	}
	if !errors.Is(err, nbd.ErrClosed) {
		h.t.Errorf("the connection ended: %v", err)
	}
	close(h.closed)
}

// TestPollAndTheReaderShareOneStream has goroutines poll while the connection's own reads: each answer is taken once and
// whole, whoever has got which part of it, and both get to complete requests.
func TestPollAndTheReaderShareOneStream(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	conn, err := nbd.Dial(context.Background(), pieceServer(t, rand.New(rand.NewPCG(seed, 2))), nbd.ClientOptions{Export: "a"})
	if err != nil {
		t.Fatal(err)
	}
	const depth = 8
	h := &pollingReads{t: t, done: make(chan []*blockdev.Request, depth), closed: make(chan struct{})}
	conn.Start(h)

	var pollers sync.WaitGroup
	quit := make(chan struct{})
	for range 2 {
		pollers.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
					conn.Poll()
					runtime.Gosched()
				}
			}
		})
	}
	free := make([]*blockdev.Request, depth)
	for i := range free {
		free[i] = new(blockdev.Request)
	}
	under, began := 0, time.Now()
	for n := 0; n < 200 || h.polled.Load() == 0 || h.woken.Load() == 0; n++ {
		if time.Since(began) > wireTimeout {
			t.Fatalf("%d requests were completed by Poll, %d by the connection's goroutine", h.polled.Load(), h.woken.Load())
		}
		for _, r := range free {
			length := uint32(1 + rnd.IntN(1<<rnd.IntN(18)))
			*r = blockdev.Request{Op: blockdev.OpRead, Offset: rnd.Uint64N(testSize), Length: length, Data: make([]byte, length)}
		}
		if err := conn.Submit(free); err != nil {
			t.Fatal(err)
		}
		under += len(free)
		free = within(t, "answers", h.done)
		under -= len(free)
		for _, r := range free {
			if r.Err != nil || !bytes.Equal(r.Data, pattern(r.Offset, len(r.Data))) {
				t.Fatalf("%d bytes at %d: %v", r.Length, r.Offset, r.Err)
			}
		}
	}
	conn.Close() // with requests under way
	within(t, "the end", h.closed)
	close(quit)
	pollers.Wait()
}
