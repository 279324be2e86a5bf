package main

import (
	"runtime"
	"sync"

	"lockstep/blockdev/nbd"
	"lockstep/replication/gateway"
)

// setProcs gives the Go scheduler of a node more Ps than there are cores, unless $GOMAXPROCS says otherwise. A goroutine
// in a blocking system call (fdatasync, most of the time) keeps its P until the runtime's monitor takes it away, 20 µs to
// 10 ms later; with one P per core, one volume's sync would so hold up everything else.
func setProcs(env *environment) {
	if env.getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(4, runtime.NumCPU()+2))
	}
}

// clientProcs gives the Go scheduler of a gateway a P for each client, and no more than cores; two if it encrypts, which is
// done beside decrypting. A gateway never blocks but for the network, and what it does for a client comes one after
// the other: it takes a burst, passes it on, passes the answers back. A thread that finds something to do wakes
// another for each P that is idle, to look whether there is more. There is not, and looking for it keeps the client or the
// primary on the same host from running: one read at depth 32 costs half as much again.
type clientProcs struct {
	set func(int) // nil: the number is the user's

	perClient, most int

	// mu guards everything below.
	mu      sync.Mutex
	clients int
	now     int // setting what is set already would stop the world for nothing
}

func newClientProcs(env *environment, encrypted bool) *clientProcs {
	p := &clientProcs{perClient: 1, most: runtime.GOMAXPROCS(0), now: runtime.GOMAXPROCS(0)}
	if encrypted {
		p.perClient = 2
	}
	if env.getenv("GOMAXPROCS") == "" {
		p.set = func(n int) { runtime.GOMAXPROCS(n) }
	}
	p.count(0)
	return p
}

// follow counts the clients that come and go.
func (p *clientProcs) follow(next func(gateway.Event)) func(gateway.Event) {
	return func(e gateway.Event) {
		if e.Kind == gateway.EventClient {
			switch e.Client.Kind {
			case nbd.EventAttached:
				p.count(1)
			case nbd.EventDetached:
				p.count(-1)
			case nbd.EventRefused, nbd.EventHandshakeFailed, nbd.EventAcceptFailed:
			}
		}
		next(e)
	}
}

func (p *clientProcs) count(n int) {
	if p.set == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clients += n
	if want := min(max(1, p.clients)*p.perClient, p.most); want != p.now {
		p.set(want)
		p.now = want
	}
}
