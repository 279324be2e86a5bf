package packaging

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"lockstep/tools/e2e/cluster"
)

// binary is the program.
var binary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lockstep-packaging-")
	if err == nil {
		defer os.RemoveAll(dir)
		binary, err = cluster.Build(context.Background(), dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// units are the service files.
func units(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("*.service")
	if err != nil || len(names) < 4 {
		t.Fatalf("units: %v, %v", names, err)
	}
	list := make(map[string]string)
	for _, name := range names {
		list[name] = read(t, name)
	}
	return list
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSystemdUnderstandsTheUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	args := []string{"--man=no", "verify"}
	for name, unit := range units(t) {
		// An instance of a template; and programs that are there.
		name = strings.Replace(name, "@", "@db", 1)
		unit = regexp.MustCompile(`/usr/bin/lockstep|/sbin/modprobe`).ReplaceAllString(unit, "/bin/true")
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(unit), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":") // and the usual places
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "lockstep") {
			t.Error(strings.TrimSpace(line))
		}
	}
	if err != nil && !t.Failed() {
		t.Errorf("systemd-analyze: %v: %s", err, out)
	}
}

// variables are those of a file that a unit reads.
func variables(t *testing.T, file string) map[string]string {
	t.Helper()
	vars := make(map[string]string)
	for line := range strings.Lines(read(t, file)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			vars[key] = strings.Trim(value, `"`)
		}
	}
	return vars
}

// The options in the example files, put into the units' command lines, are such as the program knows.
func TestProgramUnderstandsItsUnits(t *testing.T) {
	for name, unit := range units(t) {
		line := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/lockstep (.*)$`).FindStringSubmatch(unit)
		if line == nil {
			t.Errorf("%s starts something else", name)
			continue
		}
		vars := map[string]string{}
		if file := regexp.MustCompile(`(?m)^EnvironmentFile=/(.*)$`).FindStringSubmatch(unit); file != nil {
			vars = variables(t, file[1])
		}
		command := strings.NewReplacer("%i", "db", "/etc/lockstep", "etc/lockstep").Replace(line[1])
		command = os.Expand(command, func(key string) string {
			value, ok := vars[key]
			if !ok {
				t.Errorf("%s: $%s is not in its file", name, key)
			}
			return value
		})
		// With --help a command line is parsed, and nothing is started.
		out, err := exec.CommandContext(t.Context(), binary, append(strings.Fields(command), "--help")...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: lockstep %s: %v: %s", name, command, err, out)
		}
	}
}

// Each option of the table's example is one of `lockstep attach`, and the volume in it can be looked up.
func TestTableIsUnderstood(t *testing.T) {
	help, err := exec.CommandContext(t.Context(), binary, "attach", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	options := regexp.MustCompile(`--[a-z-]+`).FindAllString(read(t, "etc/lockstep/attach"), -1)
	if len(options) < 5 {
		t.Fatalf("options %v", options)
	}
	for _, option := range options {
		if !strings.Contains(string(help), option+" ") {
			t.Errorf("`lockstep attach` has no %s", option)
		}
	}
	for volume, want := range map[string]string{"db": "--driver", "nosuch": "there is no volume nosuch"} {
		cmd := exec.CommandContext(t.Context(), binary, "attach", volume, "--table", "etc/lockstep/attach", "--driver", "none")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("volume %s: %v: %s", volume, err, out)
		}
	}
}
