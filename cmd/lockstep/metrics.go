package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
)

// metrics is what a role shows at --metrics: what a scrape reads from the role (collect), and what its events are counted
// in. Without --metrics everything is counted and nobody asks.
type metrics struct {
	addr     *addressFlag
	registry *prometheus.Registry
	events   *prometheus.CounterVec
	// health says why the role cannot do its work now; nil if it can. Set before listen.
	health func() error
}

func metricsFlag(cmd *cobra.Command) *metrics {
	m := &metrics{
		addr:     &addressFlag{kind: "HOST:PORT", check: checkListen},
		registry: prometheus.NewRegistry(),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockstep_events_total", Help: "What the role reported, by the name that it has in the log.",
		}, []string{"event"}),
		health: func() error { return nil },
	}
	m.registry.MustRegister(m.events, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	cmd.Flags().Var(m.addr, "metrics", "where /metrics (Prometheus) and /healthz are served; nowhere by default")
	return m
}

// histogram makes a histogram that the role's events are observed in.
func (m *metrics) histogram(name, help string) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)})
	m.registry.MustRegister(h)
	return h
}

func (m *metrics) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	m.registry.MustRegister(c)
	return c
}

// limits of the HTTP server. A scrape is a few hundred lines.
const (
	metricsHeaderTimeout = 5 * time.Second
	metricsWriteTimeout  = 30 * time.Second
)

// listen serves until the process ends. Who was asked for numbers and cannot listen does not start.
func (m *metrics) listen() error {
	if m.addr.value == "" {
		return nil
	}
	l, err := net.Listen("tcp", m.addr.value)
	if err != nil {
		return fmt.Errorf("--metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := m.health(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: metricsHeaderTimeout, WriteTimeout: metricsWriteTimeout}
	go func() { _ = server.Serve(l) }() // ends with the process; scrapes are nobody's to wait for
	return nil
}

// start begins a role and shows its numbers: what it collects by, and what tells whether it is well.
func (m *metrics) start(role running, health func() error, collect func(emit)) (running, error) {
	m.health = health
	m.registry.MustRegister(collector(collect))
	if err := m.listen(); err != nil {
		return running{}, errors.Join(err, role.close(context.Background()))
	}
	return role, nil
}
