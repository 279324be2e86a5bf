// Package testcerts makes certificate directories for tests, with the file names that NBD programs share.
package testcerts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates. Every failure is the test's.
type Authority struct {
	t    testing.TB
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes an authority.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t}
	template := x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.Cert, a.key = a.sign(template, "test authority")
	return a
}

// sign makes a certificate for an hour, signed by the authority or, at first, by itself.
func (a *Authority) sign(template x509.Certificate, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.must(err)
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	a.must(err)
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.Cert, a.key
	if parent == nil {
		parent, signer = &template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, signer)
	a.must(err)
	cert, err := x509.ParseCertificate(der)
	a.must(err)
	return cert, key
}

// Write puts ca-cert.pem into dir, and for each role, "server" or "client", a certificate of its own for localhost and
// 127.0.0.1 with its key. It returns dir.
func (a *Authority) Write(dir string, roles ...string) string {
	a.t.Helper()
	a.file(dir, "ca-cert.pem", "CERTIFICATE", a.Cert.Raw)
	for _, role := range roles {
		cert, key := a.sign(x509.Certificate{
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}, role)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		a.must(err)
		a.file(dir, role+"-key.pem", "PRIVATE KEY", der)
		a.file(dir, role+"-cert.pem", "CERTIFICATE", cert.Raw)
	}
	return dir
}

// file writes as a careful administrator does: a new file takes the old one's place.
func (a *Authority) file(dir, name, kind string, der []byte) {
	a.t.Helper()
	path := filepath.Join(dir, name)
	a.must(os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	a.must(os.Rename(path+".new", path))
}

func (a *Authority) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}
