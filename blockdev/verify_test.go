package blockdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// worn is a replica with blocks in the image, blocks that are in the log only, and an uncommitted frame; closed, or as a
// crash leaves it.
func worn(t *testing.T, clean bool) *rig {
	r := osRig(t, StoreOptions{Manual: true})
	for i := range uint64(12) {
		r.put(write(i*50, 50), trim(i*50+10, 5))
		r.steps()
	}
	r.check(r.s.Checkpoint())
	r.put(write(3, 2), trim(100, 30))
	if clean {
		r.check(r.s.Close())
		return r
	}
	r.put(write(700, 3))
	r.append(write(701, 2))
	r.check(r.s.Sync())
	r.check(r.s.Abandon())
	return r
}

// snapshot is everything that a directory is: contents and times.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		all[path] = info.Mode().String() + info.ModTime().Format(time.RFC3339Nano)
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			all[path] += string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func verified(t *testing.T, dir string) Verified {
	t.Helper()
	x, err := Inspect(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	v, err := x.Verify()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVerifyFindsNothingInASoundReplica(t *testing.T) {
	for _, clean := range []bool{true, false} {
		r := worn(t, clean)
		before := snapshot(t, r.dir)
		v := verified(t, r.dir)
		if len(v.Problems) != 0 || !v.Sound() {
			t.Errorf("clean %v: %v", clean, v.Problems)
		}
		if len(r.hist) == 0 || v.Written == 0 || (v.Waiting > 0) == clean || v.Log.Recovery.End != r.end() {
			t.Errorf("clean %v: %+v", clean, v)
		}
		if d := cmp.Diff(before, snapshot(t, r.dir)); d != "" {
			t.Error("the directory changed: ", d)
		}
		r.open()
		r.verify()
		r.check(r.s.Close())
	}
}

// TestVerifyFindsWhateverIsWrong changes one thing at a time.
func TestVerifyFindsWhateverIsWrong(t *testing.T) {
	r := worn(t, false)
	flip := func(name string, at int64) func(dir string) error {
		return func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			b := make([]byte, 1)
			if _, err := f.ReadAt(b, at); err != nil {
				return err
			}
			b[0] ^= 4
			_, err = f.WriteAt(b, at)
			return err
		}
	}
	put := func(name string, at int64, b []byte) func(dir string) error {
		return func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(b, at)
			return err
		}
	}
	fill := func(name string, at, n int64, with byte) func(dir string) error {
		return put(name, at, bytes.Repeat([]byte{with}, int(n)))
	}
	entry := func(region int, l wal.LSN) func(dir string) error {
		return put("regions", int64(region)*8, binary.LittleEndian.AppendUint64(nil, encodeRegion(region, l)))
	}
	cut := func(name string) func(dir string) error {
		return func(dir string) error { return os.Truncate(filepath.Join(dir, name), 4096) }
	}
	remove := func(name string) func(dir string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	both := func(a, b func(string) error) func(string) error {
		return func(dir string) error { return errors.Join(a(dir), b(dir)) }
	}
	// Where the live frames are.
	x, err := Inspect(os.DirFS(r.dir))
	r.check(err)
	var live, applied []wal.Found
	_, err = x.Log(func(f wal.Found) error {
		switch f.State {
		case wal.FrameLive:
			live = append(live, f)
		case wal.FrameApplied:
			applied = append(applied, f)
		case wal.FrameBehind, wal.FrameFound, wal.FrameLeft:
		}
		return nil
	})
	r.check(err)
	if len(live) != 3 || len(applied) == 0 {
		t.Fatalf("%d frames live, %d applied", len(live), len(applied))
	}
	for _, c := range []struct {
		name  string
		spoil func(string) error
		want  string
		sound bool
	}{
		{"one meta slot", flip("meta", 100), "meta slot 0: ", true},
		{"both meta slots", both(flip("meta", 100), flip("meta", 4096+70)), "meta: has no good slot", false},
		{"meta is missing", remove("meta"), "meta: is missing", false},
		{"meta is short", cut("meta"), "meta: is 4096 bytes long instead of 8192", false},
		{"image, one bit", flip("data.img", 20*BlockSize+99), "data.img: block 20: content does not match the checksum", false},
		{"image, a few blocks", fill("data.img", 20*BlockSize, 3*BlockSize, 'x'), "data.img: blocks 20 to 22: content", false},
		{"image, in a hole", flip("data.img", 1500*BlockSize), "data.img: block 1500: holds data, the checksum says zeroes", false},
		{"image, what waits in the log", flip("data.img", 3*BlockSize), "", true},
		{"image is missing", remove("data.img"), "data.img: is missing", false},
		{"image is short", cut("data.img"), "data.img: is 4096 bytes long instead of 8388608", false},
		{"a sum", flip("data.crc", 4*200), "data.img: block 200: content does not match the checksum", false},
		{"a page of sums", fill("data.crc", 0, 4096, 0), "holds data, the checksum says zeroes", false},
		{"sums are short", both(cut("data.crc"), cut("regions")), "data.crc: is 4096 bytes long", false},
		{"a region that never changed", fill("regions", 0, 8, 0), "regions: region 0 has content, but is said never to have changed", false},
		{"a region that changed before", entry(0, 1), "regions: region 0 changed with record", false},
		{"a region of the future", entry(1, 1<<40), "regions: region 1 is said to have changed with record", false},
		{"an entry of a region", flip("regions", 15), "regions: region 1 has an entry whose check does not match", false},
		{"payload of a live frame", flip("wal/"+live[0].Segment, live[0].Offset+5000), "are lost: payload checksum", false},
		{"header of a live frame", flip("wal/"+live[1].Segment, live[1].Offset+60), "is lost: header checksum", false},
		{"the last frame", flip("wal/"+live[2].Segment, live[2].Offset+5000), "pieces of unfinished or cut frames behind", true},
		{"an applied frame", flip("wal/"+applied[1].Segment, applied[1].Offset+5000), "which are in the image, are damaged in the log", false},
		{"a segment is missing", remove("wal/05.seg"), "wal/05.seg: is missing", false},
		{"a segment is short", cut("wal/06.seg"), "wal/06.seg: is 4096 bytes long instead of 262144", false},
		{"the log is missing", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "wal")) }, "wal: ", false},
		{"a stranger", func(dir string) error { return os.WriteFile(filepath.Join(dir, "core"), nil, 0o600) }, "core: is none of a replica's files", true},
	} {
		dir := filepath.Join(t.TempDir(), "copy")
		r.check(os.CopyFS(dir, os.DirFS(r.dir)))
		r.check(c.spoil(dir))
		v := verified(t, dir)
		var all []string
		for _, p := range v.Problems {
			all = append(all, p.String())
			if strings.Contains(p.String(), "\n") {
				t.Errorf("%s: more than a line: %q", c.name, p)
			}
		}
		text := strings.Join(all, "\n")
		if v.Sound() != c.sound || !strings.Contains(text, c.want) || c.want == "" && text != "" {
			t.Errorf("%s: sound %v, want %q\n%s", c.name, v.Sound(), c.want, text)
		}
		// It is told apart what costs the replica, and what is mended while it runs.
		s, err := OpenStore(StoreOptions{FS: vfs.OS{}, Dir: dir, Manual: true})
		switch {
		case err == nil:
			r.check(s.Abandon())
			if !v.Opens() && !strings.Contains(text, "regions: ") {
				t.Errorf("%s: it is said to cost the replica, and does not\n%s", c.name, text)
			}
		case v.Opens():
			t.Errorf("%s: it is not said to cost the replica: %v\n%s", c.name, err, text)
		case !Damaged(err):
			t.Errorf("%s: open does not call it damage: %v", c.name, err)
		}
	}
}

// TestVerifyAgreesWithOpenAndRead: what Verify calls sound opens and reads, whatever bit is flipped anywhere.
func TestVerifyAgreesWithOpenAndRead(t *testing.T) {
	r := worn(t, false)
	rng := rand.New(rand.NewPCG(1, 1))
	sound := 0
	for i := range 60 {
		dir := filepath.Join(t.TempDir(), "copy")
		r.check(os.CopyFS(dir, os.DirFS(r.dir)))
		name := []string{"meta", "data.img", "data.crc", "regions", "wal/00.seg", "wal/07.seg"}[i%6]
		b, err := os.ReadFile(filepath.Join(dir, name))
		r.check(err)
		b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		r.check(os.WriteFile(filepath.Join(dir, name), b, 0o600))
		v := verified(t, dir)
		if !v.Sound() {
			continue
		}
		sound++
		s, err := OpenStore(StoreOptions{FS: vfs.OS{}, Dir: dir, Manual: true, BootID: "boot"})
		if err != nil {
			t.Errorf("%s: sound, but %v", name, err)
			continue
		}
		if err := s.Read(0, make([]byte, s.Blocks()*BlockSize)); err != nil {
			t.Errorf("%s: sound, but %v", name, err)
		}
		s.Abandon()
	}
	if sound == 0 || sound == 60 {
		t.Errorf("%d of 60 are sound", sound)
	}
}

func TestInspectSaysWhatIsNoReplica(t *testing.T) {
	dir := t.TempDir()
	if _, err := Inspect(os.DirFS(dir)); !errors.Is(err, ErrNotReplica) || errors.Is(err, ErrHalfFormatted) {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "meta.new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(os.DirFS(dir)); !errors.Is(err, ErrHalfFormatted) {
		t.Error(err)
	}
	if _, err := Inspect(os.DirFS(filepath.Join(dir, "nowhere"))); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
