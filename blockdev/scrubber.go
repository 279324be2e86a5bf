package blockdev

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"path"
	"sync/atomic"
	"time"

	"lockstep/wal/vfs"
)

// The scrubber runs in the background of every store that is not Manual: a pass, slowly, and another one when the last is
// ScrubEvery ago. How far it has come is kept in a file of its own (doc.go), which is never synced and may be lost.
const (
	// DefaultScrubRate, bytes a second, takes a day and a half for a TiB, and is a few percent of what a disk can do.
	DefaultScrubRate = 8 << 20
	// DefaultScrubEvery is from the end of a pass to the beginning of the next.
	DefaultScrubEvery = 7 * 24 * time.Hour

	scrubDelay     = time.Minute      // after the store was opened: others need the disk more
	scrubSaveEvery = 30 * time.Second // how often progress is noted

	scrubName      = "scrub"
	scrubMagic     = 0x425243535453_4b4c // "LKSTSCRB", little-endian
	scrubFileBytes = 32
)

// scrubber is the background scrub of a store. Its goroutine owns everything but the atomics.
type scrubber struct {
	f      vfs.File     // nil if there can be none: then every start begins anew
	next   atomic.Int64 // block; where the pass is
	last   atomic.Int64 // ns since 1970 when the last whole pass ended; 0 if none did
	cancel context.CancelFunc
	done   chan struct{}
}

// ScrubProgress tells which block the background scrub has come to, and when the last whole pass ended; the zero time if
// none did.
func (s *Store) ScrubProgress() (block uint64, last time.Time) {
	if ns := s.scrub.last.Load(); ns != 0 {
		last = time.Unix(0, ns)
	}
	return uint64(s.scrub.next.Load()), last
}

// startScrub begins scrubbing in the background, until stopScrub.
func (s *Store) startScrub() {
	if s.o.ScrubRate < 0 {
		return
	}
	rate, every := s.o.ScrubRate, s.o.ScrubEvery
	if rate == 0 {
		rate = DefaultScrubRate
	}
	if every == 0 {
		every = DefaultScrubEvery
	}
	s.scrub.load(s.o.FS, path.Join(s.o.Dir, scrubName), s.Blocks())
	ctx, cancel := context.WithCancel(context.Background())
	s.scrub.cancel, s.scrub.done = cancel, make(chan struct{})
	go func() { // until stopScrub; it waits for the disk, and for the Repairer
		defer close(s.scrub.done)
		s.scrubLoop(ctx, rate, every)
	}()
}

func (s *Store) stopScrub() {
	if s.scrub.cancel != nil {
		s.scrub.cancel()
		<-s.scrub.done
	}
}

func (s *Store) scrubLoop(ctx context.Context, rate int64, every time.Duration) {
	wait := scrubDelay
	for {
		if last := s.scrub.last.Load(); last != 0 && s.scrub.next.Load() == 0 {
			wait = max(wait, every-time.Since(time.Unix(0, last)))
		}
		if pause(ctx, wait) != nil {
			return
		}
		p := s.newPass(rate)
		p.next = uint64(s.scrub.next.Load())
		saved := time.Now()
		for done := false; !done; {
			var err error
			if done, err = p.step(ctx); err != nil {
				break // what it is comes up with the clients' requests, too; another pass begins after a while
			}
			s.scrub.next.Store(int64(p.next))
			if done {
				s.scrub.next.Store(0)
				s.scrub.last.Store(time.Now().UnixNano())
			}
			if done || time.Since(saved) > scrubSaveEvery {
				s.scrub.save()
				saved = time.Now()
			}
		}
		s.scrub.save()
		wait = scrubDelay
	}
}

// load reads how far an earlier run came. What is not there, or is not as it was written, counts as nothing.
func (c *scrubber) load(fsys vfs.FS, name string, blocks uint64) {
	f, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = fsys.Create(name)
	}
	if err != nil {
		return
	}
	c.f = f
	var b [scrubFileBytes]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return
	}
	le := binary.LittleEndian
	next := le.Uint64(b[8:])
	if le.Uint64(b[0:]) == scrubMagic && le.Uint32(b[24:]) == crc32.Checksum(b[:24], castagnoli) && next <= blocks {
		c.next.Store(int64(next))
		c.last.Store(int64(le.Uint64(b[16:])))
	}
}

func (c *scrubber) save() {
	if c.f == nil {
		return
	}
	var b [scrubFileBytes]byte
	le := binary.LittleEndian
	le.PutUint64(b[0:], scrubMagic)
	le.PutUint64(b[8:], uint64(c.next.Load()))
	le.PutUint64(b[16:], uint64(c.last.Load()))
	le.PutUint32(b[24:], crc32.Checksum(b[:24], castagnoli))
	c.f.WriteAt(b[:], 0) // a hint for the next start; nothing depends on it
}
