package nbd

import "fmt"

// EventKind says what happened to a client of a server.
type EventKind uint8

// The kinds of event.
const (
	EventRefused         EventKind = iota + 1 // too many clients; Err says which limit
	EventHandshakeFailed                      // before transmission; Err says why
	EventAttached                             // transmission begins
	EventDetached                             // transmission has ended; Err is nil if the client said so, Requests and bytes are totals
	EventAcceptFailed                         // the listener failed; the server tries again
)

func (k EventKind) String() string {
	switch k {
	case EventRefused:
		return "refused"
	case EventHandshakeFailed:
		return "handshake_failed"
	case EventAttached:
		return "attached"
	case EventDetached:
		return "detached"
	case EventAcceptFailed:
		return "accept_failed"
	}
	return fmt.Sprintf("event(%d)", uint8(k))
}

// Event tells what a server did. Events of one client come in order; those of different clients at the same time.
type Event struct {
	Kind   EventKind
	Client string // the peer's address
	Export string // "" before one was chosen
	Err    error

	Requests     uint64 // that were well-formed enough to be given to the device
	BytesRead    uint64
	BytesWritten uint64
}
