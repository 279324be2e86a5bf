// Command failover measures what a client sees of failovers: how long its writes pause when the primary is killed, hands
// over, or is stopped, and what a pause consists of.
//
//	go run ./tools/failover                              50 kills, 50 handovers, 20 stops of 10 s: some 15 minutes
//	go run ./tools/failover -kills 5 -handovers 5 -stops 1
//
// A view server, two nodes and a gateway run on this machine, with default settings. All clients come through the gateway:
// fio with 32 random 4 KiB writes in flight, the stamped-write checker (tools/stamp), which knows at any moment what a
// read may return; and the probe, which writes one 4 KiB block after the other. A pause is the longest time between two
// of the probe's acknowledgements, of those that span the making of the next view, or come between it and the new primary's
// first answer. For comparison: "nothing" is the longest one among as many writes when nothing happens. While a node that
// was lost comes back, all of them rest, but for -recruits, -returns and -grows: a backup is copied anew, or gets what it
// missed, or the volume is made larger under the load, and the longest pause meanwhile is held against that of as long a time
// in which nothing happens. The command fails if any client gets an error, or the checker finds a write that was lost,
// torn, stale or carried out twice.
//
// The parts of a pause come from the processes' logs, which carry microseconds:
//
//	drain      of a handover: the event → the old primary has everything on all members, has given its grants back, and asks
//	decide     the event, or that → the view service has made the next view
//	promote    → the new primary has heard of the view and has it on stable storage
//	open       → it has its first record on all members, and takes clients
//	reconnect  → the probe's gateway session is attached there
//	replay     → the probe's write is acknowledged
//
// Needed: fio. The processes and files are gone when it ends.
package main

import (
	"context"
	"flag"
	"time"

	"lockstep/tools/e2e/cluster"
)

// options are the command line.
type options struct {
	cluster.Tool
	quiet                   int
	kills, handovers, stops int
	stopped                 time.Duration
	recruits, returns       int
	grows                   int
	sync, logSize           string
}

func main() {
	o := options{Tool: cluster.Tool{Name: "failover"}}
	o.Flags()
	flag.IntVar(&o.quiet, "quiet", 10, "times nothing, for comparison")
	flag.IntVar(&o.kills, "kills", 50, "times kill -9 of the primary")
	flag.IntVar(&o.handovers, "handovers", 50, "planned handovers")
	flag.IntVar(&o.stops, "stops", 20, "times SIGSTOP of the primary")
	flag.DurationVar(&o.stopped, "stopped", 10*time.Second, "how long it stays stopped")
	flag.IntVar(&o.grows, "grows", 5, "times the volume is made larger")
	flag.IntVar(&o.recruits, "recruits", 3, "times a backup comes back on an empty disk")
	flag.IntVar(&o.returns, "returns", 3, "times a backup comes back with its data, after a second")
	flag.StringVar(&o.sync, "sync", "always", "the volume's sync mode: always, flush")
	flag.StringVar(&o.logSize, "log-size", "1G", "size of the replicas' logs")
	flag.Parse()
	o.Main([]string{"fio"}, func(ctx context.Context, dir string) (cluster.Report, error) { return measure(ctx, o, dir) })
}
