package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/replication"
	"lockstep/viewsvc"
)

// get asks a role's HTTP server.
func get(t *testing.T, url string) (body string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error(), 0
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), resp.StatusCode
}

// scrape gives the metrics of a role by their lines' first part.
func scrape(t *testing.T, addr string) map[string]float64 {
	t.Helper()
	body, status := get(t, "http://"+addr+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("%d: %s", status, body)
	}
	if problems, err := promlint.New(strings.NewReader(body)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	all := map[string]float64{}
	for line := range strings.Lines(body) {
		i := strings.LastIndexByte(line, ' ')
		if v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64); err == nil && line[0] != '#' {
			all[line[:i]] = v
		}
	}
	return all
}

// startRole starts a role as a process of its own, which ends with the test.
func startRole(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("lockstep", args...)
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", args[0], log.String())
		}
	})
}

// writeBlocks is a client that writes blocks to an export.
func writeBlocks(t *testing.T, addr, export string, n int) {
	t.Helper()
	conn, err := nbd.Dial(t.Context(), addr, nbd.ClientOptions{Export: export})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer := make(probeAnswer, n+1)
	conn.Start(answer)
	for i := range n {
		write := &blockdev.Request{Op: blockdev.OpWrite, Offset: uint64(i) * blockdev.BlockSize, Length: blockdev.BlockSize, Data: make([]byte, blockdev.BlockSize)}
		if err := conn.Submit([]*blockdev.Request{write}); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-answer:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(testPatience):
			t.Fatal("no answer")
		}
	}
}

// TestMetricsAreThereAndMove starts each role with --metrics, writes, and looks.
func TestMetricsAreThereAndMove(t *testing.T) {
	dir := t.TempDir()
	view, peer, export, clients := freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	viewdAt, nodeAt, gatewayAt := freeAddr(t), freeAddr(t), freeAddr(t)
	startRole(t, "viewd", "--id", "v1", "--data", filepath.Join(dir, "v1"), "--listen", view, "--metrics", viewdAt)
	startRole(t, "node", "--id", "n1", "--data", filepath.Join(dir, "n1"), "--listen", peer, "--nbd", export, "--view", view,
		"--log-size", "192M", "--metrics", nodeAt)
	startRole(t, "gateway", "--view", view, "--listen", clients, "--metrics", gatewayAt)
	for _, addr := range []string{viewdAt, nodeAt, gatewayAt} {
		eventually(t, addr+" is healthy", func() bool {
			body, status := get(t, "http://"+addr+"/healthz")
			return status == http.StatusOK && body == "ok\n"
		})
	}
	eventually(t, "the volume is created", func() bool {
		_, _, code := lockstep(t, "volume", "create", "vol0", "--size", "8M", "--copies", "1", "--view", view)
		return code == exitOK
	})
	eventually(t, "the volume is safe", func() bool {
		_, _, code := lockstep(t, "status", "vol0", "--view", view)
		return code == exitOK
	})
	if before := scrape(t, gatewayAt); before[`lockstep_nbd_requests_total{op="write",volume="vol0"}`] != 0 {
		t.Errorf("writes before any client came: %v", before)
	}
	writeBlocks(t, clients, "vol0", 10)

	g, n, v := scrape(t, gatewayAt), scrape(t, nodeAt), scrape(t, viewdAt)
	for _, all := range []map[string]float64{g, n} {
		for name, want := range map[string]float64{
			`lockstep_nbd_requests_total{op="write",volume="vol0"}`:                   10,
			`lockstep_nbd_bytes_total{op="write",volume="vol0"}`:                      10 * blockdev.BlockSize,
			`lockstep_nbd_errors_total{op="write",volume="vol0"}`:                     0,
			`lockstep_nbd_request_seconds_count{op="write",volume="vol0"}`:            10,
			`lockstep_nbd_request_seconds_bucket{op="write",volume="vol0",le="+Inf"}`: 10,
		} {
			if got, ok := all[name]; got != want || !ok {
				t.Errorf("%s is %v (there: %v), want %v", name, got, ok, want)
			}
		}
		if all[`lockstep_nbd_request_seconds_sum{op="write",volume="vol0"}`] <= 0 {
			t.Error("writes took no time")
		}
	}
	for name, want := range map[string]float64{
		`lockstep_replica_role{role="primary",volume="vol0"}`:     1,
		`lockstep_replica_view{volume="vol0"}`:                    1,
		`lockstep_replica_members{volume="vol0"}`:                 1,
		`lockstep_replica_commit_lag_records{volume="vol0"}`:      0,
		`lockstep_replica_reads_total{by="asking",volume="vol0"}`: 0,
		`lockstep_corrupt_blocks_total`:                           0,
		`lockstep_repaired_blocks_total`:                          0,
		`lockstep_events_total{event="formatted"}`:                1,
	} {
		if got, ok := n[name]; got != want || !ok {
			t.Errorf("node: %s is %v (there: %v), want %v", name, got, ok, want)
		}
	}
	if n[`lockstep_replica_commit{volume="vol0"}`] < 10 || n[`lockstep_replica_log_fill_ratio{volume="vol0"}`] <= 0 {
		t.Errorf("node: commit %v, fill %v", n[`lockstep_replica_commit{volume="vol0"}`], n[`lockstep_replica_log_fill_ratio{volume="vol0"}`])
	}
	for name, want := range map[string]float64{
		`lockstep_viewd_leader`:                             1,
		`lockstep_node_alive{node="n1"}`:                    1,
		`lockstep_volume_state{state="safe",volume="vol0"}`: 1,
		`lockstep_volume_view{volume="vol0"}`:               1,
		`lockstep_views_total{change="first"}`:              1,
		`lockstep_views_total{change="promote"}`:            0,
	} {
		if got, ok := v[name]; got != want || !ok {
			t.Errorf("viewd: %s is %v (there: %v), want %v", name, got, ok, want)
		}
	}
	if _, ok := g["lockstep_gateway_reconnects_total"]; !ok {
		t.Error("gateway: no reconnects")
	}
	if body, status := get(t, "http://"+gatewayAt+"/other"); status != http.StatusNotFound {
		t.Errorf("%d %s", status, body)
	}
}

func TestNodeWithAReplicaThatIsNoUseIsNotHealthy(t *testing.T) {
	if err := nodeHealth(replication.NodeStats{Replicas: []replication.ReplicaStats{{Name: "vol0"}}}); err != nil {
		t.Error(err)
	}
	poisoned := replication.ReplicaStats{Name: "vol1", ReplicaReport: viewsvc.ReplicaReport{Role: viewsvc.RolePoisoned, Error: "I/O error"}}
	err := nodeHealth(replication.NodeStats{Replicas: []replication.ReplicaStats{poisoned}, Unusable: []error{errors.New("meta: is missing")}})
	if err == nil || err.Error() != "meta: is missing\nthe storage of volume vol1 failed: I/O error" {
		t.Errorf("it says %v", err)
	}
}
