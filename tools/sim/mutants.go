package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// mutant is a rule of the protocol that is broken. The sources that are shipped have no switches for that: the
// simulator is built again with changed copies of them (go build -overlay), all mutants in one binary, of which an
// environment variable turns one on.
type mutant struct {
	name   string
	faults string // the kinds that bring it to light; "" for the usual mix
	first  uint64 // a seed that showed it when this was written
	edits  []edit
}

// edit replaces text that occurs once in a file.
type edit struct{ file, old, new string }

// huntSeeds is in how many seeds, from its first one on, a mutant has to be found.
const huntSeeds = 2500

// mutantEnv names the mutant that a binary with mutants is to be.
const mutantEnv = "LOCKSTEP_SIM_MUTANT"

// on is a condition that holds if the mutant is turned on.
func on(name string) string { return `brokenRule == "` + name + `"` }

func off(name string) string { return `brokenRule != "` + name + `"` }

// buildMutants builds the simulator with all mutants in it.
func buildMutants(dir string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	changed := map[string]string{} // by file
	for _, m := range mutants {
		for _, e := range m.edits {
			text, ok := changed[e.file]
			if !ok {
				b, err := os.ReadFile(filepath.Join(root, e.file))
				if err != nil {
					return "", err
				}
				text = string(b)
			}
			if n := strings.Count(text, e.old); n != 1 {
				return "", fmt.Errorf("mutant %s: %s has its place %d times, not once; change the mutant with the code:\n%s", m.name, e.file, n, e.old)
			}
			changed[e.file] = strings.Replace(text, e.old, e.new, 1)
		}
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	put := func(file, text string) error {
		copied := filepath.Join(dir, strconv.Itoa(len(overlay.Replace))+".go")
		overlay.Replace[filepath.Join(root, file)] = copied
		return os.WriteFile(copied, []byte(text), 0o600)
	}
	packages := map[string]bool{}
	for file, text := range changed {
		if err := put(file, text); err != nil {
			return "", err
		}
		packages[path.Dir(file)] = true
	}
	for pkg := range packages {
		name := path.Base(pkg)
		if name == "sim" {
			name = "main"
		}
		text := fmt.Sprintf("package %s\n\nimport \"os\"\n\nvar brokenRule = os.Getenv(%q)\n", name, mutantEnv)
		if err := put(pkg+"/broken_rule.go", text); err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), b, 0o600); err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "sim")
	build := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, "./tools/sim")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build with mutants: %w\n%s", err, out)
	}
	return binary, nil
}

// hunt plays seeds with a mutant until one fails. It returns what that seed says, "" if none did.
func (m mutant) hunt(ctx context.Context, binary string, seeds int) (string, error) {
	cmd := exec.CommandContext(ctx, binary, "-first", strconv.FormatUint(m.first, 10), "-seeds", strconv.Itoa(seeds), "-faults", m.faults, "-stop")
	cmd.Env = append(os.Environ(), mutantEnv+"="+m.name)
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
	for _, m := range mutants {
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

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("there is no go.mod above the working directory: run this inside the module")
		}
		dir = filepath.Dir(dir)
	}
}
