// Command stamp torments an NBD export with writes that can be recognised, and tells whether the disk ever lost,
// tore, misplaced or resurrected one. It destroys what the first bytes of the disk hold (see -span).
//
//	stamp -uri nbd://127.0.0.1:10809/vol0 -seconds 30
//
// With -reconnect a lost connection is no failure, only a write whose fate is unknown. With -state the ledger is
// kept in a file, and a later run, after everything was stopped and started again, goes on with it; -verify only
// checks what is there.
//
// Exit codes: 0 the disk is fine, 1 it broke a rule (see package stamped), 2 it could not be tested, or answered
// with an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/signal"
	"time"

	"lockstep/tools/stamp/stamped"
)

const (
	exitBroken = 1
	exitFailed = 2
)

// options are the command line.
type options struct {
	uri     string
	seconds float64
	span    uint64
	state   string
	verify  bool
	run     stamped.Options
}

func main() {
	var o options
	flag.StringVar(&o.uri, "uri", "nbd://127.0.0.1:10809/vol0", "the export")
	flag.Float64Var(&o.seconds, "seconds", 10, "how long")
	flag.Uint64Var(&o.span, "span", 64<<20, "bytes of the disk to use; what they hold is lost")
	flag.StringVar(&o.state, "state", "", "file that keeps the ledger from one run to the next")
	flag.BoolVar(&o.verify, "verify", false, "write nothing, check what is there against -state")
	flag.IntVar(&o.run.Conns, "conns", 2, "connections")
	flag.IntVar(&o.run.Depth, "depth", 8, "requests in flight on each connection")
	flag.IntVar(&o.run.MaxCells, "max-cells", 64, "blocks of the longest request")
	flag.BoolVar(&o.run.Reconnect, "reconnect", false, "connect again when a connection is lost")
	flag.Uint64Var(&o.run.Seed, "seed", rand.Uint64(), "of the choice of requests")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "stamp: %q was not expected; see -help\n", flag.Arg(0))
		os.Exit(exitFailed)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := torment(ctx, o); err != nil {
		fmt.Fprintf(os.Stderr, "stamp: %v\n", err)
		var v *stamped.Violation
		if errors.As(err, &v) {
			os.Exit(exitBroken)
		}
		os.Exit(exitFailed)
	}
}

// torment is a whole run: ledger, writes, check.
func torment(ctx context.Context, o options) error {
	disk, err := stamped.DialNBD(ctx, o.uri)
	if err != nil {
		return err
	}
	defer func() { disk.Close() }()
	ledger, err := openLedger(o, disk)
	if err != nil {
		return err
	}
	if o.verify {
		return stamped.Verify(disk, ledger)
	}
	fmt.Printf("seed %d\n", o.run.Seed)
	o.run.Dial = func(ctx context.Context) (stamped.Disk, error) { return stamped.DialNBD(ctx, o.uri) }
	limit, cancel := context.WithTimeout(ctx, time.Duration(o.seconds*float64(time.Second)))
	defer cancel()
	stats, err := stamped.Run(limit, ledger, o.run)
	fmt.Println(stats)
	if o.state != "" {
		err = errors.Join(err, ledger.Save(o.state))
	}
	if err != nil {
		return err
	}
	if o.run.Reconnect { // this connection, idle meanwhile, may be lost too
		disk.Close()
		if disk, err = stamped.DialNBD(ctx, o.uri); err != nil {
			return err
		}
	}
	if err := stamped.Verify(disk, ledger); err != nil {
		return err
	}
	fmt.Println("every block holds what it may hold")
	return nil
}

// openLedger goes on with the ledger in the state file, or begins with a new one on a cleared area.
func openLedger(o options, disk *stamped.NBD) (*stamped.Ledger, error) {
	if o.state != "" {
		ledger, err := stamped.Load(o.state)
		if err == nil {
			if err := ledger.Layout().Validate(disk.Size()); err != nil {
				return nil, err
			}
			return ledger, stamped.Verify(disk, ledger)
		}
		if !errors.Is(err, fs.ErrNotExist) || o.verify {
			return nil, err
		}
	}
	if o.verify {
		return nil, errors.New("-verify needs -state")
	}
	layout := stamped.LayoutFor(min(o.span, disk.Size()))
	if err := layout.Validate(disk.Size()); err != nil {
		return nil, err
	}
	return stamped.NewLedger(layout), stamped.Clear(disk, layout)
}
