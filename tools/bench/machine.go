package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// machine says where it was measured.
type machine struct {
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	Kernel     string `json:"kernel"`
	FileSystem string `json:"file_system"`
	Fio        string `json:"fio"`
	Nbdkit     string `json:"nbdkit"`
}

func describe(ctx context.Context, dir string) machine {
	m := machine{CPU: "unknown CPU", Cores: runtime.NumCPU()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range bytes.Lines(b) {
			if key, value, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	m.Kernel = firstLine(ctx, "uname", "-sr")
	m.FileSystem = firstLine(ctx, "findmnt", "--noheadings", "--output", "FSTYPE", "--target", dir)
	m.Fio = firstLine(ctx, "fio", "--version")
	m.Nbdkit = firstLine(ctx, "nbdkit", "--version")
	return m
}

// firstLine is what a command prints, or "unknown".
func firstLine(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || line == "" {
		return "unknown"
	}
	return line
}
