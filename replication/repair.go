package replication

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// A block at the primary that fails its checksum, in the image or in the log, is fetched from a backup: a connection of
// its own carries Fetch and is answered with Block, or closed. The other's committed content is verified by its own
// checksum when it is read; Store.Repair refuses it if the block may have changed since.
//
// A learner may lack what is committed, and is asked all the same: a member that had to go a moment ago may have the only
// good copy. What it says counts if it is the very content that the checksum here belongs to, however old that is.

// Limits of a repair.
const (
	repairTries   = 3
	repairPause   = 150 * time.Millisecond // a backup hears of the newest commit with the next heartbeat
	repairTimeout = 2 * time.Second        // for one backup
	regionTries   = 10                     // repairs that may fail while a region is read
)

// fetch asks a member for a block.
type fetch struct {
	Cluster string            `json:"cluster"`
	Volume  viewsvc.VolumeID  `json:"volume"`
	From    viewsvc.ReplicaID `json:"from"`
	To      viewsvc.ReplicaID `json:"to"`
	View    viewsvc.ViewNum   `json:"view"`
	Block   uint64            `json:"block"`

	outside bool // a learner is asked
}

var (
	errNoCopy   = errors.New("replication: no replica has a good copy")
	errBadThere = errors.New("replication: the block is bad there, too")
)

// readRepaired reads committed data, and repairs what it finds bad as long as another member can help.
func (r *Replica) readRepaired(block uint64, dst []byte) error {
	err := r.store.Read(block, dst)
	if err == nil {
		return nil
	}
	return r.repairAndRead(err, r.store.Read, block, dst)
}

// readNewestRepaired is the same with what is ordered and not committed on top.
func (r *Replica) readNewestRepaired(block uint64, dst []byte) error {
	err := r.store.ReadNewest(block, dst)
	if err == nil {
		return nil
	}
	return r.repairAndRead(err, r.store.ReadNewest, block, dst)
}

// readRegion is the same for a region that is to be copied. One bad block must not keep a learner away for ever: what every
// member has said it cannot read is lost, here and at the learner, until a client writes it. A member that does not answer
// may have it: it answers again, or is a member no more, before long.
func (s *stream) readRegion(region int, want blockdev.BlockMask, img *blockdev.RegionImage) (asOf wal.LSN, err error) {
	r := s.r
	var repaired, lost blockdev.BlockMask
	for failures := 0; ; {
		asOf, err = r.store.ReadRegion(region, want, lost, img)
		var bad *blockdev.CorruptBlockError
		if err == nil || s.ctx.Err() != nil || !errors.As(err, &bad) {
			return asOf, err
		}
		i := int(bad.Block % blockdev.RegionBlocks)
		switch e := r.repair(bad.Block); {
		case e == nil && !repaired.Has(i):
			repaired.Add(i)
		case e == nil, errors.Is(e, errNoCopy): // or this disk does not keep what it is given
			lost.Add(i)
		default:
			if failures++; failures >= regionTries {
				return 0, errors.Join(err, e) // the stream begins again, as often as it takes
			}
		}
	}
}

// repairAndRead repairs the block that made a read fail, and reads again, for as long as it is another block each time.
func (r *Replica) repairAndRead(err error, read func(uint64, []byte) error, block uint64, dst []byte) error {
	for last, first := uint64(0), true; ; first = false {
		var bad *blockdev.CorruptBlockError
		if err == nil || !errors.As(err, &bad) || (!first && bad.Block == last) {
			return err
		}
		if e := r.repair(bad.Block); e != nil {
			return errors.Join(err, e)
		}
		last, err = bad.Block, read(block, dst)
	}
}

// repair replaces a bad block by another replica's. errNoCopy: each other member has said that its own is bad. Where there is
// none it takes as long as if one did not answer: one that had to go is a learner soon.
func (r *Replica) repair(block uint64) error {
	var err error
	for try := range repairTries {
		if try > 0 {
			if !sleep(r.ctx, r.rt, repairPause) {
				return r.ctx.Err()
			}
		}
		members, bad := 0, 0
		for _, f := range r.fetches(block) {
			data, asOf, e := r.fetchBlock(f)
			if f.outside {
				asOf = 0
			} else {
				members++
			}
			if e == nil {
				if e = r.store.Repair(block, data, asOf); e == nil {
					return nil
				}
			}
			if errors.Is(e, errBadThere) && !f.outside {
				bad++
			}
			err = fmt.Errorf("replication: repair block %d from %s: %w", block, f.To, e)
		}
		if bad == members && (members > 0 || try == repairTries-1) {
			return errNoCopy
		}
	}
	return err
}

// fetches are the questions to ask: a primary asks each backup, and then the learners, a backup asks the primary.
func (r *Replica) fetches(block uint64) []fetch {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.core.View()
	peers := v.Backups
	if v.Primary != r.id {
		if r.core.State() != StateBackup {
			return nil
		}
		peers = []viewsvc.ReplicaID{v.Primary}
	}
	ask := fetch{Cluster: r.opts.Cluster, Volume: v.Volume, From: r.id, View: v.Num, Block: block}
	var list []fetch
	for _, ask.To = range peers {
		list = append(list, ask)
	}
	ask.outside = true
	for _, ask.To = range r.core.Targets() {
		if !v.Has(ask.To) {
			list = append(list, ask)
		}
	}
	return list
}

func (r *Replica) fetchBlock(f fetch) ([]byte, wal.LSN, error) {
	ctx, cancel := context.WithTimeout(r.ctx, repairTimeout)
	defer cancel()
	r.mu.Lock()
	addr := r.peers[f.To].Addr
	r.mu.Unlock()
	conn, err := r.opts.Dial(ctx, addr)
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(r.rt.Now().Add(repairTimeout)); err != nil {
		return nil, 0, err
	}
	if _, err := conn.Write(msg{Type: msgFetch, View: f.View}.encodeJSON(f)); err != nil {
		return nil, 0, err
	}
	m, body, err := newReader(conn).next()
	if err != nil {
		return nil, 0, err
	}
	if m.Type == msgBlock && len(body) == 0 {
		return nil, 0, errBadThere
	}
	if m.Type != msgBlock || len(body) != blockdev.BlockSize {
		return nil, 0, fmt.Errorf("%w: type %d of %d bytes in answer to a fetch", errWire, m.Type, len(body))
	}
	return body, wal.LSN(m.A), nil
}

// ServeFetch answers a member that repairs a block. The present view's primary is answered by a backup, or a learner. A
// backup is answered by its view's primary, once that has begun to serve. The word of an old primary that was cut off
// does no harm: Store.Repair takes no content that is older than the block's last change here.
func (r *Replica) ServeFetch(conn net.Conn, f fetch) error {
	r.mu.Lock()
	v := r.core.View()
	ok := !r.closed && (r.core.Accepts(f.From, f.View) ||
		r.core.State() == StateOpen && v.Num == f.View && v.Has(f.From))
	if ok {
		r.running++ // the store stays open
	}
	r.mu.Unlock()
	if !ok {
		return errStaleView
	}
	defer r.ended()
	if err := conn.SetDeadline(r.rt.Now().Add(repairTimeout)); err != nil {
		return err
	}
	asOf := r.store.Marks().Committed // before the block is read
	data := make([]byte, blockdev.BlockSize)
	err := r.store.Read(f.Block, data)
	if _, bad := errors.AsType[*blockdev.CorruptBlockError](err); bad {
		data = nil
	} else if err != nil {
		return err
	}
	_, err = conn.Write(msg{Type: msgBlock, View: f.View, A: uint64(asOf)}.encode(data))
	return err
}
