package nbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Defaults of ClientOptions.
const (
	DefaultDialTimeout       = 5 * time.Second
	DefaultClientMaxInFlight = 1024
)

var (
	// ErrProtocol is wrapped by the error that ends a connection whose server does not keep to the protocol.
	ErrProtocol = errors.New("nbd: protocol error")
	// ErrHungUp is wrapped by Dial's error when the server closes the connection instead of answering: it is no
	// NBD server, has too many clients, or cannot serve the export now. Trying again may help.
	ErrHungUp = errors.New("nbd: server hung up")
	// ErrRefused is wrapped by Dial's error when the server will not let this client in; the text says why.
	ErrRefused = errors.New("nbd: refused")
	// ErrClosed is given to Submit after the end of a connection, and to Handler.Closed after Close.
	ErrClosed = errors.New("nbd: connection closed")
)

// OptionError is a server's refusal of an option. A refusal for want of the export wraps ErrUnknownExport.
type OptionError struct {
	Option uint32 // as sent
	Reply  uint32 // NBD_REP_ERR_…
	Text   string // the server's, for people
}

func (e *OptionError) Error() string {
	name, ok := map[uint32]string{
		1<<31 | 1:      "not supported",
		repErrPolicy:   "refused",
		repErrInvalid:  "invalid",
		repErrPlatform: "not supported on the server's platform",
		repErrTLSReqd:  "TLS required",
		1<<31 | 6:      "unknown export",
		repErrShutdown: "server is shutting down",
		repErrTooBig:   "too big",
	}[e.Reply]
	if !ok {
		name = fmt.Sprintf("error %#x", e.Reply)
	}
	if e.Text == "" {
		return fmt.Sprintf("nbd: option %d: %s", e.Option, name)
	}
	return fmt.Sprintf("nbd: option %d: %s: %s", e.Option, name, e.Text)
}

// Is makes errors.Is hold for ErrUnknownExport and ErrRefused where it should.
func (e *OptionError) Is(target error) bool {
	return target == ErrUnknownExport && e.Reply == 1<<31|6 || target == ErrRefused && e.Reply == repErrPolicy
}

// ClientOptions say what to connect to, and how. Zero values mean the defaults.
type ClientOptions struct {
	Export           string        // "" is the server's default export
	DialTimeout      time.Duration // for the connection
	HandshakeTimeout time.Duration // for all that comes before transmission
	MaxInFlight      int           // requests sent and not answered; further ones wait their turn

	// Numbered sends each request's ID as its cookie. It has a slot below MaxInFlight that no other request under way
	// has, and an ID that none in that slot had before.
	Numbered bool

	// TLS is nil for a connection that is not encrypted. One set of ClientTLS serves many connections.
	TLS *ClientTLS
	// ServerName is what the server's certificate must be for; by default the host that is dialed, or localhost.
	ServerName string

	tls *clientTLS // as it is for one connection
}

// Validate fills in defaults and checks the rest.
func (o *ClientOptions) Validate() error {
	if o.DialTimeout == 0 {
		o.DialTimeout = DefaultDialTimeout
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = DefaultClientMaxInFlight
	}
	switch {
	case len(o.Export) > maxStringBytes || strings.ContainsRune(o.Export, 0):
		return fmt.Errorf("nbd: the export name must have at most %d bytes and no NUL", maxStringBytes)
	case o.DialTimeout < 0 || o.HandshakeTimeout < 0:
		return errors.New("nbd: a timeout must not be negative")
	case o.MaxInFlight < 1 || o.MaxInFlight > 1<<16:
		return fmt.Errorf("nbd: MaxInFlight is %d, must be 1 to 65536", o.MaxInFlight)
	}
	return nil
}

// Dial connects to a server, "host:port" or "unix:/path", and enters transmission. The error wraps ErrUnknownExport,
// an *OptionError, ErrHungUp, ErrProtocol, or the network's.
func Dial(ctx context.Context, addr string, opts ClientOptions) (*Conn, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	nc, err := connect(ctx, addr, opts.DialTimeout)
	if err != nil {
		return nil, err
	}
	opts.ServerName = cmp.Or(opts.ServerName, hostOf(addr))
	return NewConn(ctx, nc, opts)
}

// NewConn is Dial on a connection that was made elsewhere. It owns nc, and closes it on failure.
func NewConn(ctx context.Context, nc net.Conn, opts ClientOptions) (*Conn, error) {
	if err := opts.Validate(); err != nil {
		nc.Close()
		return nil, err
	}
	var err error
	if opts.tls, err = opts.TLS.forServer(opts.ServerName); err != nil {
		nc.Close()
		return nil, err
	}
	c, err := newClientConn(nc, opts)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("nbd: connect: %w", err)
	}
	if err := during(ctx, nc, opts.HandshakeTimeout, c.shake); err != nil {
		nc.Close()
		return nil, fmt.Errorf("nbd: connect to export %q: %w", opts.Export, err)
	}
	c.in.resize(readBufferBytes)
	return c, nil
}

// List asks a server for the names of its exports.
func List(ctx context.Context, addr string, opts ClientOptions) ([]ExportInfo, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	nc, err := connect(ctx, addr, opts.DialTimeout)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	sock, err := newSocket(nc)
	if err != nil {
		return nil, fmt.Errorf("nbd: connect: %w", err)
	}
	h := &clientHandshake{sock: sock, in: inbuf{src: sock.source(), buf: make([]byte, handshakeBufferBytes)}}
	if h.tls, err = opts.TLS.forServer(cmp.Or(opts.ServerName, hostOf(addr))); err != nil {
		return nil, err
	}
	var exports []ExportInfo
	err = during(ctx, nc, opts.HandshakeTimeout, func() (err error) {
		exports, err = h.list()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nbd: list exports of %s: %w", addr, err)
	}
	return exports, nil
}

// connect dials "host:port" or "unix:/path".
func connect(ctx context.Context, addr string, timeout time.Duration) (net.Conn, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	d := net.Dialer{Timeout: timeout}
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	return nc, nil
}

// hostOf is the host of an address, as a certificate names it.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil && !strings.HasPrefix(addr, "unix:") {
		return host
	}
	return "localhost"
}

// during runs a handshake, which ends when ctx does or the timeout is over.
func during(ctx context.Context, nc net.Conn, timeout time.Duration, shake func() error) error {
	nc.SetDeadline(time.Now().Add(timeout))
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	err := shake()
	if !stop() && ctx.Err() != nil {
		return ctx.Err() // the deadline is spoilt
	}
	// A server that closes without having read all that was asked for resets the connection.
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("%w: %w", ErrHungUp, err)
	}
	if err != nil {
		return err
	}
	return nc.SetDeadline(time.Time{})
}
