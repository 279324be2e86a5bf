package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lockstep/tools/e2e/cluster"
)

func TestPausesAreMeasuredAndExplained(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("fio is not installed")
		}
		t.Skip("fio is not installed")
	}
	dir := t.TempDir()
	binary, err := cluster.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := measure(t.Context(), options{Tool: cluster.Tool{Binary: binary}, quiet: 1, kills: 1, handovers: 1, sync: "always", logSize: "192M"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	r.Markdown(&b)
	t.Log(b.String())
	if len(r.Events) != 3 || r.Events[0].Times != 1 || r.Load.FioWrites == 0 || r.Load.Checked == 0 {
		t.Errorf("%+v", r)
	}
	if e := r.Events[2]; e.Pause[0] <= 0 || e.Known != 1 {
		t.Errorf("a kill without a pause, or without its story: %+v", e)
	}
}

func TestPauseIsTakenApart(t *testing.T) {
	dir := t.TempDir()
	logs := filepath.Join(dir, "logs")
	if err := os.Mkdir(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	at := func(ms int) time.Time { return time.Date(2026, 1, 2, 3, 4, 5, ms*1e6, time.UTC) }
	line := func(ms int, rest string) string {
		return `{"level":"info","time":"` + at(ms).Format(time.RFC3339Nano) + `",` + rest + "}\n"
	}
	for name, text := range map[string]string{"v1": "", "n1": "", "n2": "", "gateway": line(90, `"message":"up"`)} {
		if err := os.WriteFile(filepath.Join(logs, name+".log"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := mark(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"v1":      line(110, `"message":"view","view":2`),
		"n1":      line(104, `"message":"propose"`),
		"n2":      line(113, `"message":"state","state":"opening"`) + line(120, `"message":"state","state":"primary"`) + `{"time`,
		"gateway": line(121, `"message":"up"`) + line(124, `"message":"up"`),
	} {
		f, err := os.OpenFile(filepath.Join(logs, name+".log"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteString(text)
		f.Close()
	}
	gaps := []gap{{at(90), at(99)}, {at(99), at(129)}, {at(129), at(200)}}
	p, err := m.explain(at(100), gaps)
	if err != nil {
		t.Fatal(err)
	}
	want := [...]time.Duration{4e6, 6e6, 3e6, 7e6, 1e6, 8e6}
	if !p.known || p.whole != 30*time.Millisecond || p.parts != want {
		t.Errorf("%+v, want %v", p, want)
	}
	gaps = []gap{{at(99), at(105)}, {at(115), at(129)}}
	if p, err := m.explain(at(100), gaps); err != nil || p.known || p.whole != 14*time.Millisecond {
		t.Errorf("explained without the view: %+v, %v", p, err)
	}
}
