package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// Verifying compares the members of a view while they work, by their tables of checksums: no data is read. The primary
// sends a digest of a region's sums down each stream. It takes the sums and queues the message under the lock under
// which commit moves, and messages arrive in order; so when the peer has followed the message's commit point, which it
// does first, its committed state is as of the very LSN of the digest. A peer whose sums differ answers with them, and
// the primary finds the blocks.
//
// What differs is wrong at somebody though all checksums are right: a disk that lost a write. The content that most
// members have counts, and the primary's where there is no majority; the others are sent it, again as of an LSN.

// Limits of verifying.
const (
	verifyAhead    = 32               // digests that are not answered
	verifyPatience = 30 * time.Second // for an answer
	verifyTries    = 3                // to mend a region
)

var errCheckCut = errors.New("replication: the view changed while its members were compared; start again")

// digest is of a region's sums. Zeroes at its end do not count: replicas need not be equally large.
func digest(sums []uint32) uint32 {
	for len(sums) > 0 && sums[len(sums)-1] == 0 {
		sums = sums[:len(sums)-1]
	}
	b := make([]byte, 0, 4*len(sums))
	for _, s := range sums {
		b = binary.LittleEndian.AppendUint32(b, s)
	}
	return crc32.Checksum(b, castagnoli)
}

// difference is a region in which a member's sums are not the primary's.
type difference struct {
	region int
	member viewsvc.ReplicaID
	sums   []uint32
}

// comparison is one on its way. Guarded by Replica.mu.
type comparison struct {
	waiting map[viewsvc.ReplicaID]int // digests that are not answered
	found   []difference
}

// checkOrdered carries out the view service's order to compare members, or to scrub, once. mu is held.
func (r *Replica) checkOrdered(o *viewsvc.CheckOrder) {
	if o == nil || r.checked.ID == o.ID || !o.Scrub && r.core.State() != StateOpen {
		return
	}
	r.checked = viewsvc.CheckReport{ID: o.ID}
	r.start(func() { // ends with the check, or with Close
		var err error
		if o.Scrub {
			err = r.scrubNow()
		} else {
			err = r.verifyNow()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.checked.ID == o.ID {
			r.checked.Finished = true
			if err != nil {
				r.checked.Error = err.Error()
			}
		}
	})
}

func (r *Replica) scrubNow() error {
	out, err := r.store.Scrub(r.ctx, 0)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checked.Blocks, r.checked.Bad, r.checked.Repaired = out.Blocks, out.Bad, out.Repaired
	return err
}

// verifyNow compares all regions, and mends and compares again those that differ.
func (r *Replica) verifyNow() error {
	found, err := r.compare(func(yield func(int) bool) {
		size := r.Geometry().Size // what is beyond it is no member's yet
		for region := range int((size + blockdev.RegionBytes - 1) / blockdev.RegionBytes) {
			r.mu.Lock()
			r.checked.Blocks = min(uint64(region+1)*blockdev.RegionBlocks, size/blockdev.BlockSize)
			r.mu.Unlock()
			if !yield(region) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	differ := map[uint64]bool{}
	for try := 0; len(found) > 0 && try < verifyTries; try++ {
		blocks, err := r.mend(found)
		for _, b := range blocks {
			differ[b] = true
		}
		if err != nil {
			return err
		}
		var regions []int
		for _, d := range found {
			regions = append(regions, d.region)
		}
		slices.Sort(regions)
		if found, err = r.compare(slices.Values(slices.Compact(regions))); err != nil {
			return err
		}
	}
	left, err := r.blocksOf(found)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checked.Bad = uint64(len(differ))
	r.checked.Repaired = uint64(len(differ) - len(left))
	return err
}

// compare sends digests of regions to all members and gathers what differs.
func (r *Replica) compare(regions func(func(int) bool)) (found []difference, err error) {
	c := &comparison{waiting: map[viewsvc.ReplicaID]int{}}
	r.mu.Lock()
	view := r.core.View()
	r.comparing = c
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.comparing == c {
			r.comparing = nil
		}
	}()
	var sums []uint32
	for region := range regions {
		if sums, err = r.store.RegionSums(region, sums); err != nil { // so that they are in memory when the lock is held
			return nil, err
		}
		if err := r.sendDigest(c, view, region, &sums); err != nil {
			return nil, err
		}
		if err := r.awaitDigests(c, view, verifyAhead); err != nil {
			return nil, err
		}
	}
	if err := r.awaitDigests(c, view, 1); err != nil {
		return nil, err
	}
	return c.found, nil
}

func (r *Replica) sendDigest(c *comparison, view viewsvc.View, region int, sums *[]uint32) (err error) {
	var a after
	r.mu.Lock()
	defer func() { r.mu.Unlock(); r.finish(&a) }()
	if *sums, err = r.store.RegionSums(region, *sums); err != nil {
		return err
	}
	m := msg{Type: msgDigest, View: r.core.View().Num, A: uint64(region), B: uint64(digest(*sums)), Commit: r.core.Commit()}
	for _, b := range view.Backups {
		s := r.streamTo(b)
		if s == nil || !s.up {
			return fmt.Errorf("%w: no stream to member %s", errCheckCut, b)
		}
		c.waiting[b]++
		s.q.push(m, nil, nil)
		a.queues = append(a.queues, s.q)
	}
	return nil
}

// awaitDigests waits until each member has fewer than so many digests to answer.
func (r *Replica) awaitDigests(c *comparison, view viewsvc.View, below int) error {
	deadline := r.rt.Now().Add(verifyPatience)
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		busy := false
		for _, n := range c.waiting {
			busy = busy || n >= below
		}
		switch {
		case r.comparing != c || r.core.View().Num != view.Num || r.core.State() != StateOpen:
			return errCheckCut
		case !busy:
			return nil
		case r.closed:
			return r.ctx.Err()
		case r.rt.Now().After(deadline):
			return fmt.Errorf("replication: a member does not answer for %v: %w", verifyPatience, context.DeadlineExceeded)
		}
		r.idle.Wait() // tickLoop sees to it that the deadline is noticed
	}
}

// digestAnswered takes a peer's answer. body is empty if its sums are the same.
func (r *Replica) digestAnswered(from viewsvc.ReplicaID, m msg, body []byte) error {
	var sums []uint32
	if len(body) > 0 {
		for ; len(body) >= 4; body = body[4:] {
			sums = append(sums, binary.LittleEndian.Uint32(body))
		}
		if len(body) != 0 || len(sums) > blockdev.RegionBlocks {
			return fmt.Errorf("%w: sums of a region", errWire)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.comparing; c != nil && c.waiting[from] > 0 {
		c.waiting[from]--
		if sums != nil {
			c.found = append(c.found, difference{int(m.A), from, sums})
		}
		r.idle.Broadcast()
	}
	return nil
}

// blocksOf are the blocks in which members differ.
func (r *Replica) blocksOf(found []difference) ([]uint64, error) {
	set := map[uint64]bool{}
	for _, d := range found {
		own, err := r.store.RegionSums(d.region, nil)
		if err != nil {
			return nil, err
		}
		for i := range min(len(own), len(d.sums)) {
			if b := uint64(d.region)*blockdev.RegionBlocks + uint64(i); !blockdev.SameContent(b, own[i], d.sums[i]) {
				set[b] = true
			}
		}
	}
	var blocks []uint64
	for b := range set {
		blocks = append(blocks, b)
	}
	slices.Sort(blocks)
	return blocks, nil
}

// mend gives members the content that counts, and returns the blocks in which they differed. A block that clients have
// written meanwhile may differ from what was found; then it is the same at all, or is found again.
func (r *Replica) mend(found []difference) ([]uint64, error) {
	blocks, err := r.blocksOf(found)
	if err != nil {
		return nil, err
	}
	data := make([]byte, blockdev.BlockSize)
	var sum [1]uint32
	for _, b := range blocks {
		if from := r.outvoted(b, found); from != "" {
			if err := r.mendOwn(b, from); err != nil {
				return blocks, err
			}
		}
		if err := r.readRepaired(b, data); err != nil {
			return blocks, err
		}
		sum[0] = wal.BlockSum(b, data)
		if err := r.sendMend(b, data, sum[0]); err != nil {
			return blocks, err
		}
	}
	return blocks, nil
}

// outvoted names a member with the content that more members have than have the primary's, "" if there is none.
func (r *Replica) outvoted(block uint64, found []difference) viewsvc.ReplicaID {
	r.mu.Lock()
	members := len(r.core.View().Members())
	r.mu.Unlock()
	votes := map[uint32][]viewsvc.ReplicaID{}
	others := 0
	for _, d := range found {
		if i := int(block % blockdev.RegionBlocks); d.region == int(block/blockdev.RegionBlocks) && i < len(d.sums) {
			votes[d.sums[i]] = append(votes[d.sums[i]], d.member)
			others++
		}
	}
	for _, who := range votes {
		if len(who) > members-others {
			return who[0]
		}
	}
	return ""
}

// mendOwn replaces the primary's own content by a backup's.
func (r *Replica) mendOwn(block uint64, from viewsvc.ReplicaID) error {
	for _, f := range r.fetches(block) {
		if f.To != from {
			continue
		}
		data, asOf, err := r.fetchBlock(f)
		if err == nil {
			err = r.store.Repair(block, data, asOf)
		}
		if err != nil && !errors.Is(err, blockdev.ErrStale) { // a stale one has changed since
			return fmt.Errorf("replication: mend block %d from %s: %w", block, from, err)
		}
	}
	return nil
}

// sendMend sends a block to all members, if it still is what was read.
func (r *Replica) sendMend(block uint64, data []byte, sum uint32) error {
	var a after
	r.mu.Lock()
	defer func() { r.mu.Unlock(); r.finish(&a) }()
	sums, err := r.store.RegionSums(int(block/blockdev.RegionBlocks), nil)
	if err != nil {
		return err
	}
	if !blockdev.SameContent(block, sums[block%blockdev.RegionBlocks], sum) {
		return nil // a client has written it
	}
	view := r.core.View()
	m := msg{Type: msgMend, View: view.Num, A: block, Commit: r.core.Commit()}
	for _, b := range view.Backups {
		if s := r.streamTo(b); s != nil && s.up {
			s.q.pushEncoded(m.encode(data))
			a.queues = append(a.queues, s.q)
		}
	}
	return nil
}

// onDigest compares this replica's sums with the primary's, as of the commit point that came with them.
func (f *follower) onDigest(m msg) error {
	f.follow(m.Commit)
	sums, err := f.r.store.RegionSums(int(m.A), nil)
	if err != nil {
		return err
	}
	answer := msg{Type: msgSums, View: m.View, A: m.A}
	if uint64(digest(sums)) == m.B || f.r.store.Marks().Committed != m.Commit {
		return f.send(answer.encode(nil))
	}
	body := make([]byte, 0, 4*len(sums))
	for _, s := range sums {
		body = binary.LittleEndian.AppendUint32(body, s)
	}
	return f.send(answer.encode(body))
}

// onMend takes the content of a block as of the commit point that came with it. One that is the same stays as it is.
func (f *follower) onMend(m msg, body []byte) error {
	f.follow(m.Commit)
	st := f.r.store
	if len(body) != blockdev.BlockSize || m.A >= st.Blocks() {
		return fmt.Errorf("%w: block %d of %d bytes to mend", errWire, m.A, len(body))
	}
	sums, err := st.RegionSums(int(m.A/blockdev.RegionBlocks), nil)
	if err != nil {
		return err
	}
	commit := st.Marks().Committed
	if commit != m.Commit || blockdev.SameContent(m.A, sums[m.A%blockdev.RegionBlocks], wal.BlockSum(m.A, body)) {
		return nil
	}
	if err := st.Repair(m.A, body, commit); err != nil && !errors.Is(err, blockdev.ErrStale) {
		return f.storage(err)
	}
	return nil
}
