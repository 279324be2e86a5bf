package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"lockstep/tools/mutant"
)

// rule is a rule of the protocol, to be broken (package mutant), and how the simulator notices.
type rule struct {
	name   string
	faults string // the kinds that bring it to light; "" for the usual mix
	first  uint64 // a seed that showed it when this was written
	edits  []edit
}

type edit struct{ File, Old, New string }

// huntSeeds is in how many seeds, from its first one on, a mutant has to be found.
const huntSeeds = 2500

// buildMutants builds the simulator with all mutants in it.
func buildMutants(dir string) (string, error) {
	var all []mutant.Mutant
	for _, r := range rules {
		m := mutant.Mutant{Name: r.name}
		for _, e := range r.edits {
			m.Edits = append(m.Edits, mutant.Edit(e))
		}
		all = append(all, m)
	}
	return mutant.Build(dir, all, "build", "./tools/sim")
}

// hunt plays seeds with a mutant until one fails. It returns what that seed says, "" if none did.
func (m rule) hunt(ctx context.Context, binary string, seeds int) (string, error) {
	cmd := exec.CommandContext(ctx, binary, "-first", strconv.FormatUint(m.first, 10), "-seeds", strconv.Itoa(seeds), "-faults", m.faults, "-stop")
	cmd.Env = append(os.Environ(), mutant.Env+"="+m.name)
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "FAIL ") {
			return strings.TrimSpace(line), nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("mutant %s: %w\n%s", m.name, err, out)
	}
	return "", nil
}

// huntAll hunts all mutants, or the one that is named, and returns how many got away.
func huntAll(only string, limit int) int {
	dir, err := os.MkdirTemp("", "sim")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary, err := buildMutants(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	away := 0
	for _, m := range rules {
		if only != "all" && only != m.name {
			continue
		}
		began := time.Now()
		found, err := m.hunt(context.Background(), binary, limit)
		switch {
		case err != nil:
			fmt.Println(err)
			away++
		case found == "":
			fmt.Printf("%-16s GOT AWAY in %d seeds, %v\n", m.name, limit, time.Since(began).Round(time.Millisecond))
			away++
		default:
			fmt.Printf("%-16s %6v  %.150s\n", m.name, time.Since(began).Round(time.Millisecond), found)
		}
	}
	return away
}
