package main

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"lockstep/viewsvc"
)

func newViewd(env *environment) *cobra.Command {
	var (
		id     nameFlag
		data   string
		listen = memberAddress()
		peers  = peersFlag{}
	)
	cmd := &cobra.Command{
		Use:   "viewd --id v1 --data DIR --listen HOST:PORT [--peer v2=HOST:PORT ...]",
		Short: "Run a view server",
		Long: `Run a view server, which says who is primary. One is enough to try things out; three survive the loss of one.
Give each of three the other two as --peer at their first start. The view service is off the data path: while no node
fails, I/O goes on without it.`,
		Args: wantArgs(),
	}
	flags := cmd.Flags()
	flags.Var(&id, "id", "name of this view server, unique in the cluster")
	flags.StringVar(&data, "data", "", "directory for its state; made if it is missing")
	flags.Var(listen, "listen", "where it is reached, by nodes, gateways and the other view servers")
	flags.Var(peers, "peer", "another view server; once for each")
	numbers := metricsFlag(cmd)
	logger := roleFlags(cmd)

	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := required(cmd, "id", "data", "listen"); err != nil {
			return err
		}
		if _, me := peers[string(id)]; me {
			return usagef("viewd: --peer %s is this server's own --id: name the other servers only", id)
		}
		log, err := logger()
		if err != nil {
			return err
		}
		return serve(log, "viewd", func() (running, error) {
			if err := prepareData(data); err != nil {
				return running{}, err
			}
			server, err := viewsvc.StartServer(viewsvc.ServerOptions{
				ID: string(id), Dir: data, Listen: listen.value, Peers: peers, OnEvent: countViewEvents(numbers, logViewEvents(log)),
			})
			if err != nil {
				return running{}, err
			}
			role := running{close: func(context.Context) error { return server.Close() }}
			return numbers.start(role, func() error {
				if !server.KnowsLeader() {
					return errors.New("no view server leads")
				}
				return nil
			}, func(e emit) { e.viewd(server.LocalStatus()) })
		})
	}
	return cmd
}

// countViewEvents also counts views by what made them: promote is a failover.
func countViewEvents(m *metrics, next func(viewsvc.Event)) func(viewsvc.Event) {
	views := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "lockstep_views_total", Help: "Views made while this server led, by change: promote is a failover.",
	}, []string{"change"})
	m.registry.MustRegister(views)
	for _, k := range []viewsvc.Kind{viewsvc.KindPromote, viewsvc.KindHandover, viewsvc.KindForce} {
		views.WithLabelValues(string(k)) // 0 is a number too
	}
	return func(e viewsvc.Event) {
		m.events.WithLabelValues(string(e.Kind)).Inc()
		if e.Kind == viewsvc.EventView {
			views.WithLabelValues(string(e.Change)).Inc()
		}
		next(e)
	}
}

func logViewEvents(log zerolog.Logger) func(viewsvc.Event) {
	return func(e viewsvc.Event) {
		line := eventLine(log, e.Err)
		str(line, "volume", string(e.Volume))
		str(line, "node", string(e.Node))
		str(line, "replica", string(e.Replica))
		if e.View.Num > 0 {
			backups := zerolog.Arr()
			for _, b := range e.View.Backups {
				backups.Str(string(b))
			}
			line.Uint64("view", uint64(e.View.Num)).Uint64("tenure", uint64(e.View.Tenure)).
				Str("primary", string(e.View.Primary)).Array("backups", backups)
		}
		str(line, "change", string(e.Change))
		str(line, "text", e.Text)
		line.Msg(string(e.Kind))
	}
}
