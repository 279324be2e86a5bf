package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// workload is a row of the table.
type workload struct {
	name  string
	rw    string // fio's
	bytes string // of a request
	depth int
	bulk  bool // shown in MB/s, else in requests per second
}

var workloads = []workload{
	{"4 KiB random write, QD 1", "randwrite", "4k", 1, false},
	{"4 KiB random write, QD 32", "randwrite", "4k", 32, false},
	{"4 KiB random read, QD 1", "randread", "4k", 1, false},
	{"4 KiB random read, QD 32", "randread", "4k", 32, false},
	{"1 MiB sequential write, QD 4", "write", "1m", 4, true},
	{"1 MiB sequential read, QD 4", "read", "1m", 4, true},
}

// cell is one measurement.
type cell struct {
	Workload string  `json:"workload"`
	IOPS     float64 `json:"iops"`
	MBps     float64 `json:"mb_per_second"` // 10^6 bytes
	P50      float64 `json:"p50_us"`        // completion latency, microseconds
	P99      float64 `json:"p99_us"`
}

// rampSeconds come before a measurement begins.
const rampSeconds = 1

// fill writes the whole disk once, so that reads find data and no write is a first one.
func fill(ctx context.Context, uri string, megabytes int) error {
	_, err := fio(ctx, uri, megabytes, "--name=fill", "--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1")
	return err
}

// runFio measures one cell.
func runFio(ctx context.Context, uri string, w workload, o options) (cell, error) {
	out, err := fio(ctx, uri, o.megabytes, "--name=cell", "--rw="+w.rw, "--bs="+w.bytes,
		"--iodepth="+strconv.Itoa(w.depth), "--time_based", fmt.Sprintf("--runtime=%dms", int(o.seconds*1000)),
		fmt.Sprintf("--ramp_time=%d", rampSeconds), "--norandommap", "--randrepeat=0")
	if err != nil {
		return cell{}, err
	}
	c, err := parseFio(out)
	c.Workload = w.name
	return c, err
}

// fio runs one job to its end and returns its JSON.
func fio(ctx context.Context, uri string, megabytes int, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	args = append([]string{"--ioengine=nbd", "--uri=" + uri, "--size=" + strconv.Itoa(megabytes) + "M",
		"--output-format=json"}, args...)
	out, err := exec.CommandContext(ctx, "fio", args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("fio: %w: %s", err, exit.Stderr)
	}
	return out, err
}

// fioSide is reads or writes in fio's JSON.
type fioSide struct {
	IOPS    float64 `json:"iops"`
	BW      float64 `json:"bw_bytes"`
	TotalIO int64   `json:"total_ios"`
	Latency struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

func parseFio(out []byte) (cell, error) {
	var result struct {
		Jobs []struct {
			Error int     `json:"error"`
			Read  fioSide `json:"read"`
			Write fioSide `json:"write"`
		} `json:"jobs"`
	}
	// The engine says hello before fio's JSON begins.
	if err := json.Unmarshal(out[max(0, bytes.IndexByte(out, '{')):], &result); err != nil {
		return cell{}, fmt.Errorf("fio's output: %w", err)
	}
	if len(result.Jobs) != 1 || result.Jobs[0].Error != 0 {
		return cell{}, fmt.Errorf("fio failed: %s", out)
	}
	side := result.Jobs[0].Write
	if side.TotalIO == 0 {
		side = result.Jobs[0].Read
	}
	if side.TotalIO == 0 {
		return cell{}, errors.New("fio did nothing")
	}
	return cell{
		IOPS: side.IOPS,
		MBps: side.BW / 1e6,
		P50:  side.Latency.Percentile["50.000000"] / 1000,
		P99:  side.Latency.Percentile["99.000000"] / 1000,
	}, nil
}
