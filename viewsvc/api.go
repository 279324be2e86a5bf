package viewsvc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Limits of the HTTP server.
const (
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 64 << 10
	// requestTimeout is longer than any hold: the HTTP library ends a held request when it expires.
	requestTimeout = 3 * WatchHold
)

// connKey finds the muxConn of a request in its context.
type connKey struct{}

func newHTTPServer(s *Server) *http.Server {
	routes := http.NewServeMux()
	handle(routes, s, "POST /v1/ping", s.handlePing)
	handle(routes, s, "POST /v1/propose", s.handlePropose)
	handle(routes, s, "GET /v1/watch", s.handleWatch)
	handle(routes, s, "GET /v1/status", s.handleStatus)
	handle(routes, s, "GET /v1/views", s.handleViews)
	handle(routes, s, "GET /v1/events", s.handleEvents)
	handle(routes, s, "DELETE /v1/nodes/{id}", s.handleForget)
	handle(routes, s, "POST /v1/volumes", s.handleCreate)
	handle(routes, s, "DELETE /v1/volumes/{name}", s.handleDelete)
	handle(routes, s, "DELETE /v1/volumes/{name}/copies/{node}", s.handleDrop)
	handle(routes, s, "POST /v1/volumes/{name}/resize", s.handleResize)
	handle(routes, s, "POST /v1/volumes/{name}/handover", s.handleHandover)
	handle(routes, s, "POST /v1/volumes/{name}/resume", s.handleResume)
	handle(routes, s, "POST /v1/volumes/{name}/check", s.handleCheck)
	handle(routes, s, "POST /v1/volumes/{name}/force", s.handleForce)
	handle(routes, s, "POST /v1/volumes/{name}/claim", s.handleClaim)
	routes.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.writeError(w, fmt.Errorf("%w: no %s %s in this API", ErrNotFound, r.Method, r.URL.Path))
	})
	return &http.Server{
		Handler:           routes,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          log.New(io.Discard, "", 0), // garbage from outside is no news
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ConnState: s.connState,
	}
}

// connState hears of every connection's end: with a ping held on it the HTTP library watches it, so that the
// death of a node's process is heard of at once.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	mc, ok := c.(*muxConn)
	if !ok || state != http.StateClosed {
		return
	}
	if p := mc.pinger.Load(); p != nil {
		s.withMonitor(func(m *Monitor) error { m.Broken(p.node, p.incarnation); return nil })
	}
}

// none stands for a request or a reply without a body.
type none struct{}

// handle registers a handler of a request body In and a reply Out.
func handle[In, Out any](routes *http.ServeMux, s *Server, pattern string, f func(*http.Request, In) (Out, error)) {
	routes.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var in In
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
		if err != nil {
			s.writeError(w, fmt.Errorf("%w: request body: %w", ErrInvalid, err))
			return
		}
		if _, bodyless := any(in).(none); !bodyless {
			if err := json.Unmarshal(body, &in); err != nil {
				s.writeError(w, fmt.Errorf("%w: request body: %w", ErrInvalid, err))
				return
			}
		}
		out, err := f(r, in)
		if err != nil {
			s.writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, out)
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // none of our types fails
		status, b = http.StatusInternalServerError, []byte(`{"code":"internal","message":"viewsvc: encode reply"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b) // a client that is gone is no news
}

// notLeaderError sends the client to the leader.
type notLeaderError struct{ id, addr string }

func (e *notLeaderError) Error() string {
	return fmt.Sprintf("viewsvc: view server %s leads, at %s", e.id, e.addr)
}

// notLeader is the error of a server that cannot answer now.
func (s *Server) notLeader() error {
	if id, addr := s.cons.leader(); addr != "" && id != s.opt.ID {
		return &notLeaderError{id, addr}
	}
	return fmt.Errorf("%w: view server %s knows of no leader yet", ErrNoLeader, s.opt.ID)
}

func (s *Server) writeError(w http.ResponseWriter, err error) {
	if n, ok := errors.AsType[*notLeaderError](err); ok {
		writeJSON(w, http.StatusMisdirectedRequest, errorBody{Code: codeNotLeader, Message: err.Error(), Leader: n.addr})
		return
	}
	status, body := encodeError(err)
	writeJSON(w, status, body)
}

// hold waits while cond holds of this time of leading, until wait is over. It returns with s.mu held, and no
// error if this server still leads.
func (s *Server) holdLocked(ctx context.Context, wait time.Duration, cond func(*Monitor) bool) error {
	mon := s.mon
	if mon == nil {
		return s.notLeader()
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for over := false; !over && s.mon == mon && cond(mon); {
		news := s.news
		s.mu.Unlock()
		select {
		case <-news:
		case <-timeout.C:
			over = true
		case <-ctx.Done():
			over = true
		}
		s.mu.Lock()
	}
	if s.mon != mon {
		return s.notLeader()
	}
	return ctx.Err()
}

func (s *Server) handlePing(r *http.Request, req PingRequest) (PingReply, error) {
	if c, ok := r.Context().Value(connKey{}).(*muxConn); ok && !req.Bye {
		c.pinger.Store(&pinger{req.Node, req.Incarnation})
	}
	if err := s.withMonitor(func(m *Monitor) error { return m.Ping(req) }); err != nil {
		return PingReply{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holdLocked(r.Context(), s.opt.PingHold, func(m *Monitor) bool { return m.Held(req) }); err != nil {
		return PingReply{}, err
	}
	return s.mon.Reply(req)
}

func (s *Server) handleWatch(r *http.Request, _ none) (VolumeStatus, error) {
	name := r.URL.Query().Get("volume")
	seen, err := strconv.ParseUint(r.URL.Query().Get("news"), 10, 64)
	if err != nil {
		return VolumeStatus{}, fmt.Errorf("%w: news: %w", ErrInvalid, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.holdLocked(r.Context(), WatchHold, func(m *Monitor) bool {
		news, err := m.VolumeNews(name)
		return err == nil && news == seen
	})
	if err != nil {
		return VolumeStatus{}, err
	}
	return s.mon.VolumeStatus(name)
}

// carryOut commits the command that plan makes of what somebody asks for, and waits for what comes of it.
func (s *Server) carryOut(plan func(*Monitor) (Command, error)) (Result, error) {
	var cmd Command
	err := s.withMonitor(func(m *Monitor) (err error) { cmd, err = plan(m); return err })
	if err != nil {
		return Result{}, err
	}
	cmd.Time = time.Now().UTC()
	return s.cons.apply(cmd)
}

func (s *Server) handlePropose(_ *http.Request, p Proposal) (View, error) {
	result, err := s.carryOut(func(m *Monitor) (Command, error) { return m.Vet(p) })
	return result.View, err
}

func (s *Server) handleStatus(*http.Request, none) (ClusterStatus, error) {
	var status ClusterStatus
	err := s.withMonitor(func(m *Monitor) error { status = m.ClusterStatus(); return nil })
	if err != nil {
		return ClusterStatus{}, err
	}
	for _, id := range slices.Sorted(maps.Keys(s.cons.addrs)) {
		status.Servers = append(status.Servers, ServerStatus{
			ID: string(id), Addr: s.cons.addrs[id], Leader: string(id) == s.opt.ID,
		})
	}
	return status, s.cons.verify()
}

func (s *Server) handleViews(r *http.Request, _ none) ([]HistoryEntry, error) {
	var history []HistoryEntry
	err := s.withMonitor(func(*Monitor) (err error) {
		history, err = s.state.Views(r.URL.Query().Get("volume"))
		return err
	})
	if err != nil {
		return nil, err
	}
	return history, s.cons.verify()
}

func (s *Server) handleCreate(_ *http.Request, v Volume) (Volume, error) {
	if _, err := uuid.Parse(string(v.ID)); err != nil { // nodes name directories by it
		return Volume{}, fmt.Errorf("%w: volume ID %q is no UUID", ErrInvalid, v.ID)
	}
	var made Volume
	_, err := s.carryOut(func(m *Monitor) (Command, error) {
		cmd, err := m.PlanCreate(v)
		if err == nil {
			made = *cmd.Create
		}
		return cmd, err
	})
	return made, err
}

func (s *Server) handleDelete(r *http.Request, _ none) (none, error) {
	_, err := s.carryOut(func(m *Monitor) (Command, error) { return m.PlanDelete(r.PathValue("name")) })
	return none{}, err
}

// resizeRequest is the body of a wish for a larger volume.
type resizeRequest struct {
	Size uint64 `json:"size"`
}

func (s *Server) handleResize(r *http.Request, req resizeRequest) (none, error) {
	_, err := s.carryOut(func(m *Monitor) (Command, error) { return m.PlanResize(r.PathValue("name"), req.Size) })
	return none{}, err
}

func (s *Server) handleClaim(r *http.Request, c ClaimChange) (Claim, error) {
	result, err := s.carryOut(func(m *Monitor) (Command, error) { return m.PlanClaim(r.PathValue("name"), c) })
	return result.Claim, err
}

func (s *Server) handleForce(r *http.Request, req operatorRequest) (View, error) {
	result, err := s.carryOut(func(m *Monitor) (Command, error) {
		return m.PlanForce(r.PathValue("name"), req.Node, req.Reason)
	})
	return result.View, err
}

func (s *Server) handleResume(r *http.Request, _ operatorRequest) (none, error) {
	return none{}, s.withMonitor(func(m *Monitor) error { return m.OrderResume(r.PathValue("name")) })
}

func (s *Server) handleCheck(r *http.Request, req CheckOrder) (CheckOrder, error) {
	err := s.withMonitor(func(m *Monitor) (err error) {
		req, err = m.OrderCheck(r.PathValue("name"), req.Scrub)
		return err
	})
	return req, err
}

// handleHandover gives the order and waits for the view that comes of it.
func (s *Server) handleHandover(r *http.Request, req operatorRequest) (View, error) {
	var volume VolumeID
	var to ReplicaID
	err := s.withMonitor(func(m *Monitor) (err error) {
		volume, to, err = m.OrderHandover(r.PathValue("name"), req.Node)
		return err
	})
	if err != nil {
		return View{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.holdLocked(r.Context(), HandoverTimeout, func(m *Monitor) bool { return m.handoverStands(volume, to) })
	if err != nil {
		return View{}, err
	}
	if v := s.state.volumes[volume]; v != nil && v.View.Primary == to {
		return v.View, nil
	}
	s.mon.CancelHandover(volume, to)
	s.flushLocked()
	return View{}, fmt.Errorf("%w: the primary did not hand over to replica %s in time; `lockstep status` shows whether it lags", ErrTimeout, to)
}
