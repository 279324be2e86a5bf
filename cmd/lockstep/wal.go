package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lockstep/blockdev"
	"lockstep/replication"
	"lockstep/wal"
	"lockstep/wal/vfs"
)

func newWAL(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wal",
		Short: "Look into a replica's directory: its log and what it is the log of",
		Long: `Look into a replica's directory, on the machine that has it and while its node is stopped. Nothing is changed, not
even repaired. DIR is the replica's directory (the node's --data, then volumes/ and the volume's ID), or the wal/ in it.`,
		Args: wantSubcommand,
		RunE: noSubcommand,
	}
	cmd.AddCommand(newWALDump(env), newWALVerify(env))
	return cmd
}

func newWALDump(env *environment) *cobra.Command {
	var (
		from, to     uint64
		asJSON, live bool
	)
	cmd := &cobra.Command{
		Use:   "dump DIR",
		Short: "List a replica's meta slots, and every frame and record of its log",
		Long: `List a replica's meta slots, and every frame and record of its log, a line each. What a frame is to the log:

  live     the next start reads it: it follows the checkpoint
  applied  up to the checkpoint, so in the image as well; kept for members that lack it
  left     of an earlier lap of the ring, not overwritten yet
  behind   behind the log's end: cut, torn by a crash, or out of reach behind damage
  found    whole; meta is missing, so that nobody knows what it is to the log`,
		Args: wantArgs("DIR"),
	}
	flags := cmd.Flags()
	flags.Uint64Var(&from, "from", 0, "leave out records before this LSN")
	flags.Uint64Var(&to, "to", math.MaxUint64, "leave out records after this LSN")
	flags.Lookup("to").DefValue = "the last"
	flags.BoolVar(&asJSON, "json", false, "print JSON, an object a line")
	flags.BoolVar(&live, "live", false, "look at a replica that is in use too: what is being written meanwhile can look damaged")

	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if from > to {
			return usagef("wal dump: --from %d is behind --to %d", from, to)
		}
		r, err := openReplicaDir("wal dump", args[0], live)
		if err != nil {
			return err
		}
		defer r.Close()
		w := bufio.NewWriter(env.stdout)
		var out dumper = &textDump{w: w}
		if asJSON {
			out = newJSONDump(w)
		}
		return errors.Join(r.dump(out, wal.LSN(from), wal.LSN(to)), w.Flush())
	}
	return cmd
}

func newWALVerify(env *environment) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify DIR",
		Short: "Check everything of a replica: meta, frames, their chain, every block of the image",
		Long: `Check everything of a replica that can be checked: both meta slots, every frame of the log and the chain of
their checksums, every block of the image against its checksum, and the table of changed regions against both.
Each line on standard output is something that is wrong; one that begins with "note:" is what a crash leaves and the
next start repairs. The exit code is 0 when there is nothing but notes.`,
		Args: wantArgs("DIR"),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, an object a line")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		r, err := openReplicaDir("wal verify", args[0], false)
		if err != nil {
			return err
		}
		defer r.Close()
		v, err := r.verify()
		if err != nil {
			return err
		}
		if asJSON {
			writeVerifiedJSON(env.stdout, v)
		} else {
			writeVerified(env.stdout, v)
		}
		if v.Sound() {
			return nil
		}
		if v.Opens() {
			return withHint(fmt.Errorf("wal verify: a part of the replica in %s is lost", r.dir),
				"start its node: with another member that has the part, `lockstep scrub` repairs it")
		}
		return withHint(fmt.Errorf("wal verify: the replica in %s is damaged", r.dir),
			"restore what is damaged, or, where another member has everything, move the directory away: the node makes a new replica, and the primary fills it")
	}
	return cmd
}

// replicaDir is a replica's directory that nobody changes while it is looked at.
type replicaDir struct {
	dir  string
	lock io.Closer
	// whole is nil if there is no more than a log, without its replica.
	whole *blockdev.Inspection
}

// openReplicaDir finds out what was named. Unless live, nobody can start the replica until Close.
func openReplicaDir(command, name string, live bool) (*replicaDir, error) {
	dir, err := filepath.Abs(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	names, err := readNames(dir)
	if err != nil {
		return nil, withHint(fmt.Errorf("%s: %w", command, err), "name a replica's directory: a node's --data, then volumes/ID")
	}
	if names["node.json"] || names["volumes"] {
		return nil, withHint(fmt.Errorf("%s: %s is a node's data directory", command, dir), "name one of its replicas: %s", replicasIn(dir))
	}
	log := hasSegments(names) && !names["meta"]
	if parent := filepath.Dir(dir); log && filepath.Base(dir) == "wal" {
		if above, err := readNames(parent); err == nil && (above["meta"] || above["data.img"]) {
			dir, log = parent, false
		}
	}
	r := &replicaDir{dir: dir, lock: io.NopCloser(nil)}
	if log {
		return r, nil
	}
	if !live {
		r.lock, err = vfs.LockShared(filepath.Join(dir, "LOCK"))
		if errors.Is(err, vfs.ErrLocked) {
			hint := "stop its node first"
			if command == "wal dump" {
				hint += ", or pass --live to look all the same"
			}
			return nil, withHint(fmt.Errorf("%s: the replica in %s is in use", command, dir), "%s", hint)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", command, err)
		}
	}
	r.whole, err = blockdev.Inspect(os.DirFS(dir))
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("%s: %s: %w", command, dir, errors.Unwrap(err))
	}
	if m := r.whole.Meta; m != nil && replication.Learner(m.Identity, m.Protocol) {
		m.Checkpoint.Learner = true
	}
	return r, nil
}

func (r *replicaDir) Close() { r.lock.Close() }

// verify checks a replica, or the frames of a log without one.
func (r *replicaDir) verify() (blockdev.Verified, error) {
	if r.whole != nil {
		return r.whole.Verify()
	}
	log, err := wal.Inspect(wal.InspectOptions{FS: os.DirFS(r.dir)}, func(wal.Found) error { return nil })
	if err != nil {
		return blockdev.Verified{}, err
	}
	note := wal.Problem{Place: "meta", What: "is not here: only the frames were checked, each by itself", Harmless: true}
	return blockdev.Verified{Log: log, Problems: append(log.Problems, note)}, nil
}

// dump lists meta and the frames that hold records from one LSN to another.
func (r *replicaDir) dump(out dumper, from, to wal.LSN) error {
	if r.whole != nil {
		out.replica(r.whole)
	}
	visit := func(f wal.Found) error {
		if last := f.Header.First + wal.LSN(f.Header.Records) - 1; f.HeaderOK && (last < from || f.Header.First > to) {
			return nil
		}
		return out.frame(f, from, to)
	}
	var (
		log wal.Inspection
		err error
	)
	problems := []wal.Problem{}
	if r.whole != nil {
		log, err = r.whole.Log(visit)
		problems = append(problems, r.whole.Problems...)
	} else {
		log, err = wal.Inspect(wal.InspectOptions{FS: os.DirFS(r.dir)}, visit)
	}
	if err != nil {
		return err
	}
	return out.end(log, append(problems, log.Problems...))
}

func readNames(dir string) (map[string]bool, error) {
	entries, err := os.ReadDir(dir)
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = fmt.Errorf("%s: %w", dir, path.Err)
	}
	return names, err
}

func hasSegments(names map[string]bool) bool {
	for n := range names {
		if strings.HasSuffix(n, ".seg") {
			return true
		}
	}
	return false
}

// replicasIn names the replicas of a node, so that one of them can be copied from the message.
func replicasIn(data string) string {
	dirs, _ := filepath.Glob(filepath.Join(data, "volumes", "*"))
	if len(dirs) == 0 {
		return "it has none"
	}
	return strings.Join(dirs, " ")
}
