package nbd_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lockstep/blockdev/nbd"
)

// A socket has its mode, replaces what a dead process left, but neither a live one's nor a file, and goes with its
// listener unless a successor has its place.
func TestUnixSocketsAreHandledWithCare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	listen := func(mode fs.FileMode) (net.Listener, error) {
		list, err := nbd.Listen(context.Background(), "unix:"+path, mode)
		if err != nil {
			return nil, err
		}
		return list[0], nil
	}
	first, err := listen(0o640)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o640 {
		t.Fatal(info.Mode(), err)
	}
	if first.Addr().String() != path {
		t.Errorf("address %v", first.Addr())
	}
	go func() { // it is alive
		for {
			nc, err := first.Accept()
			if err != nil {
				return
			}
			nc.Close()
		}
	}()
	if _, err := listen(0o600); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("a live one's socket: %v", err)
	}
	if err := os.Rename(path, path+".aside"); err != nil { // as if it had been removed
		t.Fatal(err)
	}
	second, err := listen(0o600)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal("the end of the first took the second's socket along")
	}
	second.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("the socket is still there")
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(0o600); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Fatalf("a file: %v", err)
	}
	list, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(list) != 2 {
		t.Fatalf("left behind: %v, %v", list, err)
	}
}

// TestServeInheritedSockets is the process that the next test starts.
func TestServeInheritedSockets(t *testing.T) {
	if os.Getenv("LISTEN_PID") == "" {
		t.Skip("for TestSystemdSockets")
	}
	list, err := nbd.Listen(context.Background(), nbd.SystemdAddress, 0)
	if err != nil {
		t.Fatal(err)
	}
	if env := strings.Join(os.Environ(), "\n"); strings.Contains(env, "LISTEN_") {
		t.Error("processes that are started from here think that the sockets are for them")
	}
	s, err := nbd.NewServer(nbd.ServerOptions{Exporter: exports{{Name: "a", Device: newSparse(testSize)}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		go s.Serve(l)
	}
	os.Stdin.Read(make([]byte, 1)) // until the test ends
	s.Close()
}

// Sockets that systemd has opened, TCP and unix, are served.
func TestSystemdSockets(t *testing.T) {
	if _, err := nbd.Listen(context.Background(), nbd.SystemdAddress, 0); err == nil || !strings.Contains(err.Error(), ".socket") {
		t.Fatalf("without systemd: %v", err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	path := filepath.Join(t.TempDir(), "s")
	local, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	start := func(count string, files ...*os.File) (*exec.Cmd, func()) {
		// LISTEN_PID is the process's own number, which only itself knows before it starts.
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=`+count+` exec "$0" -test.run='^TestServeInheritedSockets$'`, os.Args[0])
		cmd.ExtraFiles = files
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		return cmd, func() { in.Close() }
	}
	tcpFile, _ := tcp.(*net.TCPListener).File()
	unixFile, _ := local.(*net.UnixListener).File()
	cmd, end := start("2", tcpFile, unixFile)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{tcp.Addr().String(), "unix:" + path} {
		if err := openDisk(t, addr, "a").Flush(); err != nil {
			t.Error(err)
		}
	}
	end()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	for i, count := range []string{"0", "65", "x", "1"} {
		cmd, end := start(count, null)
		out, err := cmd.CombinedOutput()
		end()
		if want := []string{"must be", "must be", "must be", "no listening stream socket"}[i]; err == nil || !strings.Contains(string(out), want) {
			t.Errorf("LISTEN_FDS=%s: %v %s", count, err, fmt.Sprint(string(out)))
		}
	}
}
