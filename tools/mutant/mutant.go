// Package mutant builds programs and tests in which a rule of the shipped code is broken, to see that it is noticed. The
// sources have no switches for that: copies of them are changed (go build -overlay), with all mutants in one binary, of
// which the environment variable Env turns one on.
//
// tools/sim breaks what the simulator finds. The test of this package breaks what one named test holds: the rules that have
// others behind them in a whole cluster, and the bugs that were found and mended (rules_test.go).
package mutant

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Edit replaces text that occurs once in a file.
type Edit struct {
	File string // from the module's root
	Old  string
	New  string // holds On or Off of the mutant's name, so that nothing changes while it is not turned on
}

// Mutant is a rule that is broken.
type Mutant struct {
	Name  string
	Edits []Edit
}

// Env names the mutant that a binary with mutants is to be.
const Env = "LOCKSTEP_MUTANT"

// On is a condition that holds if the mutant is turned on.
func On(name string) string { return `brokenRule == "` + name + `"` }

// Off is one that holds otherwise.
func Off(name string) string { return `brokenRule != "` + name + `"` }

// Build builds a package with mutants in dir, and returns the binary. how is "build", or "test -c".
func Build(dir string, mutants []Mutant, how, pkg string) (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	overlay, err := write(dir, root, mutants)
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, strings.ReplaceAll(path.Clean(pkg), "/", "-"))
	args := append(strings.Fields(how), "-overlay", overlay, "-o", binary, pkg)
	build := exec.Command("go", args...)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s with mutants: %w\n%s", pkg, err, out)
	}
	return binary, nil
}

// write makes changed copies of sources, and returns the file that tells the go command of them.
func write(dir, root string, mutants []Mutant) (string, error) {
	changed, err := apply(root, mutants)
	if err != nil {
		return "", err
	}
	for _, file := range slices.Collect(maps.Keys(changed)) { // each package looks at Env
		pkg := path.Dir(file)
		name := path.Base(pkg)
		if strings.Contains("\n"+changed[file], "\npackage main\n") {
			name = "main"
		}
		changed[pkg+"/broken_rule.go"] = fmt.Sprintf("package %s\n\nimport \"os\"\n\nvar brokenRule = os.Getenv(%q)\n", name, Env)
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for file, text := range changed {
		copied := filepath.Join(dir, strconv.Itoa(len(overlay.Replace))+".go")
		overlay.Replace[filepath.Join(root, file)] = copied
		if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "overlay.json")
	return name, os.WriteFile(name, b, 0o600)
}

// apply carries out all edits, and returns the changed files.
func apply(root string, mutants []Mutant) (map[string]string, error) {
	changed := map[string]string{}
	for _, m := range mutants {
		for _, e := range m.Edits {
			text, ok := changed[e.File]
			if !ok {
				b, err := os.ReadFile(filepath.Join(root, e.File))
				if err != nil {
					return nil, err
				}
				text = string(b)
			}
			if n := strings.Count(text, e.Old); n != 1 {
				return nil, fmt.Errorf("mutant %s: %s has its place %d times, not once; change the mutant with the code:\n%s", m.Name, e.File, n, e.Old)
			}
			changed[e.File] = strings.Replace(text, e.Old, e.New, 1)
		}
	}
	return changed, nil
}

// ModuleRoot is the directory of the module that the working directory is in.
func ModuleRoot() (string, error) {
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
