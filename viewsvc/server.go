package viewsvc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

// ServerOptions say what a view server is and where. Zero waits get the defaults of doc.go.
type ServerOptions struct {
	ID       string            // of this view server
	Dir      string            // its data directory; made if missing
	Listen   string            // HOST:PORT, for HTTP and Raft; ignored with Listener
	Listener net.Listener      // taken over
	Peers    map[string]string // the other view servers: ID → HOST:PORT

	TDead        time.Duration
	PingHold     time.Duration
	Tick         time.Duration
	PauseAfter   time.Duration
	FirstWait    time.Duration
	ResumeWait   time.Duration
	RecruitAfter time.Duration

	// OnEvent is called for each event, in order, by one goroutine. When it blocks, events are dropped in the end,
	// but the service goes on; Close waits for it to return.
	OnEvent func(Event)
}

func (o *ServerOptions) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("viewsvc: "+format, args...)
	}
	for id, addr := range o.Peers {
		if !nodeName.MatchString(id) || id == o.ID {
			return bad("view server %q cannot be a peer of view server %q: give each another --id", id, o.ID)
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return bad("peer %s: address %q is not HOST:PORT", id, addr)
		}
	}
	switch {
	case !nodeName.MatchString(o.ID):
		return bad("view server ID %q: use 1 to 63 letters, digits or . _ -", o.ID)
	case o.Dir == "":
		return bad("a view server needs a data directory (--data)")
	case len(o.Peers)%2 != 0:
		return bad("%d view servers tolerate no more failures than %d: use 1, 3 or 5", len(o.Peers)+1, len(o.Peers))
	}
	for _, d := range []struct {
		wait *time.Duration
		def  time.Duration
	}{
		{&o.Tick, 20 * time.Millisecond}, {&o.TDead, 2 * time.Second}, {&o.PingHold, 100 * time.Millisecond},
		{&o.PauseAfter, 500 * time.Millisecond}, {&o.FirstWait, 300 * time.Millisecond},
		{&o.ResumeWait, 300 * time.Millisecond}, {&o.RecruitAfter, 10 * time.Second},
	} {
		if *d.wait < 0 {
			return bad("a wait of %s", *d.wait)
		}
		if *d.wait == 0 {
			*d.wait = d.def
		}
	}
	if o.TDead < 2*o.PingHold {
		return bad("TDead %s is shorter than two pings (%s each)", o.TDead, o.PingHold)
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	return nil
}

func (o *ServerOptions) monitor(term uint64) MonitorOptions {
	ticks := func(d time.Duration) uint64 { return max(uint64(d/o.Tick), 1) }
	return MonitorOptions{
		TDead:        ticks(o.TDead),
		FirstWait:    ticks(o.FirstWait),
		ResumeWait:   ticks(o.ResumeWait),
		RecruitAfter: ticks(o.RecruitAfter),
		HandoverWait: ticks(HandoverTimeout),
		WellAfter:    ticks(wellAfter),
		FloorEvery:   ticks(o.TDead) * max(uint64(floorEvery/o.TDead), 1),
		SettleEvery:  ticks(100 * time.Millisecond),
		BackoffMin:   ticks(100 * time.Millisecond),
		BackoffMax:   ticks(5 * time.Second),
		Epoch:        term,
	}
}

// Server is a view server: one member of the Raft group, and the whole service while it leads.
type Server struct {
	opt    ServerOptions
	lock   *os.File
	mux    *mux
	http   *http.Server
	cons   *consensus
	todo   *queue[task]
	events *queue[Event]

	ctx  context.Context // ends with Close; every goroutine and held request looks at it
	stop context.CancelFunc
	wg   sync.WaitGroup
	once sync.Once

	mu     sync.Mutex // guards everything below
	state  *State
	mon    *Monitor // nil while this server does not lead
	recent recentEvents
	news   chan struct{} // closed and replaced when somebody's news grew or leadership changed
}

// StartServer opens the data directory and serves until Close.
func StartServer(opt ServerOptions) (_ *Server, err error) {
	if err := opt.validate(); err != nil {
		return nil, err
	}
	s := &Server{opt: opt, state: NewState(), news: make(chan struct{}), todo: newQueue[task](maxQueuedTasks), events: newQueue[Event](maxQueuedEvents)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	if s.lock, err = lockDir(opt.Dir); err != nil {
		return nil, err
	}
	servers := append(slices.Collect(maps.Keys(opt.Peers)), opt.ID)
	slices.Sort(servers)
	meta, err := openDir(opt.Dir, opt.ID, servers)
	if err != nil {
		return nil, err
	}
	ln := opt.Listener
	if ln == nil {
		if ln, err = net.Listen("tcp", opt.Listen); err != nil {
			return nil, fmt.Errorf("viewsvc: %w", err)
		}
	}
	s.mux = newMux(ln)
	if s.cons, err = openConsensus(opt, meta, fsm{s}, s.mux.raft, raftLog{s.events}); err != nil {
		return nil, err
	}
	s.http = newHTTPServer(s)

	// All of these end when s.ctx does.
	s.wg.Go(s.perform)
	s.wg.Go(s.tell)
	s.wg.Go(s.followLeadership)
	s.wg.Go(s.tick)
	s.wg.Go(func() { s.http.Serve(s.mux.http) }) // its error is that it was closed
	return s, nil
}

// Addr is the address that the server listens on.
func (s *Server) Addr() string { return s.mux.ln.Addr().String() }

// Cluster is the cluster's identity, "" until the first leader made one.
func (s *Server) Cluster() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Cluster()
}

// Close ends the server and everything that it started. What was committed is on stable storage already.
func (s *Server) Close() error {
	var err error
	s.once.Do(func() {
		s.stop()
		err = s.release()
	})
	return err
}

// release lets go of whatever was opened, in an order in which nobody is left waiting.
func (s *Server) release() error {
	s.stop()
	var errs []error
	if s.http != nil {
		s.http.Close() // the connections are the mux's to report on
	}
	if s.cons != nil {
		errs = append(errs, s.cons.close())
	}
	if s.mux != nil {
		s.mux.Close()
	} else if s.opt.Listener != nil {
		s.opt.Listener.Close()
	}
	s.wg.Wait()
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}
