package nbd

import (
	"fmt"
	"sync"
)

// Limits of one round of sending.
const (
	maxRoundMessages = maxVectors / 2 // each has a header and perhaps a payload
	maxInlineRounds  = 4              // writev calls a completing goroutine does before it leaves the rest to the writer
	maxHeaderBytes   = 32             // room for any header before a payload
)

// errAnsweredUnsent ends a client's connection: the server answered a request that it cannot have read.
var errAnsweredUnsent = fmt.Errorf("%w: reply to a request that was not sent yet", ErrProtocol)

// message is a header and a payload on their way out. It belongs to the outbox from push until sent is called.
type message struct {
	header    [maxHeaderBytes]byte
	headerLen int
	payload   []byte
	next      *message
	slot      uint32 // the owner's own

	queued   bool // between push and sent
	handed   bool // in the present round of sending, which does not wait: the kernel may have it
	answered bool // client: the reply came while the message was handed and not known to be sent
}

func (m *message) size() int { return m.headerLen + len(m.payload) }

// outbox sends messages in order. Any goroutine may push and flush; one at a time sends: whoever finds nobody sending
// does, and takes along what others push meanwhile. What the socket does not take at once is left to the writer
// goroutine (run).
type outbox struct {
	sock *socket

	// mu guards everything below, and the owner's own state. It is not held during a system call.
	mu       sync.Mutex
	head     *message // being sent, or next
	tail     *message
	headSent int        // bytes of head that were sent
	writing  bool       // somebody is in writev, or the writer goroutine was woken
	changed  *sync.Cond // writing became false, dead was set, or what the owner wants to tell its waiter
	dead     error      // why nothing is sent any more

	wake chan struct{} // to the writer goroutine; holds at most one token, as writing is handed over with it

	// Used by who set writing, only.
	bufs    [][]byte
	headers []byte // headers of a round side by side, so that those without payload share a vector

	// sent tells the owner, with mu held, that a message was sent and is its own again.
	sent func(*message)
}

func (o *outbox) init(sock *socket, sent func(*message)) {
	o.sock = sock
	o.changed = sync.NewCond(&o.mu)
	o.wake = make(chan struct{}, 1)
	o.bufs = make([][]byte, 0, 64)
	o.headers = make([]byte, 0, maxRoundMessages*maxHeaderBytes)
	o.sent = sent
}

// pushLocked appends a message.
func (o *outbox) pushLocked(m *message) {
	m.next, m.queued, m.handed, m.answered = nil, true, false, false
	if o.tail == nil {
		o.head = m
	} else {
		o.tail.next = m
	}
	o.tail = m
}

// flushLocked sends what is queued unless somebody else is at it. It gives mu up during system calls but does not wait
// for the socket.
func (o *outbox) flushLocked() {
	if o.writing || o.dead != nil || o.head == nil {
		return
	}
	o.writing = true
	for range maxInlineRounds {
		full := o.roundLocked(o.sock.tryWrite)
		if o.dead != nil || o.head == nil {
			o.stopWritingLocked()
			return
		}
		if full {
			break
		}
	}
	o.wake <- struct{}{} // never blocks: the token goes with writing, of which there is one
}

// run is the writer goroutine. It ends when stop is closed; while it waits for the socket, closing that ends it.
func (o *outbox) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-o.wake:
		}
		o.mu.Lock()
		for o.head != nil && o.dead == nil {
			if o.sock.raw == nil {
				o.roundLocked(o.sock.blockingWrite)
			} else if o.roundLocked(o.sock.tryWrite) {
				o.waitLocked()
			}
		}
		o.stopWritingLocked()
		o.mu.Unlock()
	}
}

// waitLocked waits until the socket is not full any more.
func (o *outbox) waitLocked() {
	o.mu.Unlock()
	err := o.sock.waitWritable()
	o.mu.Lock()
	if err != nil {
		o.dieLocked(err)
	}
}

func (o *outbox) stopWritingLocked() {
	o.writing = false
	o.changed.Broadcast()
}

// roundLocked does one write of as much as fits in it. It reports whether the socket took less.
func (o *outbox) roundLocked(write func([][]byte) (int, error)) (full bool) {
	total := o.gatherLocked()
	o.mu.Unlock()
	n, err := write(o.bufs)
	o.mu.Lock()
	o.advanceLocked(n)
	if err != nil {
		o.dieLocked(err)
	}
	return n < total
}

// gatherLocked fills bufs from the head of the queue and returns how many bytes that are.
func (o *outbox) gatherLocked() (total int) {
	o.bufs, o.headers = o.bufs[:0], o.headers[:0]
	skip, joined := o.headSent, false
	for m, k := o.head, 0; m != nil && k < maxRoundMessages; m, k = m.next, k+1 {
		m.handed = true
		total += m.size() - skip
		if skip < m.headerLen {
			from := len(o.headers)
			o.headers = append(o.headers, m.header[skip:m.headerLen]...)
			if joined {
				last := len(o.bufs) - 1
				o.bufs[last] = o.headers[from-len(o.bufs[last]) : len(o.headers)]
			} else {
				o.bufs = append(o.bufs, o.headers[from:])
			}
			joined, skip = true, 0
		} else {
			skip -= m.headerLen
		}
		if len(m.payload) > skip {
			o.bufs = append(o.bufs, m.payload[skip:])
			joined = false
		}
		skip = 0
	}
	return total
}

// advanceLocked takes n bytes off the queue.
func (o *outbox) advanceLocked(n int) {
	for o.head != nil && n >= o.head.size()-o.headSent {
		m := o.head
		n -= m.size() - o.headSent
		o.headSent = 0
		o.head = m.next
		if o.head == nil {
			o.tail = nil
		}
		m.next, m.queued = nil, false
		o.sent(m)
	}
	o.headSent += n
	for m := o.head; m != nil && m.handed; m = m.next {
		m.handed = false
		if m.answered {
			o.dieLocked(errAnsweredUnsent)
		}
	}
}

// dieLocked ends sending; the first reason is kept. Whoever waits for changed sees to the rest.
func (o *outbox) dieLocked(reason error) {
	if o.dead == nil {
		o.dead = reason
		o.changed.Broadcast()
	}
}

// kill ends the connection at once, from any goroutine: what is not sent is not sent any more, and a reader or writer
// that waits for the socket returns.
func (o *outbox) kill(reason error) {
	o.mu.Lock()
	o.dieLocked(reason)
	o.mu.Unlock()
	o.sock.Close()
}
