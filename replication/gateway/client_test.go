package gateway

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// page is a block that can be recognised.
func page(text string) []byte {
	return []byte(strings.Repeat(text, blockdev.BlockSize/len(text)+1)[:blockdev.BlockSize])
}

// submitter sends requests without waiting for each.
type submitter struct {
	conn *nbd.Conn

	// mu guards everything below.
	mu     sync.Mutex
	done   map[*blockdev.Request]error
	closed bool
}

func (c *cluster) submitter() *submitter {
	c.tb.Helper()
	conn, err := nbd.Dial(c.tb.Context(), c.addr, nbd.ClientOptions{Export: "vol0"})
	if err != nil {
		c.tb.Fatal(err)
	}
	s := &submitter{conn: conn, done: make(map[*blockdev.Request]error)}
	conn.Start(s)
	c.tb.Cleanup(func() {
		conn.Close()
		eventually(c.tb, "the client's connection has ended", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.closed })
	})
	return s
}

func (s *submitter) Complete(done []*blockdev.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range done {
		s.done[r] = r.Err
	}
}

func (s *submitter) Closed(error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

func (s *submitter) send(rs ...*blockdev.Request) { s.conn.Submit(rs) }

func (s *submitter) answered(r *blockdev.Request) (error, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err, ok := s.done[r]
	return err, ok
}

func (s *submitter) await(tb testing.TB, r *blockdev.Request) {
	tb.Helper()
	eventually(tb, fmt.Sprintf("%v at %d is answered", r.Op, r.Offset), func() bool { _, ok := s.answered(r); return ok })
	if err, _ := s.answered(r); err != nil {
		tb.Fatalf("%v at %d: %v", r.Op, r.Offset, err)
	}
}

func write(block uint64, text string) *blockdev.Request {
	return &blockdev.Request{Op: blockdev.OpWrite, Offset: block * blockdev.BlockSize, Length: blockdev.BlockSize, Data: page(text)}
}

func read(block uint64) *blockdev.Request {
	return &blockdev.Request{Op: blockdev.OpRead, Offset: block * blockdev.BlockSize, Length: blockdev.BlockSize, Data: make([]byte, blockdev.BlockSize)}
}
