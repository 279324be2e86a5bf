// Command scribe runs in the guest. It writes to a file system in ways that show what became of each write, and tells
// at once, or later, whether something is missing, torn or old.
//
//	scribe write -dir /mnt -state /run/scribe     until /run/scribe/stop exists
//	scribe check -dir /mnt -state /run/scribe     after a mount, with what was noted
//
// -state must not be on the disk under test. It has: progress (acknowledged writes, for others to read), error (the first
// thing that was wrong), notes (what has to be there).
//
// There are two kinds of writers. A *filer* makes files of random length, each with its fsync and that of its
// directory. An *overwriter* has some blocks of one file for itself and writes them in place with O_DIRECT and O_DSYNC,
// one at a time, each with a version; now and then it reads one back, past every cache, and wants exactly the latest.
// A write that was repeated, acknowledged and overwritten, and whose original then arrives, is an old version there.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	filers      = 2
	overwriters = 4
	progressGap = 100 * time.Millisecond
)

// notes are what was acknowledged.
type notes struct {
	Seed   uint64
	Files  map[string]fileNote // by name under the directory
	Blocks [overwriters][blocksEach]uint64
}

// scribe is one run.
type scribe struct {
	dir, state string
	written    atomic.Uint64

	// mu guards everything below.
	mu    sync.Mutex
	notes notes
	err   error
}

func main() {
	flags := flag.NewFlagSet("scribe", flag.ExitOnError)
	s := &scribe{}
	flags.StringVar(&s.dir, "dir", "/mnt", "directory on the disk under test")
	flags.StringVar(&s.state, "state", "/run/scribe", "directory for notes")
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "scribe: write or check?")
		os.Exit(2)
	}
	_ = flags.Parse(os.Args[2:]) // exits by itself
	var err error
	switch os.Args[1] {
	case "write":
		err = s.write()
	case "check":
		err = s.check()
	default:
		err = fmt.Errorf("%q: write or check", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "scribe:", err)
		_ = os.WriteFile(filepath.Join(s.state, "error"), []byte(err.Error()+"\n"), 0o644)
		os.Exit(1)
	}
}

// write runs the writers until they are stopped or one fails.
func (s *scribe) write() error {
	if err := os.MkdirAll(s.state, 0o755); err != nil {
		return err
	}
	s.notes = notes{Seed: uint64(time.Now().UnixNano()), Files: make(map[string]fileNote)}
	blocks, err := s.createBlocks()
	if err != nil {
		return err
	}
	defer blocks.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range filers {
		wg.Go(func() { s.fail(s.file(i, stop)) })
	}
	for i := range overwriters {
		wg.Go(func() { s.fail(s.overwrite(blocks, i, stop)) })
	}
	for {
		_, err := os.Stat(filepath.Join(s.state, "stop"))
		if err == nil || s.failed() {
			break
		}
		if err := s.tell(); err != nil {
			s.fail(err)
		}
		time.Sleep(progressGap)
	}
	close(stop)
	wg.Wait()
	if err := errors.Join(s.tell(), s.err); err != nil {
		return err
	}
	b, err := json.Marshal(s.notes)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.state, "notes"), b, 0o644)
}

// tell publishes how many writes were acknowledged.
func (s *scribe) tell() error {
	next := filepath.Join(s.state, "progress.new")
	if err := os.WriteFile(next, []byte(strconv.FormatUint(s.written.Load(), 10)+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(next, filepath.Join(s.state, "progress"))
}

func (s *scribe) fail(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *scribe) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

// check compares the disk with the notes.
func (s *scribe) check() error {
	b, err := os.ReadFile(filepath.Join(s.state, "notes"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &s.notes); err != nil {
		return err
	}
	if len(s.notes.Files) == 0 {
		return errors.New("nothing was noted: this check means nothing")
	}
	for name, note := range s.notes.Files {
		if err := note.check(filepath.Join(s.dir, name)); err != nil {
			return fmt.Errorf("%s was fsynced: %w", name, err)
		}
	}
	if err := s.checkBlocks(); err != nil {
		return err
	}
	fmt.Printf("%d files and %d blocks are as they were acknowledged\n", len(s.notes.Files), overwriters*blocksEach)
	return nil
}
