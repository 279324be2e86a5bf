package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// signalSelf sends this process a signal, which serve has asked for.
func signalSelf(t *testing.T, s syscall.Signal) {
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Error(err)
	}
}

func TestFirstSignalStopsARoleInGoodOrder(t *testing.T) {
	var bounded bool
	err := serve(zerolog.Nop(), "role", func() (running, error) {
		signalSelf(t, syscall.SIGTERM)
		return running{close: func(ctx context.Context) error {
			_, bounded = ctx.Deadline()
			return nil
		}}, nil
	})
	if err != nil || !bounded {
		t.Errorf("%v; close has a deadline: %t", err, bounded)
	}
}

func TestSecondSignalEndsARoleAtOnce(t *testing.T) {
	err := serve(zerolog.Nop(), "role", func() (running, error) {
		signalSelf(t, syscall.SIGTERM)
		return running{close: func(context.Context) error {
			signalSelf(t, syscall.SIGINT)
			<-t.Context().Done() // as good as never
			return nil
		}}, nil
	})
	if got := exitCode(err); got != exitSignal+int(syscall.SIGINT) {
		t.Errorf("%v: exit code %d", err, got)
	}
}

func TestRoleThatCannotGoOnEndsWithItsReason(t *testing.T) {
	failed := make(chan error, 1)
	failed <- errors.New("another process pings under this name")
	err := serve(zerolog.Nop(), "node", func() (running, error) { return running{failed: failed}, nil })
	if err == nil || err.Error() != "node: another process pings under this name" || exitCode(err) != exitFailed {
		t.Errorf("%v", err)
	}
}

// TestViewServerProcess starts, logs JSON to a file, stops on SIGTERM, and starts again on its data.
func TestViewServerProcess(t *testing.T) {
	data, addr := filepath.Join(t.TempDir(), "v1"), freeAddr(t)
	for range 2 {
		var logs bytes.Buffer
		cmd := exec.Command("lockstep", "viewd", "--id", "v1", "--data", data, "--listen", addr)
		cmd.Stderr = &logs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		eventually(t, "the view server answers", func() bool {
			_, _, code := lockstep(t, "status", "--view", addr)
			return code == exitOK
		})
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, logs.String())
		}
		for line := range strings.Lines(logs.String()) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil || fields["level"] == nil || fields["message"] == nil {
				t.Errorf("no JSON log line: %s", line)
			}
		}
		if !strings.Contains(logs.String(), `"message":"viewd stopped"`) {
			t.Errorf("no word of the end:\n%s", logs.String())
		}
	}
}

// TestWatchEndsWithTheLastVerdict: the view service may come and go while one watches.
func TestWatchEndsWithTheLastVerdict(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var stdout, stderr bytes.Buffer
	env := &environment{stdout: &stdout, stderr: &stderr}
	looks := 0
	began := time.Now()
	err := watchStatus(ctx, env, func(_ context.Context, w io.Writer) error {
		looks++
		switch looks {
		case 1:
			return &cannotTellError{errors.New("no view server answers")}
		case 2:
			_, _ = io.WriteString(w, "vol0 DEGRADED\n")
			time.AfterFunc(watchPeriod/2, cancel)
			return exitStatus(exitDegraded)
		}
		return nil
	})
	if exitCode(err) != exitDegraded || looks != 2 || stdout.String() != "vol0 DEGRADED\n" || stderr.String() != "lockstep: no view server answers\n" {
		t.Errorf("%v after %d looks\nstdout %q\nstderr %q", err, looks, stdout.String(), stderr.String())
	}
	if time.Since(began) < watchPeriod {
		t.Error("it did not wait between two looks")
	}
}

// TestGatewayWarnsOfAWrongView: nothing else would tell before the first client comes.
func TestGatewayWarnsOfAWrongView(t *testing.T) {
	var out strings.Builder
	warnUnreachable([]string{freeAddr(t)}, zerolog.New(&out))
	if !strings.Contains(out.String(), "no view server answers at") {
		t.Errorf("it said %q", out.String())
	}
	out.Reset()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }))
	defer server.Close()
	warnUnreachable([]string{server.Listener.Addr().String()}, zerolog.New(&out))
	if out.Len() > 0 {
		t.Errorf("of a view server that answers it said %q", out.String())
	}
}
