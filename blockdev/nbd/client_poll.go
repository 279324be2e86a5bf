package nbd

import (
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// replyReader is the part of a Conn that whoever reads replies has for himself: the Conn's goroutine, unless it waits for the
// socket, or a goroutine in Poll.
type replyReader struct {
	raw syscall.RawConn // nil: the connection is no plain socket, and only the Conn's goroutine reads

	missing int       // bytes that the reply at the head of the buffer has, if they are more than are there
	rest    remainder // of a reply; it is the Conn's goroutine that reads it

	// Results of one try, and the two functions that try: made once, because a closure for each would be an allocation.
	n      int
	err    error
	await  func(fd uintptr) bool
	peekIn func(fd uintptr)
}

// Poll completes requests whose answers have come already, from the caller's goroutine, and does not wait for any. A
// goroutine that is about to do something else for a while, with answers due, spares the Conn's goroutine a wake-up, and
// their requests the wait for it. It may be called at any time after Start, by Handler's methods too.
func (c *Conn) Poll() {
	if c.raw == nil || !c.reading.TryLock() {
		return
	}
	defer c.reading.Unlock()
	if c.rest.slot != nil {
		return
	}
	c.n = 0
	if err := c.raw.Control(c.peekIn); err != nil || c.n <= 0 {
		return // if it is the end, the Conn's goroutine meets it too
	}
	if err := c.takeReplies(); err != nil {
		c.kill(err)
	}
}

// awaitMore waits until there is more in the buffer, or a Poll has left the rest of a reply. Others may read meanwhile.
func (c *Conn) awaitMore() error {
	if c.raw == nil {
		c.err = c.in.fill(c.missing)
	} else {
		c.reading.Unlock()
		if err := c.raw.Read(c.await); err != nil { // await did not come back with the lock
			c.reading.Lock()
			return err
		}
	}
	if c.err == io.EOF && len(c.in.buffered()) > 0 {
		return io.ErrUnexpectedEOF
	}
	return c.err
}

// initReader is called when the connection is what it will be: encrypted or not.
func (c *Conn) initReader() {
	c.raw = c.sock.raw
	c.await = func(fd uintptr) bool {
		c.reading.Lock()
		if c.rest.slot != nil { // Poll has left it
			c.err = nil
			return true
		}
		if c.n, c.err = c.tryFill(fd); c.err == unix.EAGAIN {
			c.reading.Unlock()
			return false
		}
		return true
	}
	c.peekIn = func(fd uintptr) { c.n, c.err = c.tryFill(fd) }
}

// tryFill reads once from a non-blocking descriptor. The call is raw for the same reason as in socketReader.tryReadv.
func (c *Conn) tryFill(fd uintptr) (int, error) {
	n, err := rawRead(fd, c.in.space(c.missing))
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	c.in.w += n
	return n, nil
}
