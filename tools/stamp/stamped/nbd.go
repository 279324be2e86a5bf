package stamped

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// maxCalls is the room for requests in flight on one connection; further ones wait.
const maxCalls = 256

// NBD is a connection to an NBD server. It differs from nbd.Disk in that FUA can be asked for and that a lost
// connection is told from an error that the server answered.
type NBD struct {
	conn *nbd.Conn
	free chan *call // those not in use

	// mu guards everything below.
	mu    sync.Mutex
	calls [maxCalls]*call // in flight, by Tag
	lost  error           // why the connection ended
}

// call is one request in flight.
type call struct {
	req  blockdev.Request
	slot int
	done chan struct{} // has one token when the request is over
	lost error         // instead of an answer
}

// DialNBD connects to an export, named as "nbd://HOST:PORT/EXPORT" or "nbd+unix:///EXPORT?socket=PATH".
func DialNBD(ctx context.Context, uri string) (*NBD, error) {
	addr, export, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	conn, err := nbd.Dial(ctx, addr, nbd.ClientOptions{Export: export, MaxInFlight: maxCalls})
	if err != nil {
		return nil, err
	}
	n := &NBD{conn: conn, free: make(chan *call, maxCalls)}
	for i := range maxCalls {
		n.free <- &call{slot: i, done: make(chan struct{}, 1)}
	}
	conn.Start(n)
	return n, nil
}

// ParseURI takes an NBD URI apart, into what nbd.Dial wants.
func ParseURI(uri string) (addr, export string, err error) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", "", fmt.Errorf("stamped: %w", err)
	}
	export = strings.TrimPrefix(u.Path, "/")
	switch {
	case u.Scheme == "nbd" && u.Host != "":
		addr = u.Host
		if u.Port() == "" {
			addr += ":10809"
		}
	case u.Scheme == "nbd+unix" && u.Query().Get("socket") != "":
		addr = "unix:" + u.Query().Get("socket")
	default:
		return "", "", fmt.Errorf("stamped: %q is no NBD URI: write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH", uri)
	}
	return addr, export, nil
}

// Size is the disk's size in bytes.
func (n *NBD) Size() uint64 { return n.conn.Info().Size }

// ReadAt implements Disk.
func (n *NBD) ReadAt(p []byte, off uint64) error { return n.do(blockdev.OpRead, off, len(p), p, false) }

// WriteAt implements Disk.
func (n *NBD) WriteAt(p []byte, off uint64, fua bool) error {
	return n.do(blockdev.OpWrite, off, len(p), p, fua)
}

// ZeroAt implements Disk.
func (n *NBD) ZeroAt(off uint64, length int, fua bool) error {
	return n.do(blockdev.OpWriteZeroes, off, length, nil, fua)
}

// TrimAt implements Disk.
func (n *NBD) TrimAt(off uint64, length int, fua bool) error {
	return n.do(blockdev.OpTrim, off, length, nil, fua)
}

// Flush implements Disk.
func (n *NBD) Flush() error { return n.do(blockdev.OpFlush, 0, 0, nil, false) }

// Close implements Disk.
func (n *NBD) Close() error { return n.conn.Close() }

// do issues a request and waits for its end.
func (n *NBD) do(op blockdev.Op, off uint64, length int, data []byte, fua bool) error {
	c := <-n.free
	c.req = blockdev.Request{Op: op, Offset: off, Length: uint32(length), Data: data, Tag: uint64(c.slot)}
	if fua {
		c.req.Flags = blockdev.FlagFUA
	}
	c.lost = nil
	n.submit(c)
	<-c.done
	err := c.lost
	if err == nil {
		err = c.req.Err
	}
	n.free <- c
	return err
}

// submit sends a call, or ends it at once if the connection is over.
func (n *NBD) submit(c *call) {
	n.mu.Lock()
	lost := n.lost
	if lost == nil {
		n.calls[c.slot] = c
	}
	n.mu.Unlock()
	if lost == nil {
		err := n.conn.Submit([]*blockdev.Request{&c.req})
		if err == nil {
			return
		}
		// Not taken; but Closed, which ends everything in calls, may come in between.
		n.mu.Lock()
		mine := n.calls[c.slot] == c
		n.calls[c.slot] = nil
		n.mu.Unlock()
		if !mine {
			return
		}
		lost = fmt.Errorf("%w: %w", ErrLost, err)
	}
	c.lost = lost
	c.done <- struct{}{}
}

// Complete implements nbd.Handler.
func (n *NBD) Complete(done []*blockdev.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range done {
		c := n.calls[r.Tag]
		n.calls[r.Tag] = nil
		c.done <- struct{}{}
	}
}

// Closed implements nbd.Handler.
func (n *NBD) Closed(err error) {
	if err == nil {
		err = errors.New("closed")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost = fmt.Errorf("%w: %w", ErrLost, err)
	for i, c := range n.calls {
		if c != nil {
			c.lost = n.lost
			n.calls[i] = nil
			c.done <- struct{}{}
		}
	}
}
