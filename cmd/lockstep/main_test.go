package main

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes this test binary a lockstep: scripts and process tests run it under that name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lockstep": main})
}

// TestCommandLine runs the scripts of testdata/script: what is typed, what is answered, and with which exit code. They
// have commands of their own:
//
//	view STATUS.json [VIEWS.json [EVENTS.json]]
//	                                answers as a view server with these contents; sets $LOCKSTEP_VIEW
//	exits CODE lockstep ARGS...     as exec, and checks the exit code
//	replica, spoil, node, unusable  play with a node's data directory: datadir_test.go
func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"view":     viewCommand,
			"exits":    exitsCommand,
			"replica":  replicaCommand,
			"spoil":    spoilCommand,
			"node":     nodeCommand,
			"unusable": unusableCommand,
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv(viewVariable, "")
			return nil
		},
		RequireExplicitExec: true,
	})
}

func viewCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: view STATUS.json [VIEWS.json [EVENTS.json]]")
	}
	serve := func(pattern, content string) (string, http.HandlerFunc) {
		return pattern, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(content))
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc(serve("GET /v1/status", ts.ReadFile(args[0])))
	if len(args) > 1 {
		mux.HandleFunc(serve("GET /v1/views", ts.ReadFile(args[1])))
	}
	if len(args) > 2 {
		mux.HandleFunc(serve("GET /v1/events", ts.ReadFile(args[2])))
	}
	mux.HandleFunc("POST /v1/volumes/{name}/force", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Node, Reason string }
		_ = json.NewDecoder(r.Body).Decode(&in)
		if r.PathValue("name") != "vol0" || in.Node != "n2" || in.Reason != "fire" {
			w.WriteHeader(http.StatusBadRequest)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"volume": "V", "num": 9, "tenure": 9, "primary": "r2", "data_loss_gen": 1})
	})
	mux.HandleFunc("POST /v1/volumes", func(w http.ResponseWriter, r *http.Request) {
		var v map[string]any
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			ts.Logf("POST /v1/volumes: %v", err)
		}
		_ = json.NewEncoder(w).Encode(v)
	})
	mux.HandleFunc("DELETE /v1/volumes/{name}", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(map[string]string{"code": "not_found", "message": "there is no volume " + r.PathValue("name")})
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }() // until Close, below
	ts.Defer(func() { server.Close() })
	ts.Setenv(viewVariable, l.Addr().String())
}

func exitsCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGS...")
	}
	code := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		type exiter interface{ ExitCode() int }
		exit, ok := err.(exiter)
		if !ok {
			ts.Fatalf("%v", err)
		}
		b, _ := json.Marshal(exit.ExitCode())
		code = string(b)
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}

// freeAddr is a loopback address that was free a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := unusedAddr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// unusedAddr looks below the ports that the kernel gives to outgoing connections: one of those could be in use again at
// any moment.
func unusedAddr() (string, error) {
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.IntN(12000))))
		if err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", errors.New("no free port from 20000 to 32000")
}
