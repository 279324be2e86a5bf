package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// A node that dies is replaced by an idle one. When it comes back its copy is of no use: an operator drops it, and the space is
// given back; a copy that counts is not dropped. In the end the node is forgotten.
func TestReplacedNodesCopyIsDropped(t *testing.T) {
	c := start(t, cluster.Options{Nodes: 3, Size: "16M"})
	command := func(code int, says string, args ...string) error {
		r, err := c.Command(t.Context(), args...)
		if err == nil && (r.Code != code || !strings.Contains(r.Stdout+r.Stderr, says)) {
			err = fmt.Errorf("lockstep %s: exit code %d: %s%s, want %d: %s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr, code, says)
		}
		return err
	}
	const volume = "pair"
	must(t, command(0, "deleted", "volume", "delete", c.Volume(), "--yes"))
	must(t, command(0, "created", "volume", "create", volume, "--size", "16M", "--copies", "2"))
	must(t, c.AwaitSafe(t.Context()))
	uri := strings.TrimSuffix(c.URI, c.Volume()) + volume
	want := bytes.Repeat([]byte("a copy that counts"), 1000)
	withDisk(t, uri, func(d *stamped.NBD) { must(t, d.WriteAt(want, 4711, true)) })

	replaced := ask(t, c.Backup)
	c.Node(replaced).Kill()
	must(t, cluster.Await(t.Context(), serveLimit, "a view without "+replaced, func() error {
		_, err := c.Backup(t.Context())
		if err == nil {
			return errors.New("it is there still")
		}
		return nil
	}))
	must(t, c.AwaitSafe(t.Context())) // in ten seconds the third has a copy
	primary, successor := ask(t, c.Primary), ask(t, c.Backup)
	must(t, c.Node(replaced).Start())
	must(t, c.AwaitSafe(t.Context()))
	if now := ask(t, c.Backup); now != successor {
		t.Fatalf("%s is backup, want %s", now, successor)
	}
	copies := func() []string {
		found, err := filepath.Glob(filepath.Join(c.DataDir(replaced), "volumes", "*"))
		must(t, err)
		return found
	}
	if len(copies()) != 1 {
		t.Fatalf("%s has %v, want the former copy", replaced, copies())
	}
	for _, node := range []string{primary, successor} {
		must(t, command(1, "counts", "volume", "drop-copy", volume, node))
	}
	must(t, command(0, "drops its copy", "volume", "drop-copy", volume, replaced))
	must(t, cluster.Await(t.Context(), serveLimit, "copy gone", func() error {
		if found := copies(); len(found) > 0 {
			return fmt.Errorf("%s has %v", replaced, found)
		}
		return command(1, "has no copy", "volume", "drop-copy", volume, replaced)
	}))

	c.Node(replaced).Kill()
	must(t, cluster.Await(t.Context(), serveLimit, "forgotten", func() error { return command(0, "", "forget", replaced) }))
	if s, _, err := c.Status(t.Context()); err != nil || len(s.Nodes) != 2 {
		t.Errorf("status has the nodes %+v, %v", s.Nodes, err)
	}
	c.Node(primary).Kill() // and the copies that count are right
	withDisk(t, uri, func(d *stamped.NBD) {
		got := make([]byte, len(want))
		if must(t, d.ReadAt(got, 4711)); !bytes.Equal(got, want) {
			t.Errorf("on %s there is %q", successor, got[:20])
		}
	})
}
