package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"lockstep/viewsvc"
)

func TestErrorsBecomeExitCodes(t *testing.T) {
	plain := errors.New("it broke")
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{plain, 1},
		{withHint(plain, "mend it"), 1},
		{usagef("what?"), 64},
		{fmt.Errorf("outer: %w", &usageError{withHint(plain, "see --help")}), 64},
		{&cannotTellError{plain}, 3},
		{exitStatus(2), 2},
		{exitStatus(exitSignal + int(syscall.SIGTERM)), 143},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
	}
}

func TestErrorIsOneLineWithANextStep(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, inUse := net.Listen("tcp", l.Addr().String())
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("a: b\n\n  c\n"), "lockstep: a: b; c\n"},
		{errors.New("lockstep: once is enough"), "lockstep: once is enough\n"},
		{withHint(errors.New("a"), "do %s", "b"), "lockstep: a: do b\n"},
		{fmt.Errorf("node: %w", syscall.ENOSPC), "lockstep: node: no space left on device: make room on that file system and start again; nothing that was acknowledged is lost\n"},
		{inUse, "lockstep: " + inUse.Error() + ": stop what listens there, or choose another address\n"},
		{withHint(inUse, "use --listen"), "lockstep: " + inUse.Error() + ": use --listen\n"},
		{explain(fmt.Errorf("status: %w: %w", viewsvc.ErrNoLeader, viewsvc.ErrLeaderless), []string{"a:1", "b:1"}),
			"lockstep: a view server answers, but none of a:1,b:1 leads: more than half of the view servers have to run and reach each other; start the others\n"},
		{exitStatus(2), ""},
		{nil, ""},
	} {
		var out strings.Builder
		report(&out, c.err)
		if out.String() != c.want {
			t.Errorf("got  %q\nwant %q", out.String(), c.want)
		}
	}
}
