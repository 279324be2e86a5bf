package viewsvc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"time"
)

// call is one request, wherever it ends up.
type call struct {
	method   string
	path     string // with the query
	in       any
	out      any
	patience time.Duration // how long to wait for one server's answer
}

// do finds the leader and gives it the request, in rounds over all servers, until ctx ends.
func (c *Client) do(ctx context.Context, hc *http.Client, req call) error {
	_, err := c.doTold(ctx, hc, req)
	return err
}

// search is what a call has met on its way.
type search struct {
	before   bool // a server may have been given the request, and may carry it out yet
	answered bool // a view server has answered
}

// doTold also tells whether some server may have been given the request before the one whose answer this is: that one
// may carry it out yet.
func (c *Client) doTold(ctx context.Context, hc *http.Client, req call) (before bool, err error) {
	var body []byte
	if req.in != nil {
		var err error
		if body, err = json.Marshal(req.in); err != nil {
			return false, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	began, backoff := time.Now(), backoffMin
	var told error // by a server that answered; of more use than that others did not
	var found search
	noticed := c.opt.OnElection == nil
	for {
		last := c.round(ctx, hc, req, body, &found)
		if _, again := errors.AsType[*tryNextError](last); !again {
			return found.before, last
		}
		if errors.Is(last, ErrLeaderless) || told == nil {
			told = last
		}
		waited := time.Since(began)
		if silent := c.opt.SilentTimeout; silent > 0 && waited > silent && !found.answered {
			return found.before, fmt.Errorf("%w: %w", ErrNoLeader, told)
		}
		if !noticed && waited > ElectionNotice && found.answered {
			noticed = true
			c.opt.OnElection()
		}
		// Full jitter: servers that come back are not met by all clients in the same millisecond.
		select {
		case <-time.After(rand.N(backoff) + time.Millisecond):
		case <-ctx.Done():
			if found.answered && !errors.Is(told, ErrLeaderless) {
				told = fmt.Errorf("%w (%w)", ErrLeaderless, told)
			}
			return found.before, fmt.Errorf("%w (%w): %w", ErrNoLeader, context.Cause(ctx), told)
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// round asks the one who led last, then everybody, and follows hints. A *tryNextError means that nobody led.
func (c *Client) round(ctx context.Context, hc *http.Client, req call, body []byte, found *search) error {
	c.mu.Lock()
	leader := c.leader
	c.mu.Unlock()
	queue := make([]string, 0, len(c.opt.Servers)+1+maxLeaderHops)
	if leader != "" {
		queue = append(queue, leader)
	}
	for _, s := range c.opt.Servers {
		if s != leader {
			queue = append(queue, s)
		}
	}
	var last error
	for hops := 0; len(queue) > 0 && ctx.Err() == nil; {
		server := queue[0]
		queue = queue[1:]
		err := c.ask(ctx, hc, server, req, body)
		next, again := errors.AsType[*tryNextError](err)
		if !again {
			c.remember(server)
			return err
		}
		found.before = found.before || next.given
		found.answered = found.answered || next.answered
		if next.leader != "" && next.leader != server && hops < maxLeaderHops {
			hops++
			queue = append([]string{next.leader}, queue...)
		}
		if !errors.Is(last, ErrLeaderless) {
			last = err
		}
	}
	c.remember("")
	if last == nil {
		last = &tryNextError{err: ctx.Err()}
	}
	return last
}

func (c *Client) remember(leader string) {
	c.mu.Lock()
	c.leader = leader
	c.mu.Unlock()
}

// tryNextError says that this server could not decide the request; perhaps leader can.
type tryNextError struct {
	err      error
	leader   string
	answered bool // a view server has answered
	given    bool // all the same it may have the request, and decide it yet
}

func (e *tryNextError) Error() string { return e.err.Error() }
func (e *tryNextError) Unwrap() error { return e.err }

// ask gives the request to one server.
func (c *Client) ask(ctx context.Context, hc *http.Client, server string, req call, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, req.patience)
	defer cancel()
	hr, err := http.NewRequestWithContext(ctx, req.method, "http://"+server+req.path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	hr.Header.Set("Content-Type", "application/json")
	resp, err := hc.Do(hr)
	if err != nil {
		op, dialing := errors.AsType[*net.OpError](err)
		return &tryNextError{err: fmt.Errorf("view server %s: %w", server, err), given: !dialing || op.Op != "dial"}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReplyBytes+1))
	if err != nil {
		return &tryNextError{err: fmt.Errorf("view server %s: reply cut off: %w", server, err), given: true}
	}
	if len(data) > maxReplyBytes {
		return &tryNextError{err: fmt.Errorf("view server %s: reply larger than %d bytes", server, maxReplyBytes), given: true}
	}
	if resp.StatusCode == http.StatusOK {
		if req.out == nil {
			return nil
		}
		if err := json.Unmarshal(data, req.out); err != nil {
			return fmt.Errorf("%w: view server %s answers in another language: %w", ErrInternal, server, err)
		}
		return nil
	}
	var e errorBody
	if err := json.Unmarshal(data, &e); err != nil || e.Code == "" {
		return &tryNextError{err: fmt.Errorf("%s is no view server: HTTP status %s", server, resp.Status), given: true}
	}
	err = decodeError(e)
	if e.Code == codeNotLeader || errors.Is(err, ErrNoLeader) {
		if e.Leader == "" {
			err = fmt.Errorf("view server %s: %w", server, ErrLeaderless)
		} else {
			err = fmt.Errorf("view server %s: %s", server, e.Message)
		}
		return &tryNextError{err: err, leader: e.Leader, answered: true, given: e.Code != codeNotLeader}
	}
	return err
}
