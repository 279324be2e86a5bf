package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"lockstep/blockdev/nbd"
	"lockstep/replication"
	"lockstep/viewsvc"
)

// collector asks a role for its numbers at each scrape. It describes nothing beforehand: which volumes and nodes there are
// changes.
type collector func(emit)

// Describe implements prometheus.Collector; nothing described means "unchecked".
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) { c(emit{ch}) }

// emit takes the numbers of one scrape. Labels are name and value in turn.
type emit struct{ ch chan<- prometheus.Metric }

func (e emit) desc(name, help string, labels []string) (*prometheus.Desc, []string) {
	var names, values []string
	for i := 0; i < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	return prometheus.NewDesc("lockstep_"+name, help, names, nil), values
}

func (e emit) gauge(name, help string, v float64, labels ...string) {
	desc, values := e.desc(name, help, labels)
	e.ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, values...)
}

func (e emit) counter(name, help string, v float64, labels ...string) {
	desc, values := e.desc(name, help, labels)
	e.ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, v, values...)
}

func (e emit) flag(name, help string, v bool, labels ...string) {
	n := 0.0
	if v {
		n = 1
	}
	e.gauge(name, help, n, labels...)
}

// nbd is what an NBD server did for its clients.
func (e emit) nbd(s nbd.Stats, exports []nbd.ExportStats) {
	e.gauge("nbd_clients", "Connections of NBD clients.", float64(s.Clients))
	for _, x := range exports {
		for op, o := range x.Ops {
			labels := []string{"volume", x.Export, "op", op.String()}
			e.counter("nbd_requests_total", "Requests completed.", float64(o.Requests()), labels...)
			e.counter("nbd_bytes_total", "Bytes that completed requests were for.", float64(o.Bytes), labels...)
			e.counter("nbd_errors_total", "Requests completed with an error.", float64(o.Errors), labels...)
			e.latency("nbd_request_seconds", "Time from a request's arrival to its completion.", o, labels...)
		}
	}
}

func (e emit) latency(name, help string, o nbd.OpStats, labels ...string) {
	buckets, below := map[float64]uint64{}, uint64(0)
	for i, n := range o.Latency[:nbd.LatencyBuckets-1] {
		below += n
		buckets[(nbd.LatencyUnit << i).Seconds()] = below
	}
	desc, values := e.desc(name, help, labels)
	e.ch <- prometheus.MustNewConstHistogram(desc, o.Requests(), float64(o.Nanos)/1e9, buckets, values...)
}

// node is what a storage server has and does.
func (e emit) node(s replication.NodeStats) {
	e.nbd(s.NBD, s.Exports)
	for _, r := range s.Replicas {
		v := []string{"volume", r.Name}
		e.gauge("replica_role", "1 for the role that this node's replica has.", 1, "volume", r.Name, "role", string(r.Role))
		e.gauge("replica_view", "Number of the newest view that the replica knows.", float64(r.View), v...)
		e.gauge("replica_tenure", "View in which the primary took office.", float64(r.Tenure), v...)
		e.gauge("replica_room_bytes", "Size of a volume that the replica has room for.", float64(r.Room), v...)
		e.gauge("replica_members", "Members of that view.", float64(r.Members), v...)
		e.gauge("replica_log_end", "Last record of the log.", float64(r.LogEnd), v...)
		e.gauge("replica_commit", "Last committed record.", float64(r.Commit), v...)
		e.gauge("replica_applied", "Last record that is in the image.", float64(r.Applied), v...)
		e.gauge("replica_commit_lag_records", "Records in the log that are not committed.", float64(r.LogEnd-min(r.Commit, r.LogEnd)), v...)
		e.gauge("replica_apply_lag_records", "Committed records that are not in the image.", float64(r.Commit-min(r.Applied, r.Commit)), v...)
		e.gauge("replica_log_fill_ratio", "Part of the log that cannot be reused before a checkpoint.", r.LogFill, v...)
		const reads = "Reads that clients sent to this primary, by how it knew that it still is one: a lease (or it has no peers), or asking its peers."
		e.counter("replica_reads_total", reads, float64(r.ReadsAtOnce), "volume", r.Name, "by", "lease")
		e.counter("replica_reads_total", reads, float64(r.ReadsConfirmed), "volume", r.Name, "by", "asking")
		for _, list := range [][]viewsvc.Progress{r.Lag, r.Learners} {
			for _, p := range list {
				e.gauge("replica_peer_lag_bytes", "What a peer of this primary lacks, estimated.", float64(p.BytesLeft), "volume", r.Name, "peer", string(p.Replica))
			}
		}
	}
}

// nodeHealth tells of replicas that do nothing any more, or could not be opened.
func nodeHealth(s replication.NodeStats) error {
	errs := slices.Clone(s.Unusable)
	for _, r := range s.Replicas {
		if r.Role == viewsvc.RolePoisoned {
			errs = append(errs, fmt.Errorf("the storage of volume %s failed: %s", r.Name, r.Error))
		}
	}
	return errors.Join(errs...)
}

// viewd is what a view server knows. Only the one that leads has volumes and nodes to show.
func (e emit) viewd(cluster viewsvc.ClusterStatus, leads bool) {
	e.flag("viewd_leader", "1 on the view server that leads.", leads)
	for _, n := range cluster.Nodes {
		e.flag("node_alive", "1 for a node that pings.", n.Alive, "node", string(n.ID))
	}
	for _, vs := range cluster.Volumes {
		if vs.Deleting { // another may have its name already
			continue
		}
		state, v := judge(vs).state, []string{"volume", vs.Volume.Name}
		for _, s := range []volumeState{stateSafe, stateDegraded, stateUnavailable} {
			e.flag("volume_state", "1 for the state that a volume is in.", s == state, "volume", vs.Volume.Name, "state", string(s))
		}
		e.gauge("volume_size_bytes", "Size that clients are told.", float64(vs.Volume.Size), v...)
		e.gauge("volume_view", "Number of the volume's view.", float64(vs.View.Num), v...)
		e.gauge("volume_members", "Members of the volume's view.", float64(len(vs.View.Members())), v...)
		e.gauge("volume_copies_wanted", "Members that the view is to have.", float64(vs.Volume.Copies), v...)
		e.counter("volume_forced_promotions_total", "How often an operator forced a promotion.", float64(vs.View.DataLossGen), v...)
	}
}
