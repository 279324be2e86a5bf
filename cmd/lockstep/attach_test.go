package main

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"lockstep/blockdev/kernel"
)

// K5: what the cluster knows the client by must be on disk before, and grow, or a later agent would not fence an
// earlier one.
func TestAttachmentIsNotedAsTheSameClient(t *testing.T) {
	dir := attachDir(t.TempDir())
	lock, err := dir.lock("vol0")
	if err != nil {
		t.Fatal(err)
	}
	a, err := dir.begin("vol0")
	if err != nil {
		t.Fatal(err)
	}
	a.Generation++
	if err := dir.save(a); err != nil {
		t.Fatal(err)
	}
	lock.Close() // as if it was killed
	if lock, err = dir.lock("vol0"); err != nil {
		t.Fatal(err)
	}
	again, err := dir.begin("vol0")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a, again); diff != "" {
		t.Error(diff)
	}
	again.Machine = "the machine that this disk was copied from"
	if err := dir.save(again); err != nil {
		t.Fatal(err)
	}
	if copied, err := dir.begin("vol0"); err != nil || copied.Session == a.Session {
		t.Errorf("a copy of the machine is the same client: %v %v", copied, err)
	}
	if err := errors.Join(dir.remove("vol0"), dir.remove("vol0"), lock.Close()); err != nil {
		t.Error(err)
	}
	if _, err := dir.load("vol0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after removing: %v", err)
	}
}

// K6.
func TestVolumeHasOneAgent(t *testing.T) {
	dir := attachDir(t.TempDir())
	lock, err := dir.lock("vol0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.lock("vol0"); !errors.Is(err, errAgentRuns) {
		t.Errorf("a second agent: %v", err)
	}
	if other, err := dir.lock("vol1"); err != nil {
		t.Error(err)
	} else {
		other.Close()
	}
	lock.Close()
	if lock, err = dir.lock("vol0"); err != nil {
		t.Error(err)
	}
	lock.Close()
}

func TestDamagedNoteIsNoNewClient(t *testing.T) {
	dir := attachDir(t.TempDir())
	if err := os.MkdirAll(filepath.Join(string(dir), "attach"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, note := range []string{"", "{", `{"volume":"other","session":"s"}`, `{"volume":"vol0"}`} {
		if err := os.WriteFile(dir.file("vol0", ".json"), []byte(note), 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := dir.begin("vol0"); err == nil {
			t.Errorf("%q: taken as %+v", note, a)
		}
	}
}

// A device of another boot, or another's, is not gone on with.
func TestNotedDeviceHasToBeThisOne(t *testing.T) {
	for name, a := range map[string]attachment{
		"none":         {Session: "s", Boot: bootID()},
		"another boot": {Session: "s", Boot: "before", Device: "/dev/nbd0"},
		"not attached": {Session: "s", Boot: bootID(), Device: "/dev/nbd9999"},
		"a loop":       {Session: "s", Boot: bootID(), Device: "/dev/loop0", Fuse: "/mnt"},
	} {
		if dev, there := a.nbd(); there {
			t.Errorf("%s: %v", name, dev)
		}
	}
}

func TestTableOfAttachments(t *testing.T) {
	file := filepath.Join(t.TempDir(), "attach")
	table := `# a comment
db   --view 10.0.0.1:7400 --dead-timeout 1h # another
raw  /dev/nbd5 --view 10.0.0.1:7400 --shared
wrong --no-such-flag
twice
more /dev/nbd1 /dev/nbd2
twice --shared
`
	if err := os.WriteFile(file, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ volume, given, device, view, dead, failure string }{
		{volume: "db", view: "10.0.0.1:7400", dead: "1h"},
		{volume: "db", given: "--dead-timeout 5m", view: "10.0.0.1:7400", dead: "5m"},
		{volume: "raw", device: "/dev/nbd5", view: "10.0.0.1:7400"},
		{volume: "nosuch", failure: "there is no volume nosuch"},
		{volume: "wrong", failure: ":4: unknown flag: --no-such-flag"},
		{volume: "twice", failure: "in line 5 and again in line 7"},
		{volume: "more", failure: `:6: unexpected "/dev/nbd2"`},
	} {
		flags := pflag.NewFlagSet("attach", pflag.ContinueOnError)
		view, dead := flags.String("view", "", ""), flags.String("dead-timeout", "", "")
		flags.Bool("shared", false, "")
		if err := flags.Parse(strings.Fields(c.given)); err != nil {
			t.Fatal(err)
		}
		device, err := readTable(flags, file, c.volume)
		if c.failure != "" {
			if err == nil || !strings.Contains(err.Error(), c.failure) || exitCode(err) != exitUsage {
				t.Errorf("%s: %v, want %q", c.volume, err, c.failure)
			}
			continue
		}
		if err != nil || device != c.device || *view != c.view || *dead != c.dead {
			t.Errorf("%s %s: device %q, view %q, dead %q, %v", c.volume, c.given, device, *view, *dead, err)
		}
	}
}

func TestAttachRefusesNonsense(t *testing.T) {
	for line, want := range map[string]string{
		"attach":                                            "VOLUME is missing",
		"attach vol0 /dev/sda":                              `"/dev/sda" is no nbd device`,
		"attach vol0 /dev/nbd0 extra":                       `unexpected argument "extra"`,
		"attach Vol0":                                       "no upper case",
		"attach vol0 --block-size 1000":                     "use 512, 1024, 2048 or 4096",
		"attach vol0 --dead-timeout 1ms":                    "at least 1s",
		"attach vol0 --shared --take-over":                  "makes no sense",
		"attach vol0 /dev/nbd0 --fuse /mnt":                 "makes a loop device",
		"attach vol0 --driver magic":                        "use auto, netlink or ioctl",
		"attach --list vol0":                                `unexpected argument "vol0"`,
		"attach vol0 --table /nonexistent --view 1.2.3.4:5": "no such file",
		"detach":         "VOLUME is missing",
		"detach UPPER":   "no upper case",
		"detach nothing": "is not attached here",
	} {
		var out, errs strings.Builder
		env := &environment{stdin: os.Stdin, stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}
		code := run(env, append(strings.Fields(line), "--state-dir", t.TempDir()))
		if code == 0 || !strings.Contains(errs.String(), want) || strings.Count(errs.String(), "\n") != 1 || out.Len() > 0 {
			t.Errorf("%s: exit code %d: %q, want one line with %q", line, code, errs.String(), want)
		}
	}
}

// An end that another start would not change has an exit code of its own, through all that is wrapped around it.
func TestGoneDiskHasItsExitCode(t *testing.T) {
	err := ofRole("attach", errors.Join(withHint(&goneError{errors.New("taken over")}, "so what"), nil))
	if code := exitCode(err); code != exitGone || !errors.Is(err, kernel.ErrGone) {
		t.Errorf("exit code %d", code)
	}
}

func TestSystemdIsTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	for _, name := range []string{socket, "@lockstep-test-" + filepath.Base(t.TempDir())} {
		addr := name
		if addr[0] == '@' {
			addr = "\x00" + addr[1:]
		}
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		if err := notifySystemd(name, "READY=1"); err != nil {
			t.Error(err)
		}
		b := make([]byte, 100)
		n, err := l.Read(b)
		if err != nil || string(b[:n]) != "READY=1" {
			t.Errorf("%s: got %q, %v", name, b[:n], err)
		}
		l.Close()
	}
	if err := notifySystemd("", "READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
}

// The test's own process has a file open, which stands for a device here.
func TestOpenDeviceIsSeen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parts := []blockPart{{path: file}}
	if who := openedBy(parts, 0); who != "" {
		t.Errorf("this process is itself no user: %q", who)
	}
	child := exec.Command("sleep", "600")
	child.ExtraFiles = []*os.File{f}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	sleeper := child.Process.Pid
	if who := openedBy(parts, 0); !strings.Contains(who, "sleep, pid") {
		t.Errorf("got %q", who)
	}
	if who := openedBy(parts, sleeper); who != "" {
		t.Errorf("the agent is no user: %q", who)
	}
	if at := mountedAt([]blockPart{{path: "proc", number: "none"}}); !strings.HasSuffix(at, "is mounted at /proc") {
		t.Errorf("got %q", at)
	}
}
