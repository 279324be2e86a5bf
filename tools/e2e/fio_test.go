package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
)

// commandLimit is how long a client tool may take.
const commandLimit = 2 * time.Minute

// job is a client tool that runs.
type job struct {
	t    *testing.T
	name string
	out  bytes.Buffer
	done chan struct{}
	err  error
}

// begin starts a tool; it ends with the test at the latest.
func begin(t *testing.T, name string, args ...string) *job {
	t.Helper()
	return beginFor(t, commandLimit, name, args...)
}

// beginFor starts a tool that ends after a while, or with the test.
func beginFor(t *testing.T, limit time.Duration, name string, args ...string) *job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	j := &job{t: t, name: name, done: make(chan struct{})}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir() // fio leaves files where it is started
	// The system's own Python is the one that has nbdsh's module.
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin:"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = &j.out, &j.out
	must(t, cmd.Start())
	go func() {
		j.err = cmd.Wait()
		close(j.done)
	}()
	t.Cleanup(func() { cancel(); <-j.done })
	return j
}

// running tells whether the tool has not ended yet.
func (j *job) running() bool {
	select {
	case <-j.done:
		return false
	default:
		return true
	}
}

// wait waits for the tool's good end and returns what it printed.
func (j *job) wait() string {
	j.t.Helper()
	<-j.done
	if j.err != nil {
		j.t.Fatalf("%s: %v\n%s", j.name, j.err, j.out.String())
	}
	return j.out.String()
}

// command runs a tool to its good end.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	return begin(t, name, args...).wait()
}

// fio starts a job that writes every block of some part once, at random and at a bounded rate, then reads all
// of it back and checks it. It fails at the first I/O error or wrong block.
func fio(t *testing.T, uri string, megabytes, iops int) *job {
	t.Helper()
	need(t, "fio")
	return begin(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bs=4k",
		"--iodepth=16", fmt.Sprintf("--size=%dM", megabytes), fmt.Sprintf("--rate_iops=,%d", iops),
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--error_dump=1")
}

// finish waits for fio and looks for errors that it did not end with.
func finish(t *testing.T, j *job) {
	t.Helper()
	out := j.wait()
	if !strings.Contains(out, "err= 0") {
		t.Fatalf("fio reports an error:\n%s", out)
	}
}

// awaitCommits waits until the volume's log has grown by n records.
func awaitCommits(t *testing.T, c *cluster.Cluster, n uint64) {
	t.Helper()
	var from uint64
	must(t, cluster.Await(t.Context(), serveLimit, "commits", func() error {
		s, _, err := c.Status(t.Context())
		if err != nil {
			return err
		}
		var end uint64
		for _, r := range s.Volumes[0].Replicas {
			end = max(end, r.LogEnd)
		}
		if from == 0 {
			from = end
		}
		if end < from+n {
			return fmt.Errorf("the log ends at %d, began at %d", end, from)
		}
		return nil
	}))
}

// P7 through fio's eyes: no error, whichever node is killed, and even if both are and come back.
func TestFioSeesNoErrorWhenNodesAreKilled(t *testing.T) {
	need(t, "fio")
	c := start(t, cluster.Options{})
	tests := []struct {
		name    string
		victims func() []string
	}{
		{"primary", func() []string { return []string{ask(t, c.Primary)} }},
		{"backup", func() []string { return []string{ask(t, c.Backup)} }},
		{"both", c.Nodes},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			j := fio(t, c.URI, 64, 4000)
			awaitCommits(t, c, 1000)
			victims := tc.victims()
			for _, v := range victims {
				c.Node(v).Kill()
			}
			if !j.running() {
				t.Fatalf("fio ended too early: %s", j.out.String())
			}
			if len(victims) == 1 {
				awaitCommits(t, c, 500)
			}
			for _, v := range victims {
				must(t, c.Node(v).Start())
			}
			finish(t, j)
			must(t, c.AwaitSafe(t.Context()))
		})
	}
	sameImages(t, c)
}
