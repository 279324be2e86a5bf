package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/backend"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

// exports is an Exporter with fixed exports; the first is the default one.
type exports []nbd.Export

func (x exports) List(context.Context) ([]nbd.ExportInfo, error) {
	var infos []nbd.ExportInfo
	for _, e := range x {
		infos = append(infos, e.Info())
	}
	return infos, nil
}

func (x exports) Open(_ context.Context, name string) (nbd.Export, error) {
	for _, e := range x {
		if e.Name == name || name == "" {
			return e, nil
		}
	}
	return nbd.Export{}, nbd.ErrUnknownExport
}

// memory is a device over a go-nbd memory backend.
func memory(t testing.TB, size int) blockdev.Device {
	t.Helper()
	d, err := nbd.NewBackendDevice(backend.NewMemoryBackend(make([]byte, size)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// serve runs a server on a loopback port until the test ends, and returns its address.
func serve(t testing.TB, opts nbd.ServerOptions) (*nbd.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, opts), l.Addr().String()
}

func serveOn(t testing.TB, l net.Listener, opts nbd.ServerOptions) *nbd.Server {
	t.Helper()
	s, err := nbd.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
	})
	return s
}

// openDisk connects to an export until the test ends.
func openDisk(t testing.TB, addr, export string) *nbd.Disk {
	t.Helper()
	d, err := nbd.OpenDisk(context.Background(), addr, nbd.ClientOptions{Export: export})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// What one connection wrote another one reads, in every size class, aligned or not, and at the ends of the disk.
func TestReadsReturnWhatWasWritten(t *testing.T) {
	const size = 128 << 20
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "m", Device: memory(t, size)}}})
	w, r := openDisk(t, addr, "m"), openDisk(t, addr, "m")
	for _, c := range []struct{ off, n int }{
		{0, 1}, {511, 2}, {4096, 4096}, {4095, 4098}, {size - 1, 1}, {size - 4096, 4096},
		{12345, 64<<10 - 1}, {12345, 64 << 10}, {12345, 64<<10 + 1}, {1 << 20, 1 << 20}, {1 << 20, 32 << 20},
	} {
		want := make([]byte, c.n)
		rand.NewChaCha8([32]byte{byte(c.n)}).Read(want)
		if _, err := w.WriteAt(want, int64(c.off)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, c.n)
		if _, err := r.ReadAt(got, int64(c.off)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes at %d differ", c.n, c.off)
		}
	}
	if err := w.Trim(0, 8192); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteZeroes(8192, 1<<20, blockdev.FlagNoHole|blockdev.FlagFUA); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8192+1<<20)
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, make([]byte, len(got))) {
		t.Fatalf("range does not read as zeroes (%v)", err)
	}
}

// Many callers on one connection do not get each other's answers.
func TestConcurrentCallsOnOneConnectionKeepApart(t *testing.T) {
	const callers, rounds, block = 32, 100, 4096
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "m", Device: memory(t, callers*block)}}})
	d := openDisk(t, addr, "m")
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			want, got := make([]byte, block), make([]byte, block)
			for round := range rounds {
				for j := range want {
					want[j] = byte(i ^ round ^ j>>8)
				}
				if _, err := d.WriteAt(want, int64(i*block)); err != nil {
					t.Error(err)
					return
				}
				if _, err := d.ReadAt(got, int64(i*block)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("caller %d round %d: read differs (%v)", i, round, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
