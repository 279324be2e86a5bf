package blockdev

import (
	"context"
	"errors"
	"time"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// Scrubbing reads what nobody reads, from the device and past the page cache, so that rot is found while another
// member still has a good copy. A pass is the live part of the log, then the image from front to back. It changes
// nothing but what it repairs: from the page cache, if the block is still good there; else by the Repairer.

const (
	// scrubChunk is how many blocks are read at a time.
	scrubChunk = 64
	// scrubYield is how often a pass looks whether clients have become quiet, and scrubPatience how long it waits
	// for that with each chunk: it goes on, slowly, beside clients who never are.
	scrubYield    = 20 * time.Millisecond
	scrubPatience = time.Second
)

// Repairer replaces a bad block by a good copy (Store.Repair) from elsewhere, or tells why it cannot. It may block.
type Repairer func(block uint64) error

// SetRepairer tells where scrubbing gets good copies from. Without one, bad blocks are only reported.
func (s *Store) SetRepairer(r Repairer) { s.repairer.Store(&r) }

// Scrubbed is what a pass has seen.
type Scrubbed struct {
	Frames   int    // of the log
	Blocks   uint64 // of the image, those without data left out
	Bad      uint64 // blocks
	Repaired uint64
	Took     time.Duration
}

// Scrub verifies the whole replica now and waits for it. It reads at most so many bytes a second, as many as it can if
// rate is 0, and gives way to clients. Errors: ctx's, and what stands in the way of going on; bad blocks are no error. A copy
// in the making has nothing to verify yet: what was half written of it when it was interrupted is written again.
func (s *Store) Scrub(ctx context.Context, rate int64) (Scrubbed, error) {
	p := s.newPass(rate)
	for {
		done, err := p.step(ctx)
		if err != nil || done {
			return p.out, err
		}
	}
}

// pass is a scrub on its way.
type pass struct {
	s     *Store
	rate  int64
	next  uint64 // block
	log   bool   // is done with the log
	buf   []byte
	began time.Time
	out   Scrubbed
}

func (s *Store) newPass(rate int64) *pass {
	return &pass{s: s, rate: rate, buf: wal.AlignedBuffer(scrubChunk * BlockSize), began: time.Now()}
}

// step verifies the next piece and waits as long as the rate wants.
func (p *pass) step(ctx context.Context) (done bool, err error) {
	if err := p.yield(ctx); err != nil {
		return false, err
	}
	if p.s.Copying() {
		return true, nil
	}
	began := time.Now()
	bytes := 0
	if !p.log {
		p.log = true
		bytes, err = p.scrubLog(ctx)
	} else {
		bytes, err = p.scrubImage()
	}
	if err != nil {
		return false, err
	}
	if p.log && p.next >= p.s.Blocks() {
		p.out.Took = time.Since(p.began)
		p.s.emit(EventScrubbed{p.out})
		return true, nil
	}
	if p.rate > 0 {
		err = pause(ctx, time.Duration(float64(bytes)/float64(p.rate)*float64(time.Second))-time.Since(began))
	}
	return false, err
}

// yield waits for the clients' work to be done, with limited patience. A store whose owner drives it has no clock.
func (p *pass) yield(ctx context.Context) error {
	for waited := time.Duration(0); !p.s.o.Manual && waited < scrubPatience && p.s.busy(); waited += scrubYield {
		if err := pause(ctx, scrubYield); err != nil {
			return err
		}
	}
	return errors.Join(ctx.Err(), p.s.closedErr())
}

// busy tells whether the disk has work for which somebody waits.
func (s *Store) busy() bool { return s.pressed() || s.OldestIO() > 0 }

// closedErr is ErrClosed after Close. A poisoned store can still be scrubbed.
func (s *Store) closedErr() error {
	if s.closed.Load() {
		return ErrClosed
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// scrubLog verifies the committed frames that are not applied: the others are in the image. What is bad is repaired as
// far as it can be, and the log is checkpointed beyond it, so that no recovery meets it (B8).
func (p *pass) scrubLog(ctx context.Context) (bytes int, err error) {
	s := p.s
	s.mu.Lock()
	frames := make([]frameInfo, s.pending.committed)
	for i := range frames {
		frames[i] = *s.pending.frames.at(i)
	}
	s.mu.Unlock()
	broken := false
	var buf []byte
	for _, info := range frames {
		if info.last > wal.LSN(s.log.Durable()) || wal.LSN(s.applied.Load()) >= info.last {
			continue
		}
		n := int(info.end-info.at) * BlockSize
		if len(buf) < n {
			buf = wal.AlignedBuffer(n)
		}
		err := s.log.ReadDirect(buf[:n], info.at)
		f, perr := wal.ParseFrame(buf[:n])
		p.out.Frames++
		bytes += n
		if err == nil && perr == nil && f.First() == info.first && f.Sum() == info.sum || wal.LSN(s.applied.Load()) >= info.last {
			continue
		}
		broken = true
		entries, _ := s.table.ofFrame(info)
		for _, e := range entries {
			if err := p.scrubBlock(e.block); err != nil {
				return bytes, err
			}
		}
		if err := p.yield(ctx); err != nil {
			return bytes, err
		}
	}
	if broken && s.Err() == nil {
		return bytes, s.Checkpoint()
	}
	return bytes, nil
}

// scrubImage verifies the next chunk of the image.
func (p *pass) scrubImage() (bytes int, err error) {
	s := p.s
	region, ok := s.regions.newer(0, int(p.next/RegionBlocks))
	if !ok {
		p.next = s.Blocks()
		return 0, nil
	}
	first := max(p.next, uint64(region)*RegionBlocks)
	n := min(scrubChunk-first%scrubChunk, s.Blocks()-first)
	p.next = first + n
	var locs [scrubChunk]loc
	var sums [scrubChunk]uint32
	s.table.lookup(first, locs[:n])
	if err := s.sums.get(first, sums[:n]); err != nil {
		return 0, err
	}
	for i := uint64(0); i < n; {
		if !HasData(sums[i]) || !locs[i].inImage() {
			i++
			continue
		}
		j := i + 1
		for j < n && HasData(sums[j]) && locs[j].inImage() {
			j++
		}
		data := p.buf[:(j-i)*BlockSize]
		bytes += len(data)
		err := s.readDevice(data, first+i)
		for ; i < j; i++ {
			p.out.Blocks++
			if err == nil && wal.BlockSum(first+i, data[:BlockSize]) == sums[i] {
				data = data[BlockSize:]
				continue
			}
			data = data[BlockSize:]
			if err := p.scrubBlock(first + i); err != nil {
				return bytes, err
			}
		}
	}
	return bytes, nil
}

func (s *Store) readDevice(dst []byte, block uint64) error {
	if d, ok := s.image.File.(vfs.DirectReader); ok {
		return d.ReadDirectAt(dst, int64(block)*BlockSize)
	}
	_, err := s.image.ReadAt(dst, int64(block)*BlockSize)
	return err
}

// scrubBlock looks at a block that seemed bad once more, and repairs it if it is.
func (p *pass) scrubBlock(block uint64) error {
	bad, repaired, err := p.s.checkDevice(block)
	if err != nil || !bad {
		return err
	}
	p.out.Bad++
	if !repaired {
		if r := p.s.repairer.Load(); r != nil {
			repaired = (*r)(block) == nil
		}
	}
	if repaired {
		p.out.Repaired++
	}
	return nil
}

// checkDevice tells whether a block is bad on the device, and repairs it if memory still has it. Nothing is applied
// meanwhile.
func (s *Store) checkDevice(block uint64) (bad, repaired bool, err error) {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	var l [1]loc
	s.table.lookup(block, l[:])
	data := wal.AlignedBuffer(BlockSize)
	device, memory := s.readDevice, func(b []byte, block uint64) error {
		_, err := s.image.ReadAt(b, int64(block)*BlockSize)
		return err
	}
	if l[0].inImage() {
		var sum [1]uint32
		if err := s.sums.get(block, sum[:]); err != nil {
			return false, false, err
		}
		l[0].sum = sum[0]
	} else {
		device = func(b []byte, _ uint64) error { return s.log.ReadDirect(b, l[0].pos) }
		memory = func(b []byte, _ uint64) error { return s.log.ReadAt(b, l[0].pos) }
	}
	if !HasData(l[0].sum) || device(data, block) == nil && wal.BlockSum(block, data) == l[0].sum {
		return false, false, nil
	}
	s.emit(EventCorruptBlock{&CorruptBlockError{Block: block, InLog: !l[0].inImage(), Pos: l[0].pos}})
	if memory(data, block) == nil && wal.BlockSum(block, data) == l[0].sum && s.Err() == nil {
		return true, true, s.repairLocked(block, data, l[0], 0)
	}
	return true, false, nil
}
