package viewsvc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Limits of a Client.
const (
	defaultDialTimeout = time.Second      // a server that does not accept by then is passed over
	defaultCallTimeout = 10 * time.Second // a call without a deadline of its own gives up on finding a leader
	defaultPingTimeout = 3 * time.Second  // the same for a ping, which the node repeats anyway
	answerTimeout      = 3 * time.Second  // a server that is silent for so long, beyond any hold, is passed over
	pingAnswerTimeout  = time.Second      // the same for a ping: the next server must hear it within TDead
	backoffMin         = 10 * time.Millisecond
	backoffMax         = 500 * time.Millisecond
	ElectionNotice     = 2 * time.Second // see ClientOptions.OnElection
	maxLeaderHops      = 3               // "not I, ask him" that are followed in one round
)

// ClientOptions says how to reach the view service.
type ClientOptions struct {
	Servers     []string      // host:port of every view server, in any order
	DialTimeout time.Duration // 0 means 1 s
	CallTimeout time.Duration // how long a call looks for a leader when its context has no deadline; 0 means 10 s
	PingTimeout time.Duration // the same for Ping and Watch; 0 means 3 s

	// SilentTimeout ends a call after the round over all servers in which it passes, if not one has answered: of an election
	// the others would tell. 0 means that only CallTimeout counts.
	SilentTimeout time.Duration
	// OnElection is called once in a call that has looked for a leader for ElectionNotice, though a server answers. nil is
	// allowed.
	OnElection func()
}

func (o *ClientOptions) validate() error {
	if len(o.Servers) == 0 {
		return fmt.Errorf("%w: no view server was given (--view HOST:PORT or $LOCKSTEP_VIEW)", ErrInvalid)
	}
	for _, s := range o.Servers {
		if _, _, err := net.SplitHostPort(s); err != nil {
			return fmt.Errorf("%w: view server %q is not HOST:PORT", ErrInvalid, s)
		}
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = defaultDialTimeout
	}
	if o.CallTimeout <= 0 {
		o.CallTimeout = defaultCallTimeout
	}
	if o.PingTimeout <= 0 {
		o.PingTimeout = defaultPingTimeout
	}
	return nil
}

// Client talks to whichever view server leads: it tries all, follows the hint of one that does not lead,
// remembers who answered, and backs off with jitter between rounds. Every call may be repeated safely: a
// proposal is a compare-and-swap, and a volume is created under an ID that the client chose. Its methods may
// be called from many goroutines at once.
type Client struct {
	opt ClientOptions

	// Pings have connections of their own, kept alive, which nothing else closes or queues on: when a node's
	// process dies its ping connection breaks, and the service looks into it at once.
	pings *http.Client
	calls *http.Client

	mu     sync.Mutex
	leader string // who answered last; tried first
}

// NewClient makes a client; it connects to nobody yet.
func NewClient(opt ClientOptions) (*Client, error) {
	if err := opt.validate(); err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: opt.DialTimeout, KeepAlive: 5 * time.Second}
	newHTTP := func() *http.Client {
		return &http.Client{
			// No proxy from the environment: the service is never behind one, and a lost ping costs a failover.
			Transport: &http.Transport{
				DialContext:         dialer.DialContext,
				MaxIdleConnsPerHost: 2,
				IdleConnTimeout:     time.Minute,
				DisableCompression:  true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &Client{opt: opt, pings: newHTTP(), calls: newHTTP()}, nil
}

// Close lets go of idle connections. Calls under way end by their contexts.
func (c *Client) Close() {
	c.pings.CloseIdleConnections()
	c.calls.CloseIdleConnections()
}

// Ping is a node's sign of life. It returns when there is news, or after the service's PingHold. A node has one
// ping under way at a time and sends the next as soon as it has acted on the reply. ErrForeignCluster and
// ErrDuplicateNode mean that pinging on is useless.
func (c *Client) Ping(ctx context.Context, req PingRequest) (PingReply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.PingTimeout)
	defer cancel()
	var reply PingReply
	err := c.do(ctx, c.pings, call{method: http.MethodPost, path: "/v1/ping", in: req, out: &reply, patience: pingAnswerTimeout})
	if err != nil {
		return PingReply{}, fmt.Errorf("ping: %w", err)
	}
	return reply, nil
}

// Propose asks for a view change and returns the new view. The error is a *ConflictError with the current
// view when the proposal expected another, a *RuleError when it is refused and no server that was asked before can
// accept it any more. After any other error it is unknown whether the view was made: ask again, or wait for the next
// ping's reply.
func (c *Client) Propose(ctx context.Context, p Proposal) (View, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.CallTimeout)
	defer cancel()
	var v View
	before, err := c.doTold(ctx, c.calls, call{method: http.MethodPost, path: "/v1/propose", in: p, out: &v, patience: answerTimeout})
	if rule, refused := errors.AsType[*RuleError](err); refused && before {
		return View{}, fmt.Errorf("propose %s: %w: refused (%v), but a view server that was asked before may accept it yet", p.Kind, ErrTryAgain, rule)
	}
	if err != nil {
		return View{}, fmt.Errorf("propose %s: %w", p.Kind, err)
	}
	return v, nil
}

// Watch returns a volume's status as soon as its News is another than news, and at the latest after WatchHold.
// Pass 0 to get it at once.
func (c *Client) Watch(ctx context.Context, name string, news uint64) (VolumeStatus, error) {
	var v VolumeStatus
	q := url.Values{"volume": {name}, "news": {strconv.FormatUint(news, 10)}}
	ctx, cancel := context.WithTimeout(ctx, WatchHold+c.opt.PingTimeout)
	defer cancel()
	err := c.do(ctx, c.calls, call{method: http.MethodGet, path: "/v1/watch?" + q.Encode(), out: &v, patience: WatchHold + answerTimeout})
	if err != nil {
		return VolumeStatus{}, fmt.Errorf("watch volume %s: %w", name, err)
	}
	return v, nil
}

// Status is everything that the service knows.
func (c *Client) Status(ctx context.Context) (ClusterStatus, error) {
	var s ClusterStatus
	if err := c.call(ctx, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return ClusterStatus{}, fmt.Errorf("status: %w", err)
	}
	return s, nil
}

// Views is the history of a volume, oldest first, of the last MaxHistory views.
func (c *Client) Views(ctx context.Context, name string) ([]HistoryEntry, error) {
	var h []HistoryEntry
	q := url.Values{"volume": {name}}
	if err := c.call(ctx, http.MethodGet, "/v1/views?"+q.Encode(), nil, &h); err != nil {
		return nil, fmt.Errorf("views of volume %s: %w", name, err)
	}
	return h, nil
}

// Events are what the leader remembers of its own events, oldest first, with a higher number than after. With hold it
// waits until there is one, WatchHold at most. A new leader remembers nothing from before.
func (c *Client) Events(ctx context.Context, after uint64, hold bool) ([]RecentEvent, error) {
	q := url.Values{"after": {strconv.FormatUint(after, 10)}}
	patience := answerTimeout
	if hold {
		q.Set("hold", "1")
		patience += WatchHold
	}
	ctx, cancel := context.WithTimeout(ctx, patience+c.opt.CallTimeout)
	defer cancel()
	var list []RecentEvent
	err := c.do(ctx, c.calls, call{method: http.MethodGet, path: "/v1/events?" + q.Encode(), out: &list, patience: patience})
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return list, nil
}

// CreateVolume creates a volume and returns it with its ID. Zero Sync, Copies and MinCopies get the defaults:
// always, 2 and 1. Its first view follows when a node has made its copy; Watch shows it.
func (c *Client) CreateVolume(ctx context.Context, v Volume) (Volume, error) {
	if v.ID == "" {
		v.ID = VolumeID(uuid.NewString()) // so that a repeated call creates one volume
	}
	var made Volume
	if err := c.call(ctx, http.MethodPost, "/v1/volumes", v, &made); err != nil {
		return Volume{}, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	return made, nil
}

// DeleteVolume deletes a volume. Its name is free at once; its copies go as their nodes hear of it.
func (c *Client) DeleteVolume(ctx context.Context, name string) error {
	if err := c.call(ctx, http.MethodDelete, "/v1/volumes/"+url.PathEscape(name), nil, nil); err != nil {
		return fmt.Errorf("delete volume %s: %w", name, err)
	}
	return nil
}

// ResizeVolume wishes for a larger volume. It is one when its status says so: that takes a primary, and members that have
// room. The present size takes an earlier wish back; a smaller one is refused with a *RuleError.
func (c *Client) ResizeVolume(ctx context.Context, name string, size uint64) error {
	if err := c.operate(ctx, name, "resize", resizeRequest{size}, nil, 0); err != nil {
		return fmt.Errorf("resize volume %s: %w", name, err)
	}
	return nil
}

// Handover orders the primary to hand the volume over to its backup on node to ("" for the one that has the
// longest log), waits until that is done and returns the new view.
func (c *Client) Handover(ctx context.Context, name string, to NodeID) (View, error) {
	var v View
	if err := c.operate(ctx, name, "handover", operatorRequest{Node: to}, &v, HandoverTimeout); err != nil {
		return View{}, fmt.Errorf("hand over volume %s: %w", name, err)
	}
	return v, nil
}

// Resume lets a held primary serve: the operator accepts that writes may be lost which were never flushed.
func (c *Client) Resume(ctx context.Context, name string) error {
	if err := c.operate(ctx, name, "resume", operatorRequest{}, nil, 0); err != nil {
		return fmt.Errorf("resume volume %s: %w", name, err)
	}
	return nil
}

// Check orders the primary to compare the members' checksums and mend what differs, or every replica to scrub. What comes
// of it is in the replicas' reports, with the ID that is returned.
func (c *Client) Check(ctx context.Context, name string, scrub bool) (id uint64, err error) {
	var made CheckOrder
	if err := c.operate(ctx, name, "check", CheckOrder{Scrub: scrub}, &made, 0); err != nil {
		return 0, fmt.Errorf("check volume %s: %w", name, err)
	}
	return made.ID, nil
}

// Force makes node's replica the only member, whatever it holds. Acknowledged writes that it lacks are lost;
// the view's DataLossGen records that.
func (c *Client) Force(ctx context.Context, name string, node NodeID, reason string) (View, error) {
	var v View
	if err := c.operate(ctx, name, "force", operatorRequest{Node: node, Reason: reason}, &v, 0); err != nil {
		return View{}, fmt.Errorf("force volume %s: %w", name, err)
	}
	return v, nil
}

// Claim changes who has a volume to itself, and returns the claim that holds then. An error that wraps ErrClaimed says
// who has it.
func (c *Client) Claim(ctx context.Context, name string, change ClaimChange) (Claim, error) {
	var claim Claim
	if err := c.operate(ctx, name, "claim", change, &claim, 0); err != nil {
		return Claim{}, fmt.Errorf("%s volume %s: %w", change.Act, name, err)
	}
	return claim, nil
}

// operate asks for something to be done to a volume. The service may hold the answer back for so long.
func (c *Client) operate(ctx context.Context, name, verb string, in, out any, hold time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, hold+c.opt.CallTimeout)
	defer cancel()
	path := "/v1/volumes/" + url.PathEscape(name) + "/" + verb
	return c.do(ctx, c.calls, call{method: http.MethodPost, path: path, in: in, out: out, patience: hold + answerTimeout})
}

// operatorRequest is the body of the operator's orders.
type operatorRequest struct {
	Node   NodeID `json:"node,omitempty"`
	Reason string `json:"reason,omitempty"`
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.opt.CallTimeout)
	defer cancel()
	return c.do(ctx, c.calls, call{method: method, path: path, in: in, out: out, patience: answerTimeout})
}
