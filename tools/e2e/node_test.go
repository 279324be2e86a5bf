package e2e

import (
	"errors"
	"testing"

	"lockstep/blockdev/nbd"
	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// Hazard 3: a client that comes to the wrong node must not get an NBD error, which Linux would hand on as an I/O
// error: the connection is closed.
func TestOnlyThePrimaryServesClientsOthersHangUp(t *testing.T) {
	c := start(t, cluster.Options{})
	primary, backup := ask(t, c.Primary), ask(t, c.Backup)

	d, err := stamped.DialNBD(t.Context(), "nbd://"+c.NBDAddr(primary)+"/"+c.Volume())
	must(t, err)
	defer d.Close()
	must(t, d.WriteAt(make([]byte, 4096), 0, true))
	must(t, d.Flush())

	_, err = stamped.DialNBD(t.Context(), "nbd://"+c.NBDAddr(backup)+"/"+c.Volume())
	if !errors.Is(err, nbd.ErrHungUp) {
		t.Errorf("the backup: got %v, want that it hangs up", err)
	}

	// After a handover the client that was connected is cut off; its next request gets no answer at all.
	r, err := c.Command(t.Context(), "handover", c.Volume(), "--to", backup)
	must(t, err)
	if r.Code != 0 {
		t.Fatalf("handover: exit code %d: %s", r.Code, r.Line())
	}
	must(t, cluster.Await(t.Context(), serveLimit, "new primary", func() error {
		if now, err := c.Primary(t.Context()); err != nil || now != backup {
			return errors.Join(err, errors.New("it is "+now))
		}
		return nil
	}))
	if err := d.WriteAt(make([]byte, 4096), 0, false); !errors.Is(err, stamped.ErrLost) {
		t.Errorf("a write at the old primary: got %v, want a lost connection", err)
	}
}

// A gateway that does not know an export says so, and lists what there is.
func TestUnknownExportIsRefusedInWords(t *testing.T) {
	c := start(t, cluster.Options{})
	addr, _, err := stamped.ParseURI(c.URI)
	must(t, err)
	_, err = nbd.Dial(t.Context(), addr, nbd.ClientOptions{Export: "no-such-volume"})
	if !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("got %v, want an unknown export", err)
	}
	exports, err := nbd.List(t.Context(), addr, nbd.ClientOptions{})
	must(t, err)
	if len(exports) != 1 || exports[0].Name != c.Volume() {
		t.Errorf("exports are %+v, want %s", exports, c.Volume())
	}
}
