package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"

	"lockstep/tools/e2e/cluster"
)

// hopRounds is how often the way through the gateway and the one past it take turns: so what else the machine does meets
// both.
const hopRounds = 5

// hopLoads are what the gateway's hop is measured with. Writes come last: what they leave to be applied would take the
// cores that reads are measured with.
var hopLoads = []workload{workloads[3], workloads[1]}

// hop is what a client gets through the gateway and what it gets from the primary's own --nbd address.
type hop struct {
	Workload string  `json:"workload"`
	Through  cell    `json:"through_gateway"`
	Direct   cell    `json:"direct"`
	Ratio    float64 `json:"ratio"`             // of requests per second: the median of each round's
	CPU      float64 `json:"gateway_us_per_op"` // of the gateway's process, for each request through it
}

// measureHop runs the same loads on both ways to the same volume.
func measureHop(ctx context.Context, o options, dir string) ([]hop, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c, err := cluster.Start(ctx, cluster.Options{Binary: o.Binary, Dir: dir, Size: strconv.Itoa(o.megabytes) + "M"})
	if err != nil {
		return nil, err
	}
	defer c.KillAll()
	if err := fill(ctx, c.URI, o.megabytes); err != nil {
		return nil, err
	}
	primary, err := c.Primary(ctx)
	if err != nil {
		return nil, err
	}
	direct := "nbd://" + c.NBDAddr(primary) + "/" + c.Volume()
	var hops []hop
	for _, w := range hopLoads {
		h := hop{Workload: w.name}
		var through, past []cell
		var ratios []float64
		for n := range hopRounds {
			fmt.Fprintf(os.Stderr, "hop: %s, round %d\n", w.name, n+1)
			before, err := cpuSeconds(c.Gateway.PID())
			if err != nil {
				return nil, err
			}
			a, err := runFio(ctx, c.URI, w, o)
			if err != nil {
				return nil, fmt.Errorf("through the gateway: %s: %w", w.name, err)
			}
			after, err := cpuSeconds(c.Gateway.PID())
			if err != nil {
				return nil, err
			}
			// fio's ramp is not in its count of requests, and as long as this at the same rate.
			h.CPU += (after - before) * 1e6 / (a.IOPS * (o.seconds + rampSeconds)) / hopRounds
			b, err := runFio(ctx, direct, w, o)
			if err != nil {
				return nil, fmt.Errorf("past the gateway: %s: %w", w.name, err)
			}
			through, past, ratios = append(through, a), append(past, b), append(ratios, a.IOPS/b.IOPS)
		}
		slices.Sort(ratios)
		h.Through, h.Direct, h.Ratio = middle(through), middle(past), ratios[len(ratios)/2]
		hops = append(hops, h)
	}
	return hops, nil
}

// middle is the measurement with the median rate.
func middle(cells []cell) cell {
	slices.SortFunc(cells, func(a, b cell) int { return cmp.Compare(a.IOPS, b.IOPS) })
	return cells[len(cells)/2]
}

// ticksPerSecond is the unit of /proc/PID/stat, the same on every Linux that Go runs on.
const ticksPerSecond = 100

// cpuSeconds is how long a process has run so far, user and system.
func cpuSeconds(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field, the program's name in parentheses, may have anything in it.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	sum := 0
	for _, f := range fields[11:13] { // utime and stime, the 14th and 15th of all
		n, err := strconv.Atoi(string(f))
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += n
	}
	return float64(sum) / ticksPerSecond, nil
}
