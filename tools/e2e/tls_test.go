package e2e

import (
	"context"
	"strings"
	"testing"

	"lockstep/blockdev/nbd"
	"lockstep/tools/e2e/cluster"
	"lockstep/tools/testcerts"
)

// Encrypted from the client to the gateway and from there to the nodes, who let in only gateways that they know; a
// failover goes the same way.
func TestEncryptedAllTheWay(t *testing.T) {
	need(t, "nbdsh", "qemu-img")
	dir := testcerts.New(t).Write(t.TempDir(), "server", "client")
	c := start(t, cluster.Options{
		NodeArgs: []string{"--tls", "require", "--tls-certificates", dir, "--tls-verify-peer"},
		// The client's certificate is the gateway's too. "on" lets the harness look without.
		GatewayArgs: []string{"--tls", "on", "--tls-certificates", dir, "--primary-tls", "require", "--primary-tls-certificates", dir},
	})
	uri := strings.Replace(c.URI, "nbd:", "nbds:", 1) + "?tls-certificates=" + dir
	command(t, "nbdsh", "-c", `
h.set_uri_allow_local_file(True)
h.connect_uri("`+uri+`")
assert h.get_tls_negotiated()
h.pwrite(b"secret" * 100000, 4095)
h.flush()
h.shutdown()`)

	old := ask(t, c.Primary)
	if _, err := nbd.Dial(context.Background(), c.NBDAddr(old), nbd.ClientOptions{Export: c.Volume()}); err == nil {
		t.Error("a node that requires TLS took a client without")
	}
	c.Node(old).Kill()
	command(t, "nbdsh", "-c", `
h.set_uri_allow_local_file(True)
h.connect_uri("`+uri+`")
assert h.pread(600000, 4095) == b"secret" * 100000
h.shutdown()`)
	command(t, "qemu-img", "info", "--object", "tls-creds-x509,id=t,dir="+dir+",endpoint=client",
		"--image-opts", "driver=nbd,host=127.0.0.1,port="+c.URI[strings.LastIndex(c.URI, ":")+1:strings.LastIndex(c.URI, "/")]+",export="+c.Volume()+",tls-creds=t")
}
