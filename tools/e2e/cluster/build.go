package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Build makes the static binary in dir, from the source of the module that the caller runs in.
func Build(ctx context.Context, dir string) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("cluster: find the module: %w", err)
	}
	binary := filepath.Join(dir, "lockstep")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/lockstep")
	cmd.Dir = strings.TrimSpace(string(root))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cluster: build: %w\n%s", err, out)
	}
	return binary, nil
}
