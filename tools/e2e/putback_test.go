package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
	"lockstep/viewsvc"
)

// Whoever puts a node's directory back from a backup, or its machine from a snapshot, makes it forget what it acknowledged. It
// must not serve, whatever it takes itself for: a backup, or the primary of a view in which it was that before. A member that has
// everything makes it whole again; without one, an operator is told.
func TestDirectoryThatWasPutBackServesNothingOld(t *testing.T) {
	need(t, "cp")
	c := start(t, cluster.Options{Size: "16M"})
	views, err := viewsvc.NewClient(viewsvc.ClientOptions{Servers: []string{c.View}})
	must(t, err)
	defer views.Close()
	put := func(text string) {
		withDisk(t, c.URI, func(d *stamped.NBD) { must(t, d.WriteAt(bytes.Repeat([]byte(text), 512), 0, true)) })
	}
	wantText := func(text string) {
		t.Helper()
		withDisk(t, c.URI, func(d *stamped.NBD) {
			got := make([]byte, len(text))
			if must(t, d.ReadAt(got, 0)); string(got) != text {
				t.Errorf("the disk has %q, want %q", got, text)
			}
		})
	}
	put("old text")
	must(t, c.Gateway.Stop())
	for _, id := range c.Nodes() {
		must(t, c.Node(id).Stop())
		command(t, "cp", "-a", c.DataDir(id), c.DataDir(id)+".old")
	}
	must(t, c.StartAll()) // in a new tenure
	must(t, c.AwaitSafe(t.Context()))
	put("new text")
	s, _, err := c.Status(t.Context())
	must(t, err)
	tenure := s.Volumes[0].View.Tenure
	must(t, cluster.Await(t.Context(), serveLimit, "note of the tenure", func() error {
		s, err := views.Status(t.Context())
		if err == nil && uint64(s.Volumes[0].Floor.Tenure) < tenure {
			err = fmt.Errorf("the floor is %+v, the tenure %d", s.Volumes[0].Floor, tenure)
		}
		return err
	}))
	for _, victim := range []string{ask(t, c.Backup), ask(t, c.Primary)} {
		c.KillAll()
		must(t, os.RemoveAll(c.DataDir(victim)))
		command(t, "cp", "-a", c.DataDir(victim)+".old", c.DataDir(victim))
		must(t, c.Viewd.Start())
		must(t, c.Node(victim).Start())
		must(t, cluster.Await(t.Context(), serveLimit, "word of it", func() error {
			r, err := c.Command(t.Context(), "status")
			if err == nil && (r.Code != 2 || !strings.Contains(r.Stdout, "the copy on node "+victim+" ends with record")) {
				err = errors.New(r.Stdout)
			}
			return err
		}))
		if r, err := c.Command(t.Context(), "events"); err != nil || !strings.Contains(r.Stdout, victim+": LACKS WRITES THAT IT ACKNOWLEDGED") {
			t.Errorf("events has nothing of it: %v, %s", err, r.Stdout)
		}
		must(t, c.StartAll())
		must(t, c.AwaitSafe(t.Context()))
		wantText("new text")
		if now := ask(t, c.Primary); now == victim {
			t.Errorf("%s is primary", victim)
		}
	}
}
