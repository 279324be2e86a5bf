package nbd

import (
	"math/bits"
	"sync/atomic"
	"time"

	"lockstep/blockdev"
)

// Latencies are counted in buckets: the first holds what took up to LatencyUnit, each further one up to twice as much as
// the one before, the last everything else.
const (
	LatencyUnit    = 32 * time.Microsecond
	LatencyBuckets = 20 // the last but one ends at 8.4 s
)

// OpStats are an operation's totals on one export since the server was made.
type OpStats struct {
	Bytes   uint64 // asked for, also where that failed
	Errors  uint64
	Nanos   uint64                 // from the burst's submission to the completion, summed up
	Latency [LatencyBuckets]uint64 // how many completed, by time taken
}

// Requests is the number of completed requests.
func (o OpStats) Requests() (n uint64) {
	for _, b := range o.Latency {
		n += b
	}
	return n
}

// ExportStats are the totals of one export.
type ExportStats struct {
	Export string
	Ops    map[blockdev.Op]OpStats // only those that were asked for
}

// meter counts an export's requests. All connections of an export share one.
type meter [blockdev.OpExtents + 1]struct {
	bytes, errors, nanos atomic.Uint64
	latency              [LatencyBuckets]atomic.Uint64
}

// clockBase is what began is counted from: a Time has three words, of which a ticket needs one.
var clockBase = time.Now()

func clock() time.Duration { return time.Since(clockBase) }

// note counts a completed request.
func (m *meter) note(r *blockdev.Request, took time.Duration) {
	o := &m[r.Op]
	o.bytes.Add(uint64(r.Length))
	o.nanos.Add(uint64(max(took, 0)))
	if r.Err != nil {
		o.errors.Add(1)
	}
	o.latency[latencyBucket(took)].Add(1)
}

func latencyBucket(took time.Duration) int {
	return min(bits.Len64(uint64(max(took-1, 0)/LatencyUnit)), LatencyBuckets-1)
}

func (m *meter) stats(export string) ExportStats {
	out := ExportStats{Export: export, Ops: map[blockdev.Op]OpStats{}}
	for op := range m {
		o := OpStats{Bytes: m[op].bytes.Load(), Errors: m[op].errors.Load(), Nanos: m[op].nanos.Load()}
		for i := range o.Latency {
			o.Latency[i] = m[op].latency[i].Load()
		}
		if o.Requests() > 0 {
			out.Ops[blockdev.Op(op)] = o
		}
	}
	return out
}

// meterOf is an export's meter. There is one for every export that was ever attached to: as many as volumes.
func (s *Server) meterOf(export string) *meter {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.meters[export]
	if m == nil {
		m = new(meter)
		if s.meters == nil {
			s.meters = map[string]*meter{}
		}
		s.meters[export] = m
	}
	return m
}

// ExportStats gives the totals of every export that a client was ever attached to.
func (s *Server) ExportStats() []ExportStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]ExportStats, 0, len(s.meters))
	for name, m := range s.meters {
		list = append(list, m.stats(name))
	}
	return list
}
