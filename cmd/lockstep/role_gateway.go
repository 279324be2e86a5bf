package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"lockstep/blockdev/nbd"
	"lockstep/replication/exportname"
	"lockstep/replication/gateway"
)

func newGateway(env *environment) *cobra.Command {
	var (
		opts   gateway.Options
		listen = clientExport("")
		mode   = modeFlag(nbd.DefaultSocketMode)
	)
	cmd := &cobra.Command{
		Use:   "gateway --view HOST:PORT[,...] --listen HOST:PORT|unix:/PATH",
		Short: "Run the NBD server that clients talk to",
		Long: `Run the NBD server that clients talk to. Every volume is an export. The gateway finds the primary and keeps
requests until they are acknowledged: clients see a failover as a pause, not as an error.

With --exclusive each client has its volume for itself, on whatever gateway others come: a disk with a file system on it
cannot be mounted twice by mistake. Who comes second is refused and told who has it. When a client disconnects, the volume
is free; when the gateway dies, it stays taken until the same --session, or somebody with --take-over, comes.
"lockstep volume detach-all" ends all clients of a volume.`,
		Args: wantArgs(),
	}
	flags := cmd.Flags()
	flags.Var(listen, "listen", "where clients connect")
	flags.DurationVar(&opts.Timeout, "timeout", 0, `how long a request may wait for a primary before it fails with an I/O error;
0 waits for ever, which is what file systems want`)
	flags.IntVar(&opts.MaxClients, "max-clients", gateway.DefaultMaxClients, "connections in all")
	flags.BoolVar(&opts.ReadOnly, "read-only", false, "let clients read only")
	flags.StringSliceVar(&opts.ReadOnlyVolumes, "read-only-volume", nil, "let clients of this volume read only; may be given again")
	flags.IntVar(&opts.MaxClientsPerVolume, "max-clients-per-volume", 0, "connections to one volume; 0 is no limit of its own")
	flags.Var(&mode, "socket-mode", "who may connect to a unix socket, in octal")
	serverTLSFlags(cmd, &opts.TLS)
	primaryTLSFlags(cmd, &opts.PrimaryTLS)
	flags.BoolVar(&opts.Attach.Exclusive, "exclusive", false, "each client has its volume for itself")
	flags.BoolVar(&opts.Attach.TakeOver, "take-over", false, "with --exclusive: end who has the volume, for good; once for each volume")
	flags.StringVar(&opts.Attach.Session, "session", "", `with --exclusive: a name for this gateway that no other has, under which it gets
its volumes back after it died (default: a new one at each start)`)
	servers := viewFlag(cmd, env)
	numbers := metricsFlag(cmd)
	logger := roleFlags(cmd)

	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if err := required(cmd, "listen"); err != nil {
			return err
		}
		opts.Listen, opts.SocketMode = listen.value, fs.FileMode(mode)
		if err := checkGateway(cmd, &opts); err != nil {
			return err
		}
		if opts.View, err = servers(""); err != nil {
			return err
		}
		log, err := logger()
		if err != nil {
			return err
		}
		procs := newClientProcs(env, opts.TLS.Mode != nbd.TLSOff || opts.PrimaryTLS.Mode != nbd.TLSOff)
		return serve(log, "gateway", func() (running, error) { return startGateway(cmd.Context(), opts, procs, numbers, log) })
	}
	return cmd
}

// checkGateway finds what is wrong with the values of a gateway's flags, and with flags together.
func checkGateway(cmd *cobra.Command, o *gateway.Options) error {
	switch {
	case o.MaxClients < 1:
		return usagef("gateway: --max-clients %d: at least 1", o.MaxClients)
	case o.MaxClientsPerVolume < 0:
		return usagef("gateway: --max-clients-per-volume %d: at least 1, or 0 for as many as --max-clients", o.MaxClientsPerVolume)
	case o.Timeout < 0:
		return usagef("gateway: --timeout %v: 0 waits for ever", o.Timeout)
	case (o.Attach.TakeOver || o.Attach.Session != "") && !o.Attach.Exclusive:
		return usagef("gateway: --take-over and --session go with --exclusive")
	}
	for _, name := range o.ReadOnlyVolumes {
		if err := checkVolumeName(name); err != nil {
			return usagef("gateway: --read-only-volume: %w", err)
		}
	}
	if o.Attach.Session != "" {
		if err := exportname.CheckSession(o.Attach.Session); err != nil {
			return usagef("gateway: --session: %w", err)
		}
	}
	return errors.Join(checkTLS(cmd, "tls", &o.TLS), checkTLS(cmd, "primary-tls", &o.PrimaryTLS))
}

func startGateway(ctx context.Context, o gateway.Options, procs *clientProcs, numbers *metrics, log zerolog.Logger) (running, error) {
	// A listener that fails ends the gateway: there would be no new clients.
	stopped := make(chan error, 1)
	o.OnEvent = procs.follow(countGatewayEvents(numbers, logGatewayEvents(log, stopped)))
	g, err := gateway.Start(ctx, o)
	if err != nil {
		return running{}, err
	}
	go warnUnreachable(o.View, log)
	return numbers.start(running{close: g.Close, failed: stopped}, func() error { return nil },
		func(e emit) { e.nbd(g.Server().Stats(), g.Server().ExportStats()) })
}

// warnUnreachable looks for the view service once: a gateway needs it for clients only, and would keep a wrong --view to
// itself until the first one comes. It ends after operatorPatience.
func warnUnreachable(view []string, log zerolog.Logger) {
	client, err := dialViews(view, nil)
	if err == nil {
		defer client.Close()
		_, err = client.Status(context.Background())
	}
	if err != nil {
		log.Warn().Err(explain(err, view)).Msg("view_lost")
	}
}

// countGatewayEvents also measures how long sessions were without a primary.
func countGatewayEvents(m *metrics, next func(gateway.Event)) func(gateway.Event) {
	reconnects := m.counter("lockstep_gateway_reconnects_total", "Sessions that were connected again after they lost their primary.")
	pauses := m.histogram("lockstep_gateway_pause_seconds", "How long a session was without a primary, each time.")
	return func(e gateway.Event) {
		m.events.WithLabelValues(e.Kind.String()).Inc()
		if e.Kind == gateway.EventUp && e.After > 0 {
			reconnects.Inc()
			pauses.Observe(e.After.Seconds())
		}
		next(e)
	}
}

// logGatewayEvents also passes on why the listener stopped.
func logGatewayEvents(log zerolog.Logger, stopped chan<- error) func(gateway.Event) {
	clients := logNBDEvents(log)
	return func(e gateway.Event) {
		if e.Kind == gateway.EventClient {
			clients(e.Client)
			return
		}
		if e.Kind == gateway.EventStopped {
			stopped <- e.Err // once, and there is room for it
		}
		line := eventLine(log, e.Err)
		str(line, "volume", e.Volume)
		str(line, "session", e.Session)
		if e.Generation > 0 {
			line.Uint64("generation", e.Generation)
		}
		if e.View > 0 {
			line.Uint64("view", uint64(e.View))
		}
		str(line, "addr", e.Addr)
		if e.Requests > 0 {
			line.Int("requests", e.Requests)
		}
		if e.Size > 0 {
			line.Uint64("size", e.Size)
		}
		if e.After > 0 {
			line.Dur("after_ms", e.After)
		}
		line.Msg(e.Kind.String())
	}
}
