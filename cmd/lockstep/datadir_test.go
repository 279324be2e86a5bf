package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"lockstep/blockdev"
	"lockstep/wal/vfs"
)

// The cluster and the volume of the replica that scripts play with.
const (
	scriptCluster = "5f0e3c62-8f2b-4a43-9d3a-0d6d3d3a7b01"
	scriptVolume  = "5f0e3c62-8f2b-4a43-9d3a-0d6d3d3a7b02"
)

// replicaCommand makes a stopped node's data directory with one replica in it.
func replicaCommand(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: replica DIR")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.RemoveAll(dir))
	replica := filepath.Join(dir, "volumes", scriptVolume)
	ts.Check(blockdev.Format(vfs.OS{}, replica, blockdev.FormatOptions{
		Identity:     blockdev.Identity{Cluster: scriptCluster, Volume: scriptVolume, Replica: "R", Size: 1 << 20},
		SegmentBytes: 64 << 10, LogBytes: 256 << 10,
	}))
	ts.Check(os.WriteFile(filepath.Join(dir, "node.json"), []byte(`{"format":1,"node":"n1","cluster":"`+scriptCluster+`"}`), 0o600))
	ts.Setenv("REPLICA", replica)
	ts.Setenv("PEER", freePort(ts))
	ts.Setenv("NBD", freePort(ts))
}

func freePort(ts *testscript.TestScript) string {
	addr, err := unusedAddr()
	ts.Check(err)
	return addr
}

// nodeArgs are the arguments of a node on a directory, which finds no view server.
func nodeArgs(ts *testscript.TestScript, dir string) []string {
	return []string{"node", "--id", "n1", "--data", dir, "--listen", ts.Getenv("PEER"), "--nbd", ts.Getenv("NBD"), "--view", "127.0.0.1:1"}
}

// nodeCommand starts a node on a directory, which is to fail: node DIR [in-use | --flag value ...].
func nodeCommand(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: node DIR [in-use | FLAGS...]")
	}
	more := args[1:]
	if len(more) == 1 && more[0] == "in-use" {
		lock, err := vfs.OS{}.Lock(filepath.Join(ts.MkAbs(args[0]), "LOCK"))
		ts.Check(err)
		defer lock.Close()
		more = nil
	}
	exitsCommand(ts, false, slices.Concat([]string{"1", "lockstep"}, nodeArgs(ts, args[0]), more))
}

// unusableCommand starts a node on a directory, and checks what it says of the replica in it: unusable DIR PATTERN. The node
// itself runs, until it is ended.
func unusableCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: unusable DIR PATTERN")
	}
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	node := exec.CommandContext(ctx, "lockstep", nodeArgs(ts, args[0])...)
	node.Dir = ts.MkAbs(".")
	stderr, err := node.StderrPipe()
	ts.Check(err)
	ts.Check(node.Start())
	defer func() {
		cancel()
		_ = node.Wait() // it was killed
	}()
	var line struct{ Message, Error string }
	for lines := json.NewDecoder(stderr); line.Message != "unusable"; {
		if err := lines.Decode(&line); err != nil {
			ts.Fatalf("the node calls no replica unusable: %v", err)
		}
	}
	if !regexp.MustCompile(args[1]).MatchString(line.Error) || strings.Contains(line.Error, "\n") {
		ts.Fatalf("of the replica it says %q", line.Error)
	}
}

// spoilCommand makes the replica anew and damages a file of it: spoil FILE remove|grow|shrink|zero|newer.
func spoilCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: spoil FILE remove|grow|shrink|zero|newer")
	}
	replicaCommand(ts, false, []string{"n1"})
	name := filepath.Join(ts.Getenv("REPLICA"), args[0])
	info, err := os.Stat(name)
	ts.Check(err)
	switch args[1] {
	case "remove":
		ts.Check(os.RemoveAll(name))
	case "grow":
		ts.Check(os.Truncate(name, 2*info.Size()))
	case "shrink":
		ts.Check(os.Truncate(name, info.Size()-100))
	case "zero":
		ts.Check(os.WriteFile(name, make([]byte, info.Size()), 0o600))
	case "newer":
		ts.Check(makeNewer(name))
	default:
		ts.Fatalf("spoil: what is %q?", args[1])
	}
}

// makeNewer makes of a file what the next version of this program might write.
func makeNewer(name string) error {
	if filepath.Base(name) == "node.json" {
		return os.WriteFile(name, []byte(`{"format":2,"node":"n1","cluster":"`+scriptCluster+`","quorum":"yes"}`), 0o600)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	for slot := b; len(slot) > 0; slot = slot[4096:] {
		binary.LittleEndian.PutUint32(slot[8:], 2)
		clear(slot[12:16])
		binary.LittleEndian.PutUint32(slot[12:], crc32.Checksum(slot[:4096], crc32.MakeTable(crc32.Castagnoli)))
	}
	return os.WriteFile(name, b, 0o600)
}
