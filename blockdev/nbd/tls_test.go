package nbd_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lockstep/blockdev/nbd"
	"lockstep/tools/testcerts"
)

func clientTLS(t testing.TB, mode nbd.TLSMode, dir string) *nbd.ClientTLS {
	t.Helper()
	c, err := nbd.NewClientTLS(nbd.TLSOptions{Mode: mode, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Whom a server lets in, and whom a client goes to, for every mode of both; and that all is well behind the door.
func TestTLSModes(t *testing.T) {
	a, b := testcerts.New(t), testcerts.New(t)
	server := a.Write(t.TempDir(), "server")
	known, plain, foreign := a.Write(t.TempDir(), "client"), a.Write(t.TempDir()), b.Write(t.TempDir(), "client")
	stranger := b.Write(t.TempDir(), "client")
	a.Write(stranger) // trusts the server, who does not trust it
	const off, on, require = nbd.TLSOff, nbd.TLSOn, nbd.TLSRequire
	for _, c := range []struct {
		name   string
		server nbd.TLSOptions
		mode   nbd.TLSMode
		dir    string
		ok     bool
	}{
		{"neither", nbd.TLSOptions{}, off, "", true},
		{"client would", nbd.TLSOptions{}, on, plain, true},
		{"client must", nbd.TLSOptions{}, require, plain, false},
		{"server would", nbd.TLSOptions{Mode: on, Dir: server}, off, "", true},
		{"both would", nbd.TLSOptions{Mode: on, Dir: server}, on, plain, true},
		{"server would, client must", nbd.TLSOptions{Mode: on, Dir: server}, require, plain, true},
		{"server must", nbd.TLSOptions{Mode: require, Dir: server}, off, "", false},
		{"server must, client would", nbd.TLSOptions{Mode: require, Dir: server}, on, plain, true},
		{"both must", nbd.TLSOptions{Mode: require, Dir: server}, require, plain, true},
		{"client trusts another", nbd.TLSOptions{Mode: require, Dir: server}, require, foreign, false},
		{"client is to be known, and is", nbd.TLSOptions{Mode: require, Dir: server, VerifyPeer: true}, require, known, true},
		{"client is to be known, and has no certificate", nbd.TLSOptions{Mode: require, Dir: server, VerifyPeer: true}, require, plain, false},
		{"client is to be known, and is another's", nbd.TLSOptions{Mode: require, Dir: server, VerifyPeer: true}, require, stranger, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: newSparse(8 << 20)}}, TLS: c.server})
			opts := nbd.ClientOptions{Export: "a"}
			if c.mode != off {
				opts.TLS = clientTLS(t, c.mode, c.dir)
			}
			list, err := nbd.List(context.Background(), addr, opts)
			if (err == nil) != c.ok || c.ok && len(list) != 1 {
				t.Errorf("list: %v, %v", list, err)
			}
			d, err := nbd.OpenDisk(context.Background(), addr, opts)
			if (err == nil) != c.ok {
				t.Fatalf("open: %v", err)
			}
			if !c.ok {
				return
			}
			defer d.Close()
			want, got := bytes.Repeat([]byte("secret.."), 1<<17), make([]byte, 3<<20)
			if _, err := d.WriteAt(want, 1<<20); err != nil {
				t.Fatal(err)
			}
			if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got[1<<20:2<<20], want) {
				t.Fatal("what was read is not what was written", err)
			}
			if list, err := d.Extents(0, 8<<20); err != nil || len(list) != 3 {
				t.Fatal(list, err)
			}
		})
	}
}

// Required means required: nothing but STARTTLS and ABORT is answered before, and a server without TLS says so.
func TestTLSRequired(t *testing.T) {
	dir := testcerts.New(t).Write(t.TempDir(), "server")
	x := exports{{Name: "a", Device: newSparse(testSize)}}
	_, addr := serve(t, nbd.ServerOptions{Exporter: x, TLS: nbd.TLSOptions{Mode: nbd.TLSRequire, Dir: dir}})
	r := dialRaw(t, addr)
	r.hello(3)
	for _, option := range []uint32{optList, optInfo, optGo, optStructured, optListMeta, optSetMeta, 4711} {
		r.option(option, nil)
		r.wantReply(option, errTLSReqd)
	}
	r.option(optStartTLS, []byte("x"))
	r.wantReply(optStartTLS, errInvalid)
	r.option(optAbort, nil)
	r.wantReply(optAbort, repAck)
	r.wantEnd()

	r = dialRaw(t, addr)
	r.hello(3)
	r.option(optExportName, []byte("a"))
	r.wantEnd()

	_, addr = serve(t, nbd.ServerOptions{Exporter: x})
	r = dialRaw(t, addr)
	r.hello(3)
	r.option(optStartTLS, nil)
	r.wantReply(optStartTLS, errPolicy)
	r.option(optList, nil)
	r.reply(optList)
}

// secure goes on through TLS.
func (r *raw) secure(config *tls.Config) {
	r.t.Helper()
	r.option(optStartTLS, nil)
	r.wantReply(optStartTLS, repAck)
	tc := tls.Client(r.nc, config)
	if err := tc.Handshake(); err != nil {
		r.t.Fatal(err)
	}
	r.nc = tc
}

// STARTTLS forgets what was negotiated in plain text, works once, and takes nothing that came in plain text behind it.
func TestStartTLSBeginsAnew(t *testing.T) {
	a := testcerts.New(t)
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	config := &tls.Config{RootCAs: pool, ServerName: "localhost"}
	_, addr := serve(t, nbd.ServerOptions{
		Exporter: exports{{Name: "a", Device: newSparse(testSize)}},
		TLS:      nbd.TLSOptions{Mode: nbd.TLSOn, Dir: a.Write(t.TempDir(), "server")},
	})
	r := dialRaw(t, addr)
	r.hello(3)
	r.option(optStructured, nil)
	r.wantReply(optStructured, repAck)
	r.option(optSetMeta, metaData("a", "base:allocation"))
	r.reply(optSetMeta)
	r.wantReply(optSetMeta, repAck)
	r.secure(config)
	r.option(optStartTLS, nil)
	r.wantReply(optStartTLS, errInvalid)
	r.option(optSetMeta, metaData("a", "base:allocation"))
	r.wantReply(optSetMeta, errInvalid)
	r.option(optGo, goData("a"))
	r.reply(optGo)
	r.wantReply(optGo, repAck)
	r.request(0, cmdRead, 1, 0, 512)
	r.wantSimple(0, 1, make([]byte, 512))
	r.request(0, cmdStatus, 2, 0, 512)
	r.wantSimple(einval, 2)

	// Requests before the client's farewell are answered, and the session ends in good order: not cut off.
	r.request(0, cmdFlush, 3, 0, 0)
	r.nc.(*tls.Conn).CloseWrite()
	r.wantSimple(0, 3)
	r.wantEnd()

	r = dialRaw(t, addr)
	r.hello(3)
	r.send(uint64(magicOption), uint32(optStartTLS), uint32(0), uint64(magicOption), uint32(optList), uint32(0))
	r.wantReply(optStartTLS, repAck)
	r.wantEnd()

	r = dialRaw(t, addr) // without fixed newstyle there is no TLS
	r.hello(0)
	r.option(optStartTLS, nil)
	r.wantReply(optStartTLS, errPolicy)
}

// A server takes new certificates without a restart, keeps the old ones while the new make no sense, and a connection
// lives on.
func TestCertificatesAreReadAgain(t *testing.T) {
	first, second := testcerts.New(t), testcerts.New(t)
	dir := first.Write(t.TempDir(), "server")
	_, addr := serve(t, nbd.ServerOptions{
		Exporter: exports{{Name: "a", Device: newSparse(testSize)}}, TLS: nbd.TLSOptions{Mode: nbd.TLSRequire, Dir: dir},
	})
	open := func(a *testcerts.Authority) (*nbd.Disk, error) {
		return nbd.OpenDisk(context.Background(), addr, nbd.ClientOptions{TLS: clientTLS(t, nbd.TLSRequire, a.Write(t.TempDir()))})
	}
	old, err := open(first)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := os.WriteFile(filepath.Join(dir, "server-key.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := open(first)
	if err != nil {
		t.Fatalf("with half of the files: %v", err)
	}
	d.Close()
	second.Write(dir, "server")
	if d, err = open(second); err != nil {
		t.Fatalf("with new files: %v", err)
	}
	d.Close()
	if _, err := open(first); err == nil {
		t.Fatal("the old certificate is still used")
	}
	if err := old.Flush(); err != nil {
		t.Fatal(err)
	}
}

// What cannot work is refused when the server or the client is made, with the file's name.
func TestTLSOptionsAreChecked(t *testing.T) {
	empty, noKey := t.TempDir(), testcerts.New(t).Write(t.TempDir(), "server")
	if err := os.WriteFile(filepath.Join(noKey, "server-key.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		opts nbd.TLSOptions
		want string
	}{
		{nbd.TLSOptions{Mode: nbd.TLSOn}, "needs a directory"},
		{nbd.TLSOptions{VerifyPeer: true}, "turn it on"},
		{nbd.TLSOptions{Mode: 9}, "does not exist"},
		{nbd.TLSOptions{Mode: nbd.TLSOn, Dir: empty}, "server-cert.pem"},
		{nbd.TLSOptions{Mode: nbd.TLSOn, Dir: noKey}, "server-key.pem"},
		{nbd.TLSOptions{Mode: nbd.TLSOn, Dir: empty, VerifyPeer: true}, "ca-cert.pem"},
	} {
		if _, err := nbd.NewServer(nbd.ServerOptions{Exporter: exports{}, TLS: c.opts}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.opts, err)
		}
	}
	if _, err := nbd.NewClientTLS(nbd.TLSOptions{Mode: nbd.TLSOn, Dir: empty}); err == nil || !strings.Contains(err.Error(), "ca-cert.pem") {
		t.Error(err)
	}
	var m nbd.TLSMode
	if err := m.Set("require"); err != nil || m != nbd.TLSRequire || m.String() != "require" {
		t.Error(m, err)
	}
	if err := m.Set("yes"); err == nil {
		t.Error("a mode that does not exist was taken")
	}
}

// A client that required TLS does not go on with a server, or somebody in between, that speaks plain text behind STARTTLS.
func TestClientTakesNoPlainTextBehindStartTLS(t *testing.T) {
	addr := fakeServer(t, func(r *raw) {
		r.greet()
		r.takeOption()
		r.send(uint64(magicReply), uint32(optStartTLS), uint32(repAck), uint32(0), uint64(magicReply), uint32(optGo), uint32(repAck), uint32(0))
		io.Copy(io.Discard, r.nc)
	})
	opts := nbd.ClientOptions{TLS: clientTLS(t, nbd.TLSRequire, testcerts.New(t).Write(t.TempDir()))}
	if _, err := nbd.Dial(context.Background(), addr, opts); !errors.Is(err, nbd.ErrProtocol) {
		t.Fatal(err)
	}
}
