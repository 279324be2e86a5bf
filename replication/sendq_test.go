package replication

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lockstep/wal/vfs/memfs"
)

var noneSurvives = memfs.None

func newTestFS(t *testing.T) (*memfs.FS, string) {
	t.Helper()
	fsys := memfs.New()
	if err := fsys.MkdirAll("home"); err != nil {
		t.Fatal(err)
	}
	if err := fsys.SyncDir(""); err != nil {
		t.Fatal(err)
	}
	return fsys, "home"
}

// pipes are connections to send over: a kernel socket, which is tried without waiting, and one that is none.
func pipes(t *testing.T) map[string]func() (send, recv net.Conn) {
	return map[string]func() (net.Conn, net.Conn){
		"memory": net.Pipe,
		"tcp": func() (net.Conn, net.Conn) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			send, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			recv, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return send, recv
		},
	}
}

// Messages arrive in the order in which they were pushed, and whole: a body is not released, and so not used again,
// before the last byte of it is with the kernel.
func TestMessagesArriveWholeAndInOrder(t *testing.T) {
	for name, pipe := range pipes(t) {
		t.Run(name, func(t *testing.T) {
			send, recv := pipe()
			defer recv.Close()
			q := newSendq(goRuntime{}, send)
			var running sync.WaitGroup
			running.Go(q.run) // until q.close
			const n, pushers = 3000, 4
			var order sync.Mutex // as Replica.mu: order is decided under it, sending is not
			next := uint64(0)
			var released atomic.Int64
			for range pushers {
				running.Go(func() {
					for {
						order.Lock()
						if next == n {
							order.Unlock()
							return
						}
						next++
						body := bytes.Repeat([]byte{byte(next)}, rand.IntN(40000))
						q.push(msg{Type: msgAppend, Nonce: next}, body, func() {
							for i := range body {
								body[i] = 0xff ^ body[i]
							}
							released.Add(1)
						})
						order.Unlock()
						q.flush()
					}
				})
			}
			rd := newReader(recv)
			for i := uint64(1); i <= n; i++ {
				m, body, err := rd.next()
				if err != nil {
					t.Fatal(err)
				}
				if m.Nonce != i {
					t.Fatalf("message %d arrives as number %d", m.Nonce, i)
				}
				for _, x := range body {
					if x != byte(i) {
						t.Fatalf("message %d was overwritten on its way", i)
					}
				}
			}
			if err := q.waitBelow(1); err != nil {
				t.Fatal(err)
			}
			q.close(context.Canceled)
			running.Wait()
			if released.Load() != n {
				t.Errorf("%d of %d bodies were released", released.Load(), n)
			}
		})
	}
}

// A peer that takes nothing costs memory up to a limit, and then its stream; who pushes never waits for it.
func TestPusherNeverWaitsForAStuckPeer(t *testing.T) {
	for name, pipe := range pipes(t) {
		t.Run(name, func(t *testing.T) {
			send, recv := pipe()
			defer recv.Close()
			q := newSendq(goRuntime{}, send)
			var running sync.WaitGroup
			running.Go(q.run)
			body := make([]byte, 1<<20)
			pushed, released := 0, 0 // done is called with q.mu held, by this goroutine or run
			for ; q.waitBelow(1<<40) == nil; pushed++ {
				if pushed > 2*maxQueuedBytes/len(body) {
					t.Fatal("the queue has no limit")
				}
				q.push(msg{Type: msgAppend}, body, func() { released++ })
				q.flush()
			}
			if !errors.Is(q.waitBelow(1), errBehind) {
				t.Errorf("the stream ends with %v", q.waitBelow(1))
			}
			running.Wait()
			q.mu.Lock()
			defer q.mu.Unlock()
			if released != pushed {
				t.Errorf("%d of %d bodies were released", released, pushed)
			}
		})
	}
}

// Whenever a connection ends, each body is released, once.
func TestEveryBodyIsReleasedOnce(t *testing.T) {
	for name, pipe := range pipes(t) {
		t.Run(name, func(t *testing.T) {
			for round := range 50 {
				send, recv := pipe()
				q := newSendq(goRuntime{}, send)
				var running sync.WaitGroup
				running.Go(q.run)
				running.Go(func() {
					_, _ = io.CopyN(io.Discard, recv, rand.Int64N(3<<20))
					if round%2 == 0 {
						recv.Close() // the sender finds out by itself, if it has something to send
					}
					q.close(os.ErrClosed) // as who reads from the connection does
				})
				counts := make([]atomic.Int32, 200)
				for i := range counts {
					q.push(msg{Type: msgAppend}, make([]byte, rand.IntN(60000)), func() { counts[i].Add(1) })
					q.flush()
				}
				deadline := time.AfterFunc(10*time.Second, func() { q.close(os.ErrDeadlineExceeded) })
				running.Wait()
				if !deadline.Stop() {
					t.Fatal("the sender did not notice that the connection had ended")
				}
				for i := range counts {
					if n := counts[i].Load(); n != 1 {
						t.Fatalf("body %d was released %d times", i, n)
					}
				}
				recv.Close()
			}
		})
	}
}
