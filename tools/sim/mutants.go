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
	seeds  int    // in which it has to be found
	edits  []edit
}

// edit replaces text that occurs once in a file.
type edit struct{ file, old, new string }

// mutantEnv names the mutant that a binary with mutants is to be.
const mutantEnv = "LOCKSTEP_SIM_MUTANT"

// on is a condition that holds if the mutant is turned on.
func on(name string) string { return `brokenRule == "` + name + `"` }

func off(name string) string { return `brokenRule != "` + name + `"` }

// mutants are the rules of the protocol, one by one: those that a simulated cluster shows soon to be missing. The others
// are broken in the random walks of the core (package replication), where there is less in their way.
var mutants = []mutant{
	{"openearly", "pause,kill,slowdisk", 2500, []edit{ // a primary opens before its first record is everywhere
		{"replication/core_primary.go", "|| c.commit < c.openAt ||", "|| c.commit < c.openAt && " + off("openearly") + " ||"}}},
	{"ackwritten", "power,blackout,slowdisk", 2500, []edit{ // what is written counts, in sync mode always
		{"replication/core_primary.go", "	if c.CommitsWritten() {\n		commit = c.written", "	if c.CommitsWritten() || " + on("ackwritten") + " {\n		commit = c.written"}}},
	{"ackearly", "power,blackout", 2500, []edit{ // a backup acknowledges before it synced
		{"replication/follow.go", "if err := f.storage(r.syncStore()); err != nil {", "if err := f.storage(r.syncStore()); " + off("ackearly") + " && err != nil {"},
		{"replication/replica.go", "	began := r.rt.Now()\n	err := r.store.Sync()\n", "	if " + on("ackearly") + " && r.core.State() == StateBackup {\n return nil\n }\n	began := r.rt.Now()\n	err := r.store.Sync()\n"}}},
	{"promoteany", "kill,wipe,isolate", 2500, []edit{ // the view service promotes a replica that is no member
		{"viewsvc/plan.go", "for _, r := range v.View.Backups {\n		if m.healthy(v, r) {\n			rep, _", "for r := range v.Replicas {\n		if m.healthy(v, r) && r != v.View.Primary && (v.View.Has(r) || " + on("promoteany") + ") {\n			rep, _"},
		{"viewsvc/rules.go", "		if !cur.Has(r) {\n			return ruleErrorf(rule", "		if !cur.Has(r) && " + off("promoteany") + " {\n			return ruleErrorf(rule"}}},
	{"promotesuspect", "power,kill,pause,isolate", 2500, []edit{ // a suspect is promoted while a sound member may come back
		{"viewsvc/plan.go", "m.report(v, next); !rep.Suspect {", "m.report(v, next); !rep.Suspect || " + on("promotesuspect") + " {"}}},
	{"resumesame", "kill,power", 2500, []edit{ // a restarted primary goes on in its old tenure
		{"replication/core.go", "		c.state = StateRecovering\n	case s.View.Has", "		c.state = StateRecovering\n		if " + on("resumesame") + " {\n c.state = StateOpen\n c.require()\n c.emit(Effect{Kind: EffectTargets})\n }\n	case s.View.Has"},
		{"replication/replica.go", "	r.core.SetSync(hard.Volume.Sync)\n", "	r.core.SetSync(hard.Volume.Sync)\n	if " + on("resumesame") + " {\n r.begun = hard.View.Tenure\n }\n"}}},
	{"blank", "wipe,kill", 2500, []edit{ // an empty disk goes by the name of the one before
		{"tools/sim/node.go", "	m.copies++\n", "	if m.copies == 0 || " + off("blank") + " {\n m.copies++\n }\n"}}},
	{"addbehind", "kill,pause,slowlink,reset", 2500, []edit{ // a learner is added that lacks committed records
		{"replication/core_propose.go", "c.state != StateOpen || p.durable < c.commit {", "c.state != StateOpen || p.durable < c.commit && " + off("addbehind") + " {"},
		{"replication/core_primary.go", "			commit = min(commit, p.durable)\n", "			if " + off("addbehind") + " || c.view.Has(p.id) {\n commit = min(commit, p.durable)\n }\n"}}},
	{"addlate", "kill,slowlink,leader,viewserver", 2500, []edit{ // a learner is proposed first and waited for later
		{"replication/core_propose.go", "p.required, c.joining = true, p.id", "p.required, c.joining = " + off("addlate") + ", p.id"}}},
	{"localread", "pause,split", 2500, []edit{ // reads are not confirmed
		{"replication/core_primary.go", "	if c.alone() {\n		return c.nonce, true", "	if c.alone() || " + on("localread") + " {\n		return c.nonce, true"}}},
	{"dropearly", "oneway,split,kill,leader", 2500, []edit{ // a member is not waited for once its removal was asked for
		{"replication/core_health.go", "	c.propose(viewsvc.KindRemove,", "	for _, p := range c.peers {\n keep := " + off("dropearly") + "\n for _, id := range stay {\n keep = keep || id == p.id\n }\n p.required = p.required && keep\n }\n	c.advance()\n	c.propose(viewsvc.KindRemove,"}}},
	{"applyearly", "kill,pause,power,split", 2500, []edit{ // a backup takes what it has for committed
		{"replication/follow_log.go", "	r.core.Appended(frame.Last())\n", "	r.core.Appended(frame.Last())\n	if " + on("applyearly") + " {\n r.core.Follow(frame.Last())\n }\n"}}},
	{"nocut", "pause,split,kill", 2500, []edit{ // a backup keeps what is not in the primary's log
		{"replication/follow_log.go", "	if to >= m.End {\n", "	if to >= m.End || " + on("nocut") + " {\n"}}},
	{"copyunfinished", "wipe,kill,slowdisk", 2500, []edit{ // a learner is added before its image is whole
		{"replication/core_primary.go", "copied: !needsCopy,", "copied: !needsCopy || " + on("copyunfinished") + ","}}},
	{"copynothing", "wipe,kill", 2500, []edit{ // a region copy leaves out what changed
		{"replication/ship.go", "		base = w.Committed\n	}\n", "		base = w.Committed\n	}\n	if " + on("copynothing") + " {\n base = m.Committed\n }\n"}}},
	{"copybase", "wipe,kill,power,reset", 2500, []edit{ // a copy that is taken up again forgets where the image was
		{"replication/follow_log.go", "r.hard.CopyBase = c.Base\n", "r.hard.CopyBase = c.Base\n		if " + on("copybase") + " {\n r.hard.CopyBase = c.To\n }\n"}}},
	{"cachedlease", "isolate,oneway", 2500, []edit{ // a lease that ran once runs for ever
		{"replication/core_primary.go", "at < c.leased() {", "(at < c.leased() || " + on("cachedlease") + " && c.leased() > 0) {"}}},
}

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
func (m mutant) hunt(ctx context.Context, binary string) (string, error) {
	cmd := exec.CommandContext(ctx, binary, "-seeds", strconv.Itoa(m.seeds), "-faults", m.faults, "-stop")
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
		m.seeds = min(m.seeds, limit)
		found, err := m.hunt(context.Background(), binary)
		switch {
		case err != nil:
			fmt.Println(err)
			away++
		case found == "":
			fmt.Printf("%-16s GOT AWAY in %d seeds, %v\n", m.name, m.seeds, time.Since(began).Round(time.Millisecond))
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
