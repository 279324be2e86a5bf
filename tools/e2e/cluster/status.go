package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// commandLimit is how long an operator's command may take.
const commandLimit = 20 * time.Second

// Status is the part of `lockstep status --json` that tests look at. It is written down again here, and not taken
// from the program, because it is an interface: a field that is renamed there has to fail here.
type Status struct {
	Volumes []struct {
		Name  string `json:"name"`
		Size  uint64 `json:"size"`
		Sync  string `json:"sync"`
		State string `json:"state"`
		View  struct {
			Num     uint64   `json:"num"`
			Tenure  uint64   `json:"tenure"`
			Primary string   `json:"primary"`
			Backups []string `json:"backups"`
		} `json:"view"`
		Replicas []struct {
			Node    string `json:"node"`
			Role    string `json:"role"`
			LogEnd  uint64 `json:"log_end"`
			Commit  uint64 `json:"commit"`
			Applied uint64 `json:"applied"`
		} `json:"replicas"`
	} `json:"volumes"`
	Nodes []struct {
		ID    string `json:"id"`
		Alive bool   `json:"alive"`
		PID   int    `json:"pid"`
		Addr  string `json:"addr"`
		NBD   string `json:"nbd"`
	} `json:"nodes"`
	Viewd []struct {
		ID     string `json:"id"`
		Addr   string `json:"addr"`
		Leader bool   `json:"leader"`
	} `json:"viewd"`
}

// Result is how a command of the program ended.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Line is what it said on standard error, for messages.
func (r Result) Line() string { return strings.TrimSpace(r.Stderr) }

// Command runs the program to its end. An exit code that is not 0 is no error here.
func Command(ctx context.Context, binary string, args ...string) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	r := Result{Stdout: out.String(), Stderr: errs.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.Code = exit.ExitCode()
		if r.Code >= 0 {
			err = nil
		}
	}
	if err != nil {
		return r, fmt.Errorf("cluster: lockstep %s: %w: %s", strings.Join(args, " "), err, r.Line())
	}
	return r, nil
}

// statusOf asks a cluster how it is. The exit code is the verdict: 0 safe, 1 degraded, 2 unavailable.
func statusOf(command func(args ...string) (Result, error)) (Status, int, error) {
	r, err := command("status", "--json")
	if err != nil {
		return Status{}, 0, err
	}
	var s Status
	if r.Code > 2 {
		return s, r.Code, fmt.Errorf("cluster: status: exit code %d: %s", r.Code, r.Line())
	}
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		return s, r.Code, fmt.Errorf("cluster: status: %w in %q", err, r.Stdout)
	}
	return s, r.Code, nil
}
