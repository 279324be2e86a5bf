package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// commit compares the log's group commit, one goroutine that appends and syncs, with fio's psync engine, which writes
// as many bytes and calls fdatasync, one after the other to a file of the log's size that was written before. They take turns.
func commit(o options) error {
	w, err := newStore(o, "commit", o.volume<<20, o.log<<20, true)
	if err != nil {
		return err
	}
	defer w.s.Abandon()
	file := filepath.Join(o.dir, "fio")
	if _, err := fio(file, o, 1<<20, "--end_fsync=1"); err != nil { // lays the file out
		return err
	}
	fmt.Println("frame of         fio           log           ratio (median of turns)")
	for _, writes := range []int{1, 8, 32, 128} {
		w.size(1)
		var theirs, ours, ratios samples
		bytes := len(w.frame(writes).Bytes())
		for range rounds {
			a, err := fio(file, o, bytes, "--fdatasync=1", "--time_based", fmt.Sprintf("--runtime=%dms", o.duration().Milliseconds()/rounds))
			if err != nil {
				return err
			}
			var r result
			if err := w.s.Checkpoint(); err != nil {
				return err
			}
			if err := w.putFor(o.duration()/rounds, writes, 0.95, &r); err != nil {
				return err
			}
			b := r.elapsed / time.Duration(len(r.took))
			theirs, ours = append(theirs, a), append(ours, b)
			ratios = append(ratios, time.Duration(1000*a.Seconds()/b.Seconds()))
		}
		fmt.Printf("%4d × 4 KiB  %9v  %9v       %.2f\n", writes, theirs.sort().at(0.5).Round(time.Microsecond),
			ours.sort().at(0.5).Round(time.Microsecond), float64(ratios.sort().at(0.5))/1000)
	}
	return nil
}

// fio gives the mean time of a write and its sync.
func fio(file string, o options, bytes int, args ...string) (time.Duration, error) {
	args = append([]string{"--name=commit", "--filename=" + file, "--ioengine=psync", "--rw=write", "--output-format=json",
		fmt.Sprintf("--size=%dM", o.log), fmt.Sprintf("--bs=%d", bytes), "--overwrite=1"}, args...)
	out, err := exec.Command("fio", args...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("fio: %w: %s", err, out)
	}
	var result struct {
		Jobs []struct {
			Write struct {
				IOPS float64 `json:"iops"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out[max(0, strings.Index(string(out), "{")):], &result); err != nil || len(result.Jobs) != 1 || result.Jobs[0].Write.IOPS == 0 {
		return 0, fmt.Errorf("fio's output: %v: %s", err, out)
	}
	return time.Duration(float64(time.Second) / result.Jobs[0].Write.IOPS), nil
}
