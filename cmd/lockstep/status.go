package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// watchPeriod is how often --watch looks.
const watchPeriod = time.Second

func newStatus(env *environment) *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status [VOLUME]",
		Short: "Say whether volumes are safe, and why not",
		Long: `Say whether volumes are safe, and why not. The first line of each volume is the verdict:

  SAFE         it serves, and has every copy that was asked for
  DEGRADED     it serves, with fewer copies than were asked for
  UNAVAILABLE  it does not serve now

The exit code is that of the worst volume: 0 safe, 1 degraded, 2 unavailable; 3 when the view service
does not answer or does not know the volume. With --watch it is that of the last look.`,
		Args: wantArgs("[VOLUME]"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; its shape is stable")
	cmd.Flags().BoolVar(&watch, "watch", false, "look again every second, until interrupted")
	return operate(cmd, env, func(ctx context.Context, view *operator, args []string) error {
		volume := ""
		if len(args) == 1 {
			volume = args[0]
		}
		look := func(ctx context.Context, w io.Writer) error {
			cluster, err := view.Status(ctx)
			if err != nil {
				return &cannotTellError{explain(err, view.servers)}
			}
			report, ok := newStatusReport(cluster, volume)
			if !ok {
				return &cannotTellError{noVolume(volume)}
			}
			if asJSON {
				if err := writeJSON(w, report); err != nil {
					return err
				}
			} else {
				writeStatus(w, report)
			}
			return statusExit(report)
		}
		if watch {
			return watchStatus(ctx, env, look)
		}
		return look(ctx, env.stdout)
	})
}

// watchStatus looks until it is interrupted. On a terminal each look replaces the last. A view service that does not
// answer for a while is what one wants to watch, so that its error is shown like a verdict.
func watchStatus(ctx context.Context, env *environment, look func(context.Context, io.Writer) error) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	terminal := false
	if f, ok := env.stdout.(*os.File); ok {
		terminal = isTerminal(f)
	}
	var last error
	for {
		var page bytes.Buffer // printed at once: no flicker
		if terminal {
			page.WriteString("\x1b[H\x1b[2J")
		}
		err := look(ctx, &page)
		if ctx.Err() != nil {
			return last // interrupted while looking: this look says nothing
		}
		last = err
		if _, err := env.stdout.Write(page.Bytes()); err != nil {
			return fmt.Errorf("status: %w", err)
		}
		var verdict exitStatus
		if last != nil && !errors.As(last, &verdict) {
			report(env.stderr, last)
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(watchPeriod):
		}
	}
}

// writeJSON writes one JSON document and a newline.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
