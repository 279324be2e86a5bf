package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"lockstep/blockdev/kernel"
)

// Exit codes; doc.go has the table. Scripts depend on them: never renumber.
const (
	exitOK          = 0
	exitFailed      = 1
	exitDegraded    = 1
	exitUnavailable = 2
	exitCannotTell  = 3
	exitGone        = 4
	exitUsage       = 64
	exitSignal      = 128 // plus the signal's number
)

// usageError is a command line that makes no sense. Nothing was done.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// cannotTellError is a status that could not be had, which is not the same as a bad one.
type cannotTellError struct{ err error }

func (e *cannotTellError) Error() string { return e.err.Error() }
func (e *cannotTellError) Unwrap() error { return e.err }

// exitStatus ends the program with a code and without a message: what there is to say was said on standard output.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// hint is an error with the next thing to do for the user.
type hint struct {
	err  error
	next string
}

func (e *hint) Error() string { return e.err.Error() + ": " + e.next }
func (e *hint) Unwrap() error { return e.err }

// withHint adds what to do next to an error. A nil error stays nil.
func withHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hint{err, fmt.Sprintf(format, args...)}
}

// exitCode maps the error that a command ended with to the program's exit code.
func exitCode(err error) int {
	var (
		status exitStatus
		usage  *usageError
		blind  *cannotTellError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &blind):
		return exitCannotTell
	case errors.Is(err, kernel.ErrGone):
		return exitGone
	}
	return exitFailed
}

// report prints the error that a command ended with: one line, whatever the error's text holds.
func report(w io.Writer, err error) {
	var status exitStatus
	if err == nil || errors.As(err, &status) {
		return
	}
	var line strings.Builder
	for part := range strings.Lines(advise(err).Error()) {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		if line.Len() > 0 {
			line.WriteString("; ")
		}
		line.WriteString(part)
	}
	fmt.Fprintf(w, "lockstep: %s\n", strings.TrimPrefix(line.String(), "lockstep: "))
}

// advise adds a next step to the operating system's errors that have an obvious one, unless the place where the
// error came up knew a better one.
func advise(err error) error {
	var (
		known  *hint
		socket *net.OpError
	)
	if errors.As(err, &known) {
		return err
	}
	switch {
	case errors.As(err, &socket) && socket.Op == "listen" && errors.Is(err, fs.ErrNotExist):
		return withHint(err, "make the directory of that socket, or choose another address")
	case errors.Is(err, syscall.EADDRINUSE):
		return withHint(err, "stop what listens there, or choose another address")
	case errors.As(err, new(*net.DNSError)):
		return withHint(err, "check the host's name, or write its address")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return withHint(err, "that address is not one of this machine's: see `ip address`")
	case errors.Is(err, syscall.ENOSPC):
		return withHint(err, "make room on that file system and start again; nothing that was acknowledged is lost")
	case errors.Is(err, syscall.EROFS):
		return withHint(err, "choose a directory on a file system that is mounted for writing")
	case errors.Is(err, fs.ErrPermission):
		return withHint(err, "check who owns it, or run as that user")
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return withHint(err, "raise the limit of open files (ulimit -n)")
	}
	return err
}
