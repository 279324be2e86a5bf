package main

import (
	"fmt"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"lockstep/replication"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// A log is a ring of segments, each of which holds the largest request.
const (
	logSizeMin = wal.MinSegments * wal.DefaultSegmentBytes
	logSizeMax = wal.MaxSegments * wal.DefaultSegmentBytes
)

// readsFlag is a read mode on the command line.
type readsFlag replication.ReadMode

func (f *readsFlag) String() string { return string(*f) }
func (f *readsFlag) Type() string   { return "auto|confirm" }
func (f *readsFlag) Set(s string) error {
	switch mode := replication.ReadMode(s); mode {
	case replication.ReadAuto, replication.ReadConfirm:
		*f = readsFlag(mode)
		return nil
	}
	return fmt.Errorf("%q is no way to read: use auto or confirm", s)
}

func newNode(env *environment) *cobra.Command {
	var (
		opts        replication.NodeOptions
		id          nameFlag
		listen      = memberAddress()
		export      = memberAddress()
		logSize     = sizeFlag(1 << 30)
		recruitRate sizeFlag
		reads       = readsFlag(replication.ReadAuto)
	)
	cmd := &cobra.Command{
		Use:   "node --id n1 --data DIR --listen HOST:PORT --nbd HOST:PORT --view HOST:PORT[,...]",
		Short: "Run a storage server",
		Long: `Run a storage server, which holds replicas of volumes. It begins with nothing: the view service tells it which
volumes to hold. On SIGTERM it says goodbye, and its volumes move at once.`,
		Args: wantArgs(),
	}
	flags := cmd.Flags()
	flags.Var(&id, "id", "name of this node, unique in the cluster")
	flags.StringVar(&opts.Dir, "data", "", "directory for its replicas; made if it is missing")
	flags.Var(listen, "listen", "where other nodes reach it")
	flags.Var(export, "nbd", "where gateways reach it")
	flags.Var(&logSize, "log-size", "size of the log of each replica that is made from now on")
	serverTLSFlags(cmd, &opts.NBDTLS)
	flags.Var(&recruitRate, "recruit-rate", "bytes per second to a replica that is brought up to date, instead of as many as clients do not notice")
	flags.Var(&reads, "reads", "how reads are kept from being stale: auto, or confirm where clocks cannot be trusted")
	servers := viewFlag(cmd, env)
	numbers := metricsFlag(cmd)
	logger := roleFlags(cmd)

	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if err := required(cmd, "id", "data", "listen", "nbd"); err != nil {
			return err
		}
		if logSize < logSizeMin || logSize > logSizeMax {
			return usagef("node: --log-size %s: from %s to %s", formatSize(uint64(logSize)), formatSize(logSizeMin), formatSize(logSizeMax))
		}
		if err := checkTLS(cmd, "tls", &opts.NBDTLS); err != nil {
			return err
		}
		opts.ID, opts.Listen, opts.NBD = viewsvc.NodeID(id), listen.value, export.value
		opts.LogBytes, opts.RecruitRate, opts.Reads = int64(logSize), int64(recruitRate), replication.ReadMode(reads)
		if opts.View, err = servers(""); err != nil {
			return err
		}
		log, err := logger()
		if err != nil {
			return err
		}
		setProcs(env)
		return serve(log, "node", func() (running, error) { return startNode(opts, numbers, log) })
	}
	return cmd
}

func startNode(o replication.NodeOptions, numbers *metrics, log zerolog.Logger) (running, error) {
	if err := prepareData(o.Dir); err != nil {
		return running{}, err
	}
	o.OnEvent, o.OnNBD = countNodeEvents(numbers, logNodeEvents(log, o.View)), logNBDEvents(log)
	node, err := replication.StartNode(o)
	if err != nil {
		return running{}, err
	}
	failed := make(chan error, 1)
	go func() { // ends with the node
		<-node.Done()
		failed <- node.Err()
	}()
	return numbers.start(running{close: node.Close, failed: failed}, func() error { return nodeHealth(node.Stats()) },
		func(e emit) { e.node(node.Stats()) })
}

// countNodeEvents also counts what becomes of the storage.
func countNodeEvents(m *metrics, next func(replication.Event)) func(replication.Event) {
	checkpoints := m.histogram("lockstep_checkpoint_seconds", "How long checkpoints took.")
	corrupt := m.counter("lockstep_corrupt_blocks_total", "Bad blocks met.")
	repaired := m.counter("lockstep_repaired_blocks_total", "Bad blocks made good from another member.")
	return func(e replication.Event) {
		m.events.WithLabelValues(string(e.Kind)).Inc()
		switch e.Kind {
		case replication.EventCheckpoint:
			checkpoints.Observe(e.Took.Seconds())
		case replication.EventCorruptBlock:
			corrupt.Inc()
		case replication.EventRepaired:
			repaired.Inc()
		}
		next(e)
	}
}

func logNodeEvents(log zerolog.Logger, view []string) func(replication.Event) {
	return func(e replication.Event) {
		if e.Kind == replication.EventCheckpoint { // several a minute
			log.Debug().Str("volume", e.Volume).Dur("took_ms", e.Took).Str("text", e.Text).Msg(string(e.Kind))
			return
		}
		line := eventLine(log, explain(e.Err, view))
		if e.Took > 0 {
			line.Dur("took_ms", e.Took)
		}
		str(line, "volume", e.Volume)
		str(line, "replica", string(e.Replica))
		str(line, "peer", string(e.Peer))
		if e.View > 0 {
			line.Uint64("view", uint64(e.View))
		}
		str(line, "state", e.State)
		str(line, "text", e.Text)
		line.Msg(string(e.Kind))
	}
}
