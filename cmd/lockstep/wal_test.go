package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lockstep/blockdev"
	"lockstep/wal"
	"lockstep/wal/vfs"
)

// madeReplica is a replica with a short history: a view, writes, a trim, all applied but the last frame.
func madeReplica(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "v")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(blockdev.Format(vfs.OS{}, dir, blockdev.FormatOptions{
		Identity:     blockdev.Identity{Cluster: "C", Volume: "V", Replica: "R", VolumeName: "vol0", Size: 1 << 20},
		SegmentBytes: 64 << 10, LogBytes: 256 << 10, Salt: 0x5a17,
	}))
	s, err := blockdev.OpenStore(blockdev.StoreOptions{FS: vfs.OS{}, Dir: dir, Manual: true, BootID: "B"})
	check(err)
	check(s.SaveProtocol([]byte(`{"view":{"num":3}}`)))
	frame := func(flags uint16, records ...wal.Record) {
		t.Helper()
		var b wal.Builder
		for _, r := range records {
			var data []byte
			var sums []uint32
			if r.Kind == wal.KindWrite {
				for i := range uint64(r.Count) {
					block := bytes.Repeat([]byte{byte(r.Block + i + 1)}, blockdev.BlockSize)
					data, sums = append(data, block...), append(sums, wal.BlockSum(r.Block+i, block))
				}
			}
			b.Add(r, data, sums)
		}
		m := s.Marks()
		check(s.Append(b.Seal(wal.Header{Salt: s.Salt(), Epoch: 3, Incarnation: 1, First: m.End + 1, Chain: s.EndSum(),
			Commit: m.Committed, Stable: m.Durable, Flags: flags,
			Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC).UnixNano()})))
		check(s.Sync())
		s.Commit(s.Marks().End)
	}
	frame(wal.FlagSync, wal.Record{Kind: wal.KindView, Block: 3})
	frame(0, wal.Record{Kind: wal.KindAttach, Block: 1, Session: 0xab}, wal.Record{Kind: wal.KindWrite, Block: 0, Count: 2, Session: 0xab, Seq: 1},
		wal.Record{Kind: wal.KindTrim, Block: 100, Count: 20}, wal.Record{Kind: wal.KindZero, Block: 5, Count: 1, Flags: wal.RecordNoHole})
	for range 3 { // into the second segment
		frame(0, wal.Record{Kind: wal.KindWrite, Block: 16, Count: 6})
	}
	for {
		did, err := s.Step()
		check(err)
		if !did {
			break
		}
	}
	check(s.Checkpoint())
	frame(0, wal.Record{Kind: wal.KindWrite, Block: 7, Count: 1})
	check(s.Abandon())
	return dir
}

func inProcess(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(&environment{stdin: os.Stdin, stdout: &out, stderr: &err, getenv: func(string) string { return "" }}, args)
	return out.String(), err.String(), code
}

// generations count the saves of meta, which a store is free to do as it likes.
var generations = regexp.MustCompile(`(generation"?:? ?)[0-9]+`)

func TestWALDumpIsGolden(t *testing.T) {
	dir := madeReplica(t)
	for name, args := range map[string][]string{
		"wal_dump.txt":       {dir},
		"wal_dump.jsonl":     {dir, "--json"},
		"wal_dump_range.txt": {filepath.Join(dir, "wal"), "--from", "3", "--to", "4"},
	} {
		stdout, stderr, code := inProcess(t, append([]string{"wal", "dump"}, args...)...)
		if code != exitOK || stderr != "" {
			t.Errorf("%s: exit code %d, %s", name, code, stderr)
		}
		golden(t, name, generations.ReplaceAllString(stdout, "${1}N"))
	}
	// Of a log alone, what can be known of it.
	alone := filepath.Join(t.TempDir(), "wal")
	if err := os.CopyFS(alone, os.DirFS(filepath.Join(dir, "wal"))); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := inProcess(t, "wal", "dump", alone)
	if code != exitOK || stderr != "" || strings.Count(stdout, ": found\n") != 6 {
		t.Errorf("exit code %d, %s\n%s", code, stderr, stdout)
	}
}

func TestWALVerifySaysWhatIsWrong(t *testing.T) {
	dir := madeReplica(t)
	stdout, stderr, code := inProcess(t, "wal", "verify", dir)
	if code != exitOK || stderr != "" || stdout != "sound: 6 frames, the log ends with record 9; 8 of 256 blocks are written and match, 1 wait in the log\n" {
		t.Errorf("sound: exit code %d, %q, %q", code, stdout, stderr)
	}
	spoil := func(name string, at int64) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("rot"), at); err != nil {
			t.Fatal(err)
		}
	}
	spoil("data.img", 17*blockdev.BlockSize)
	spoil("data.img", 18*blockdev.BlockSize)
	spoil("meta", 200)
	stdout, stderr, code = inProcess(t, "wal", "verify", dir)
	if code != exitFailed || stdout != "data.img: blocks 17 to 18: content does not match the checksum\n"+
		"note: meta slot 0: bad checksum or content: checksum; the other slot counts\n" ||
		!strings.HasPrefix(stderr, "lockstep: wal verify: a part of the replica in "+dir+" is lost: start its node") {
		t.Errorf("bad blocks: exit code %d\n%s%s", code, stdout, stderr)
	}
	stdout, _, code = inProcess(t, "wal", "verify", dir, "--json")
	if code != exitFailed || !strings.Contains(stdout, `{"type":"problem","place":"data.img","what":"blocks 17 to 18: content does not match the checksum","harmless":false,"mended":true}`) ||
		!strings.Contains(stdout, `"sound":false`) {
		t.Errorf("as JSON: exit code %d\n%s", code, stdout)
	}
	if err := os.Remove(filepath.Join(dir, "regions")); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code = inProcess(t, "wal", "verify", dir); code != exitFailed ||
		!strings.HasPrefix(stderr, "lockstep: wal verify: the replica in "+dir+" is damaged: restore") {
		t.Errorf("a file is missing: exit code %d\n%s", code, stderr)
	}
}

func TestWALCommandsKeepAwayFromAReplicaInUse(t *testing.T) {
	dir := madeReplica(t)
	lock, err := vfs.OS{}.Lock(filepath.Join(dir, "LOCK"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"dump"}, {"verify"}} {
		_, stderr, code := inProcess(t, "wal", c[0], dir)
		if code != exitFailed || !strings.Contains(stderr, "is in use: stop its node first") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, %s", c[0], code, stderr)
		}
	}
	if stdout, stderr, code := inProcess(t, "wal", "dump", dir, "--live"); code != exitOK || !strings.Contains(stdout, "6 whole frames") {
		t.Errorf("--live: exit code %d, %s", code, stderr)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	// And while one looks, nobody starts it.
	r, err := openReplicaDir("wal verify", dir, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (vfs.OS{}).Lock(filepath.Join(dir, "LOCK")); err == nil {
		t.Error("the replica could be started while it was looked at")
	}
	r.Close()
}
