package gateway

import "lockstep/blockdev"

// Flight is the gateway's core for another driver than this package's sessions: the simulator's, which has its own
// goroutines, clock and connections. The rules are those of doc.go; what is not said here is in flight.go.
type Flight struct{ flight flight }

// Lane is one session's part of a Flight. The zero value is ready.
type Lane = lane

// Admit puts a request into flight.
func (f *Flight) Admit(l *Lane, r *blockdev.Request) { f.flight.admit(l, r, 0) }

// Take appends the requests of a lane that may be sent now, each with its number, to dst.
func (f *Flight) Take(l *Lane, dst []*blockdev.Request) []*blockdev.Request {
	return f.flight.take(l, dst, maxBurst)
}

// Complete takes a request that a primary answered out of flight.
func (f *Flight) Complete(l *Lane, r *blockdev.Request) { f.flight.complete(l, r) }

// Rewind makes all requests of a lane, whose connection is closed, ready to be sent again (G2).
func (f *Flight) Rewind(l *Lane) { f.flight.rewind(l) }

// Abandon lets go of a lane's requests, whose client has gone. It returns how many keep their bytes until the session is
// fenced (G5).
func (f *Flight) Abandon(l *Lane) (ghosts int) { return f.flight.abandon(l) }

// Bury gives the bytes of a lane that was fenced free.
func (f *Flight) Bury(l *Lane) { f.flight.bury(l) }

// Woken returns a lane of which requests became ready; nil when there is none left.
func (f *Flight) Woken() *Lane { return f.flight.nextWoken() }
