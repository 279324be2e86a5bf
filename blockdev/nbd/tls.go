package nbd

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Files of a certificate directory, PEM. The names are nbdkit's and libnbd's, so that one directory serves all.
const (
	caFile         = "ca-cert.pem"
	serverCertFile = "server-cert.pem"
	serverKeyFile  = "server-key.pem"
	clientCertFile = "client-cert.pem" // a client without it shows no certificate
	clientKeyFile  = "client-key.pem"
)

// farewellTimeout bounds telling a peer, which may not read, that a TLS session ends.
const farewellTimeout = time.Second

// TLSMode says whether connections are encrypted.
type TLSMode uint8

// The modes. Their names are nbdkit's.
const (
	TLSOff     TLSMode = iota // never
	TLSOn                     // if the peer can; whoever sits between the two can prevent it
	TLSRequire                // always
)

var tlsModes = [...]string{TLSOff: "off", TLSOn: "on", TLSRequire: "require"}

func (m TLSMode) String() string {
	if int(m) < len(tlsModes) {
		return tlsModes[m]
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Set parses a mode's name, and makes a TLSMode the value of a command line flag.
func (m *TLSMode) Set(name string) error {
	for i, known := range tlsModes {
		if name == known {
			*m = TLSMode(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not off, on or require", name)
}

// Type is for the command line's help.
func (m *TLSMode) Type() string { return "off|on|require" }

// TLSOptions say how a server or a client encrypts, and whom it trusts.
type TLSOptions struct {
	Mode TLSMode
	// Dir has the certificates. They are read again when they change, without disturbing connections.
	Dir string
	// VerifyPeer makes a server ask its clients for a certificate that ca-cert.pem has signed. A client always
	// verifies the server's.
	VerifyPeer bool
}

func (o TLSOptions) validate() error {
	switch {
	case int(o.Mode) >= len(tlsModes):
		return fmt.Errorf("nbd: TLS %v does not exist", o.Mode)
	case o.Mode == TLSOff && o.VerifyPeer:
		return errors.New("nbd: peers are verified by TLS only; turn it on")
	case o.Mode != TLSOff && o.Dir == "":
		return fmt.Errorf("nbd: TLS %v needs a directory with certificates", o.Mode)
	}
	return nil
}

// certificates is what a directory has, as of the last look.
type certificates struct {
	opts   TLSOptions
	server bool

	// mu guards everything below.
	mu     sync.Mutex
	config *tls.Config
	seen   [3]os.FileInfo // of the files that config is made of
}

// newCertificates reads a directory for the first time; nil if there is no TLS.
func newCertificates(opts TLSOptions, server bool) (*certificates, error) {
	if err := opts.validate(); err != nil || opts.Mode == TLSOff {
		return nil, err
	}
	c := &certificates{opts: opts, server: server}
	if _, err := c.current(); err != nil {
		return nil, err
	}
	return c, nil
}

// files are the CA's certificate, and one's own with its key.
func (c *certificates) files() [3]string {
	if c.server {
		return [3]string{caFile, serverCertFile, serverKeyFile}
	}
	return [3]string{caFile, clientCertFile, clientKeyFile}
}

// current returns what the directory has now. Files that are being replaced, and make no sense for a moment, leave
// things as they were.
func (c *certificates) current() (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var now [3]os.FileInfo
	same := c.config != nil
	for i, name := range c.files() {
		now[i], _ = os.Stat(filepath.Join(c.opts.Dir, name)) // reading it tells why not
		same = same && sameFile(now[i], c.seen[i])
	}
	if same {
		return c.config, nil
	}
	config, err := c.load(now)
	if err != nil {
		if c.config != nil {
			return c.config, nil
		}
		return nil, err
	}
	c.config, c.seen = config, now
	return config, nil
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// load reads the files, of which some may not be there.
func (c *certificates) load(have [3]os.FileInfo) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	names := c.files()
	if !c.server || c.opts.VerifyPeer {
		path := filepath.Join(c.opts.Dir, names[0])
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("nbd: read the CA's certificate: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("nbd: %s has no certificate in PEM form", path)
		}
		config.RootCAs = pool
		if c.server {
			config.ClientCAs, config.ClientAuth = pool, tls.RequireAndVerifyClientCert
		}
	}
	if c.server || have[1] != nil {
		pair, err := tls.LoadX509KeyPair(filepath.Join(c.opts.Dir, names[1]), filepath.Join(c.opts.Dir, names[2]))
		if err != nil {
			return nil, fmt.Errorf("nbd: read %s and %s: %w", names[1], names[2], err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// ClientTLS is what clients encrypt with. Many connections share one.
type ClientTLS struct{ certificates *certificates }

// NewClientTLS reads the certificates of a client: the CA's, and its own if there is one.
func NewClientTLS(opts TLSOptions) (*ClientTLS, error) {
	c, err := newCertificates(opts, false)
	if err != nil || c == nil {
		return nil, err
	}
	return &ClientTLS{c}, nil
}

// clientTLS is a ClientTLS for one connection.
type clientTLS struct {
	mode   TLSMode
	config *tls.Config
}

// forServer says how to connect to a server of that name; nil means without TLS.
func (t *ClientTLS) forServer(name string) (*clientTLS, error) {
	if t == nil {
		return nil, nil
	}
	config, err := t.certificates.current()
	if err != nil {
		return nil, err
	}
	config = config.Clone()
	config.ServerName = cmp.Or(name, "localhost")
	return &clientTLS{t.certificates.opts.Mode, config}, nil
}
