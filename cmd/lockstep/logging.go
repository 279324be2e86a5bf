package main

import (
	stdlog "log"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"lockstep/blockdev/nbd"
)

// newLogger writes to f: lines for people when f is a terminal, JSON otherwise.
func newLogger(f *os.File, level string) (zerolog.Logger, error) {
	min, err := zerolog.ParseLevel(level)
	if err != nil || level == "" {
		return zerolog.Nop(), usagef("--log-level %q: use debug, info, warn or error", level)
	}
	var log zerolog.Logger
	if isTerminal(f) {
		log = zerolog.New(zerolog.ConsoleWriter{Out: f, TimeFormat: time.TimeOnly + ".000"})
	} else {
		log = zerolog.New(f)
	}
	log = log.Level(min).Hook(zerolog.HookFunc(stamp))
	stdlog.SetFlags(0)
	stdlog.SetOutput(log) // net/http has words of its own for peers that speak something else
	return log, nil
}

// stamp gives each line its time, in microseconds: a failover's story is told in few of them.
func stamp(line *zerolog.Event, _ zerolog.Level, _ string) {
	line.Str(zerolog.TimestampFieldName, time.Now().Format("2006-01-02T15:04:05.000000Z07:00"))
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// eventLine begins the line of a package's typed event: an event with an error is a warning.
func eventLine(log zerolog.Logger, err error) *zerolog.Event {
	if err != nil {
		return log.Warn().Err(advise(err))
	}
	return log.Info()
}

// str adds a field that the event has set.
func str(line *zerolog.Event, key, value string) {
	if value != "" {
		line.Str(key, value)
	}
}

// logNBDEvents logs what an NBD server says of its clients.
func logNBDEvents(log zerolog.Logger) func(nbd.Event) {
	return func(e nbd.Event) {
		line := eventLine(log, e.Err)
		str(line, "client", e.Client)
		str(line, "export", e.Export)
		if e.Kind == nbd.EventDetached {
			line.Uint64("requests", e.Requests).Uint64("bytes_read", e.BytesRead).Uint64("bytes_written", e.BytesWritten)
		}
		line.Msg("nbd_" + e.Kind.String())
	}
}
