package nbd

import (
	"testing"
	"time"

	"lockstep/blockdev"
)

func TestLatencyBucketsHoldUpToTwiceTheOneBefore(t *testing.T) {
	for took, want := range map[time.Duration]int{
		-1: 0, 0: 0, LatencyUnit: 0, LatencyUnit + 1: 1, 2 * LatencyUnit: 1, 2*LatencyUnit + 1: 2, 4 * LatencyUnit: 2,
		LatencyUnit << (LatencyBuckets - 2): LatencyBuckets - 2, LatencyUnit<<(LatencyBuckets-2) + 1: LatencyBuckets - 1, time.Hour: LatencyBuckets - 1,
	} {
		if got := latencyBucket(took); got != want {
			t.Errorf("%v is in bucket %d, want %d", took, got, want)
		}
	}
}

func TestMeterCountsByOperation(t *testing.T) {
	var m meter
	m.note(&blockdev.Request{Op: blockdev.OpWrite, Length: 4096}, time.Millisecond)
	m.note(&blockdev.Request{Op: blockdev.OpWrite, Length: 512, Err: blockdev.ErrIO}, time.Microsecond)
	m.note(&blockdev.Request{Op: blockdev.OpExtents, Length: 1}, time.Microsecond)
	s := m.stats("vol0")
	w := s.Ops[blockdev.OpWrite]
	if s.Export != "vol0" || len(s.Ops) != 2 || w.Bytes != 4608 || w.Errors != 1 || w.Requests() != 2 || w.Nanos != 1001000 || w.Latency[0] != 1 {
		t.Errorf("%+v", s)
	}
}
