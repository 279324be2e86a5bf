package replication

import (
	"errors"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxQueuedBytes is how much may wait for a peer's socket. A peer that falls further behind loses its stream and is
// brought up to date from the log.
const maxQueuedBytes = 256 << 20

var errBehind = errors.New("replication: peer is too far behind; it will be brought up to date from the log")

// outMsg is an encoded message: a header and a body, sent as one.
type outMsg struct {
	head [headerSize]byte
	body []byte
	done func() // the body is the owner's again; may be nil
}

// sendq sends messages over a stream in order. Whoever pushes also tries to send, without waiting for the socket; what
// the socket does not take is left to the goroutine in run. So a committer never waits for a slow peer, and no
// goroutine has to wake up for a frame that fits into the socket's buffer.
type sendq struct {
	conn net.Conn
	raw  syscall.RawConn // nil: not a kernel socket; only run writes

	mu      sync.Locker // guards everything below; not held during a system call
	more    Cond        // to run and to waitBelow
	queue   []outMsg
	sent    int // bytes of queue[0] that are sent
	bytes   int
	writing bool
	err     error

	// Of whoever is writing: kept from one write to the next, so that a message costs no memory.
	vec  [][]byte
	sock struct {
		once func(fd uintptr) bool // one system call that does not wait
		n    int
		err  error
	}
}

func newSendq(rt Runtime, conn net.Conn) *sendq {
	q := &sendq{conn: conn, mu: rt.Mutex()}
	q.more = rt.Cond(q.mu)
	if sc, ok := conn.(syscall.Conn); ok {
		q.raw, _ = sc.SyscallConn()
	}
	q.sock.once = func(fd uintptr) bool {
		for {
			q.sock.n, q.sock.err = unix.Writev(int(fd), q.vec)
			if q.sock.err != unix.EINTR {
				return true
			}
		}
	}
	return q
}

// push queues a message. It does no I/O, so that order can be decided under the caller's lock; flush follows.
func (q *sendq) push(m msg, body []byte, done func()) {
	m.BodyLen = uint32(len(body))
	o := outMsg{body: body, done: done}
	m.put(o.head[:])
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil && q.bytes > maxQueuedBytes {
		q.failLocked(errBehind)
	}
	if q.err != nil {
		if done != nil {
			done()
		}
		return
	}
	q.queue = append(q.queue, o)
	q.bytes += headerSize + len(body)
}

// pushEncoded queues the bytes of msg.encode.
func (q *sendq) pushEncoded(b []byte) {
	o := outMsg{body: b[headerSize:]}
	copy(o.head[:], b)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.queue = append(q.queue, o)
		q.bytes += len(b)
	}
}

// flush sends what the socket takes at once.
func (q *sendq) flush() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.writing || q.err != nil || len(q.queue) == 0 {
		return // whoever is writing takes it along
	}
	if q.raw != nil {
		q.writing = true
		for q.err == nil && len(q.queue) > 0 && q.writeLocked(true) {
		}
		q.writing = false
	}
	if len(q.queue) > 0 {
		q.more.Broadcast()
	}
}

// waitBelow waits until fewer than n bytes are queued.
func (q *sendq) waitBelow(n int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes >= n && q.err == nil {
		q.more.Wait()
	}
	return q.err
}

// run sends what flush could not, until close.
func (q *sendq) run() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil {
		if len(q.queue) == 0 || q.writing {
			q.more.Wait()
			continue
		}
		q.writing = true
		q.writeLocked(false)
		q.writing = false
	}
}

// close ends sending; the bodies that were queued are released. The connection is closed.
func (q *sendq) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.failLocked(err)
}

func (q *sendq) failLocked(err error) {
	if q.err != nil {
		return
	}
	q.err = err
	q.conn.Close()
	if !q.writing { // else the writer, which holds the bodies, does it
		q.releaseLocked()
	}
	q.more.Broadcast()
}

func (q *sendq) releaseLocked() {
	for _, o := range q.queue {
		if o.done != nil {
			o.done()
		}
	}
	q.queue, q.bytes = nil, 0
}

// maxVector is how many messages go into one system call.
const maxVector = 64

// writeLocked does one write with the lock given up. It reports whether the socket took all that it was given.
func (q *sendq) writeLocked(try bool) bool {
	n := min(len(q.queue), maxVector)
	q.vec = q.vec[:0]
	skip, total := q.sent, 0
	for i := range q.queue[:n] {
		o := &q.queue[i]
		for _, b := range [2][]byte{o.head[:], o.body} {
			if skip >= len(b) {
				skip -= len(b)
				continue
			}
			q.vec = append(q.vec, b[skip:])
			total += len(b) - skip
			skip = 0
		}
	}
	q.mu.Unlock()
	var sent int
	var err error
	if try {
		sent, err = q.tryWrite()
	} else {
		var m int64
		bufs := net.Buffers(q.vec)
		m, err = bufs.WriteTo(q.conn)
		sent = int(m)
	}
	q.mu.Lock()
	if q.err != nil {
		q.releaseLocked()
		return false
	}
	q.advanceLocked(sent)
	if err != nil {
		q.writing = false
		q.failLocked(err)
		return false
	}
	return sent == total
}

func (q *sendq) advanceLocked(n int) {
	q.bytes -= n
	n += q.sent
	k := 0
	for k < len(q.queue) && n >= headerSize+len(q.queue[k].body) {
		n -= headerSize + len(q.queue[k].body)
		if d := q.queue[k].done; d != nil {
			d()
		}
		k++
	}
	q.sent = n
	rest := copy(q.queue, q.queue[k:])
	clear(q.queue[rest:])
	q.queue = q.queue[:rest]
	if k > 0 {
		q.more.Broadcast()
	}
}

// tryWrite sends what the socket takes at once.
func (q *sendq) tryWrite() (int, error) {
	if err := q.raw.Write(q.sock.once); err != nil {
		return 0, err
	}
	if q.sock.err == unix.EAGAIN {
		return 0, nil
	}
	return max(q.sock.n, 0), q.sock.err
}
