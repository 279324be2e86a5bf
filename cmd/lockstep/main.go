package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// Roles handle signals themselves, in stages (role.go). Everything else just stops at the first.
	env := &environment{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}
	os.Exit(run(env, os.Args[1:]))
}

// environment is what a command touches of the process around it, so that tests can give it another.
type environment struct {
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
}

// run executes a command line and returns the exit code.
func run(env *environment, args []string) int {
	root := newRoot(env)
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	report(env.stderr, err)
	return exitCode(err)
}

// interruptible gives a context that ends at the first SIGINT or SIGTERM; the second one ends the process.
func interruptible(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(parent, syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // from here on the signals have their default effect again
	return ctx, stop
}
