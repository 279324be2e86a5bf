package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// stopGrace is how long a role may take to stop in good order. What is left then is for the next start's recovery.
const stopGrace = 8 * time.Second

// running is a role that has started: what nodes, gateways and view servers have in common.
type running struct {
	// close stops in good order: it says goodbye, finishes what was begun and leaves a clean shutdown behind.
	close func(context.Context) error
	// failed gets why the role cannot go on, if that ever happens; nil if it has come to its end.
	failed <-chan error
}

// roleFlags adds the flags that every role has and returns what makes its logger.
func roleFlags(cmd *cobra.Command) func() (zerolog.Logger, error) {
	level := cmd.Flags().String("log-level", "info", "debug, info, warn or error; logs go to standard error")
	return func() (zerolog.Logger, error) { return newLogger(os.Stderr, *level) }
}

// required fails when one of the flags was not given.
func required(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if !cmd.Flags().Changed(name) {
			return &usageError{withHint(fmt.Errorf("%s: --%s is missing", commandName(cmd), name),
				"see `%s --help`", cmd.CommandPath())}
		}
	}
	return nil
}

// serve starts a role and stays until a signal ends it, or it cannot go on. SIGINT and SIGTERM stop it in good
// order; the second one ends the process on the spot, which everything here has to survive anyway.
func serve(log zerolog.Logger, name string, start func() (running, error)) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)

	role, err := start()
	if err != nil {
		return ofRole(name, err)
	}
	log.Info().Int("pid", os.Getpid()).Msg(name + " started")
	select {
	case err := <-role.failed:
		if err == nil {
			log.Info().Msg(name + " ended")
			return nil
		}
		return ofRole(name, err)
	case s := <-signals:
		log.Info().Str("signal", s.String()).Msg(name + " stops")
	}

	// close gets a little less time than the process, so as to say itself what it waited for.
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	polite, cancel := context.WithTimeout(ctx, stopGrace-time.Second)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- role.close(polite) }() // ends with the process at the latest
	select {
	case err := <-closed:
		if err != nil {
			return fmt.Errorf("%s: stop: %w", name, err)
		}
		log.Info().Msg(name + " stopped")
		return nil
	case s := <-signals:
		number, _ := s.(syscall.Signal)
		return exitStatus(exitSignal + int(number))
	case <-ctx.Done():
		return withHint(fmt.Errorf("%s: not stopped after %s", name, stopGrace), "nothing is lost; the next start recovers")
	}
}

// ofRole puts the role's name in front of an error, unless the package that made it did.
func ofRole(name string, err error) error {
	if err == nil || strings.HasPrefix(err.Error(), name+": ") {
		return err
	}
	return fmt.Errorf("%s: %w", name, err)
}

// prepareData makes a role's data directory and finds out early, and in plain words, whether it can be used.
func prepareData(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return withHint(fmt.Errorf("data directory: %w", err), "choose another with --data")
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return withHint(fmt.Errorf("data directory %s cannot be written: %w", dir, err), "check who owns it, or choose another with --data")
	}
	return nil
}
