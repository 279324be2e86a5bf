package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

const (
	maxFileBytes = 40_000
	dirsEach     = 5
	// filesMax bounds what the filers put on the disk: each makes so many names, and then writes them anew.
	filesMax = 400
)

// fileNote is what makes a file's content.
type fileNote struct {
	Seed uint64
	Size int
}

// content gives the file's bytes.
func (n fileNote) content() []byte {
	rng := rand.New(rand.NewPCG(n.Seed, uint64(n.Size)))
	b := make([]byte, (n.Size+7)&^7)
	for i := 0; i < len(b); i += 8 {
		v := rng.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b[:n.Size]
}

func (n fileNote) check(name string) error {
	got, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	want := n.content()
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Errorf("it has %d bytes, want %d, and differs from byte %d on", len(got), len(want), at)
}

// file is one filer.
func (s *scribe) file(who int, stop <-chan struct{}) error {
	rng := rand.New(rand.NewPCG(s.notes.Seed, uint64(who)))
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		n := i % filesMax
		name := filepath.Join(fmt.Sprintf("files%d-%d", who, n%dirsEach), fmt.Sprint(n))
		note := fileNote{Seed: rng.Uint64(), Size: 1 + rng.IntN(maxFileBytes)}
		if err := writeSynced(filepath.Join(s.dir, name), note.content()); err != nil {
			return err
		}
		s.mu.Lock()
		s.notes.Files[name] = note
		s.mu.Unlock()
		s.written.Add(1)
	}
}

// writeSynced puts a file in the place of one that may be there, and makes it and everything that leads to it stable.
func writeSynced(name string, data []byte) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	next := name + ".next"
	f, err := os.Create(next)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, name); err != nil {
		return err
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		f, err := os.Open(d)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
