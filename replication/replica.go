package replication

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// ReplicaOptions is what a Replica needs from its node.
type ReplicaOptions struct {
	Store   *blockdev.Store // opened; the Replica closes it
	Cluster string
	Volume  viewsvc.Volume // as the view service described it last; zero: as it was when the replica was last open

	// Propose asks the view service; it returns the view that the service holds then, also with a
	// *viewsvc.ConflictError, or a *viewsvc.RuleError.
	Propose func(context.Context, viewsvc.Proposal) (viewsvc.View, error)
	// Dial reaches another node; nil means TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Leases lets reads be answered under grants of the backups, and grants be given: Clock can be trusted.
	Leases bool
	// Clock is read where the core wants the time; nil means CLOCK_BOOTTIME, or the Runtime's time if there is one.
	Clock func() Instant
	// OnOutcast is called, with no lock held, when the volume's history went on without what this replica has
	// committed. It must not block.
	OnOutcast func()
	// RecruitRate is how many bytes a second go to a learner, beside those that clients write meanwhile; 0: as many as
	// clients do not notice.
	RecruitRate int64
	// OnEvent is told what happens. It must not call back into the Replica.
	OnEvent func(Event)
	// Runtime is what the replica's goroutines run in; nil means Go's own.
	Runtime Runtime
}

// hardState is what a replica must find again after a crash, beside its log. blockdev.Store keeps it.
type hardState struct {
	View     viewsvc.View   `json:"view"`
	Volume   viewsvc.Volume `json:"volume"`
	Suspect  bool           `json:"suspect,omitempty"`
	CopyBase wal.LSN        `json:"copy_base,omitempty"` // where the image was before the newest copy; for while the store is copying
}

// Learner tells, by what its store has kept, whether a replica was a member of no view that it knew of, and took from a
// primary what others had on stable storage already. It is a blockdev.StoreOptions.Learner.
func Learner(id blockdev.Identity, protocol []byte) bool {
	var hard hardState
	return json.Unmarshal(protocol, &hard) == nil && !hard.View.Has(viewsvc.ReplicaID(id.Replica))
}

// Replica is one node's copy of a volume in all its roles. When it is an open primary it serves as a blockdev.Device.
//
// Locks, in order: a session's mu, then nothing; mu, then a sendq's mu. Nothing is completed and no socket is written
// with mu held.
type Replica struct {
	opts  ReplicaOptions
	store *blockdev.Store
	id    viewsvc.ReplicaID

	atomic int // atomicBytes of the store

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	closing atomic.Bool
	rt      Runtime

	syncMu   sync.Locker  // held over store.Sync
	shipping atomic.Int32 // learners and members that are sent what is in the log or the image

	syncsMu sync.Mutex // guards syncs; taken last
	syncs   syncTimes

	syncWanted Alarm // to syncLoop
	room       Alarm // to roomLoop

	mu      sync.Locker // guards everything below
	work    Cond        // to the committer: something to order
	idle    Cond        // logBusy ended, a session's busy fell, a goroutine ended: who waits for it does not wait for long
	running int         // goroutines that Close waits for
	core    *Core
	hard    hardState

	ordersView viewsvc.ViewNum // newest view that orders came with (heardOrders)

	// logBusy is the right to write the log: to append, cut or begin it anew. The committer takes it for a frame, a
	// stream from a primary for a batch of frames. Whoever takes it checks his role after that.
	logBusy bool
	cuts    int // how often the log was cut; a sync that began before a cut says nothing about what came after

	// As primary.
	sessions   map[*session]struct{}
	named      map[string]*session // the newest generation of each named session, while it is attached
	memories   map[string]*memory
	queue      []queued // requests that have no LSN yet
	queueBytes int
	pending    []pendingReq // ordered, not committed; by LSN
	stableWait []pendingReq // committed, but to be stable before they are completed; by LSN
	readWait   []readReq    // reads without a confirmed ticket; by ticket
	readQueue  []readReq    // reads to be done by the readers
	readers    Cond
	reads      struct{ atOnce, confirmed uint64 } // since the start: under a lease or alone, and after a question to the peers
	beginView  viewsvc.View                       // a tenure whose VIEW record is to be appended; Num 0: none
	begun      viewsvc.ViewNum                    // newest tenure whose VIEW record was sealed: from then on end is right
	end        wal.LSN                            // last LSN that was given out
	growth     growth
	inflight   *frameBuf // sealed and sent, not yet in the log
	logged     uint64    // bytes of the frames that were sealed
	streams    []*stream // in the order in which they were opened
	nextStream uint64
	peers      map[viewsvc.ReplicaID]viewsvc.Peer
	askSync    bool // a flush waits: ask the peers to sync with the next Confirm

	follower  *follower           // the stream that this replica follows
	checked   viewsvc.CheckReport // of the check that was ordered last
	comparing *comparison         // of members, under way
	holding   time.Duration       // by which each frame is slowed down that learners may arrive; hold() adds to it
	full      int                 // ticks for which an open primary has had no room for writes
	failed    error               // why it is poisoned
	closed    bool
	pool      sync.Pool // of *frameBuf
}

// fill puts in what an owner has left to the replica.
func (o *ReplicaOptions) fill() {
	if o.Dial == nil {
		o.Dial = dialTCP
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	if o.OnOutcast == nil {
		o.OnOutcast = func() {}
	}
	if o.Runtime == nil {
		o.Runtime = goRuntime{}
		if o.Clock == nil {
			o.Clock = bootTime
		}
	}
	if rt := o.Runtime; o.Clock == nil {
		o.Clock = func() Instant { return Instant(rt.Now().UnixNano()) }
	}
}

// readHard reads what the store has kept, and what follows from how it was left.
func readHard(o ReplicaOptions) (hard hardState, err error) {
	id, kept := o.Store.Identity(), o.Store.Protocol()
	if len(kept) > 0 {
		if err := json.Unmarshal(kept, &hard); err != nil {
			return hard, fmt.Errorf("replication: protocol state of replica %s is unreadable: %w", id.Replica, err)
		}
	}
	switch {
	case o.Volume.ID != "":
		hard.Volume = o.Volume
	case len(kept) == 0:
		// The node was killed between the making of the replica and its first save. It never took part in anything; orders
		// will say the rest.
		hard.Volume = viewsvc.Volume{ID: viewsvc.VolumeID(id.Volume), Name: id.VolumeName, Size: id.Size, Sync: viewsvc.SyncAlways}
	}
	if string(hard.Volume.ID) != id.Volume {
		return hard, fmt.Errorf("replication: replica %s belongs to volume %s, not %s", id.Replica, id.Volume, hard.Volume.ID)
	}
	if hard.Volume.Sync == viewsvc.SyncFlush && len(hard.View.Backups) > 0 && hard.View.Has(viewsvc.ReplicaID(id.Replica)) &&
		!o.Store.CleanStart() && !o.Store.SameBoot() {
		hard.Suspect = true // the machine may have gone down with acknowledged writes in its page cache
	}
	return hard, nil
}

// OpenReplica starts a replica on an opened store. It takes part at once: as a follower when a primary calls
// (ServeStream), as a primary when Orders name it.
func OpenReplica(o ReplicaOptions) (*Replica, error) {
	hard, err := readHard(o)
	if err != nil {
		return nil, err
	}
	whole, err := atomicBytes(o.Store)
	if err != nil {
		return nil, err
	}
	o.fill()
	id, rt := viewsvc.ReplicaID(o.Store.Identity().Replica), o.Runtime
	m := o.Store.Marks()
	r := &Replica{opts: o, store: o.Store, rt: rt, id: id, atomic: whole, hard: hard, end: m.End,
		core: NewCore(Config{Self: id, Volume: hard.Volume.ID, Leases: o.Leases},
			Start{View: hard.View, End: m.End, Commit: m.Committed, Suspect: hard.Suspect, Now: o.Clock()}),
		syncMu: rt.Mutex(), syncWanted: rt.Alarm(), room: rt.Alarm(), mu: rt.Mutex(),
		sessions: map[*session]struct{}{}, named: map[string]*session{}, memories: map[string]*memory{},
		peers: map[viewsvc.ReplicaID]viewsvc.Peer{}}
	r.growth.offered.Store(r.store.Size())
	r.core.SetSync(hard.Volume.Sync)
	r.core.SetMinCopies(hard.Volume.MinCopies)
	r.work, r.idle, r.readers = rt.Cond(r.mu), rt.Cond(r.mu), rt.Cond(r.mu)
	r.pool.New = func() any { return new(frameBuf) }
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if err := r.saveHard(); err != nil {
		r.cancel()
		return nil, err
	}
	r.store.SetRepairer(r.repair) // it ends when ctx does
	r.mu.Lock()
	defer r.mu.Unlock()
	r.start(r.commitLoop) // each of these ends with Close
	r.start(r.tickLoop)
	r.start(r.roomLoop)
	r.start(r.syncLoop)
	for range readerCount {
		r.start(r.readLoop)
	}
	return r, nil
}

// start starts a goroutine that Close waits for, with mu held.
func (r *Replica) start(f func()) {
	r.running++
	r.rt.Go(func() {
		defer r.ended()
		f()
	})
}

func (r *Replica) ended() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
	r.idle.Broadcast()
}

// ID is the replica's name.
func (r *Replica) ID() viewsvc.ReplicaID { return r.id }

// closePatience is how long Close waits for what is under way, which goes on for so long only on a disk that hangs.
const closePatience = time.Minute

// Close ends all sessions and streams and closes the store. It does not wait for ever for a disk that hangs: then the error
// wraps blockdev.ErrDiskHangs, and the rest is done when the disk comes back, if the process still runs then.
func (r *Replica) Close() error {
	if r.closing.Swap(true) {
		return nil
	}
	var (
		err  error
		last atomic.Bool // the store is being closed, which has a limit of its own
		done = r.rt.Alarm()
	)
	r.rt.Go(func() { // ends with Close, or when the disk comes back
		r.quiesce()
		last.Store(true)
		err = r.store.Close()
		done.Ring()
	})
	for !done.Wait(context.Background(), closePatience) {
		if !last.Load() {
			return fmt.Errorf("replication: close replica %s: %w", r.id, blockdev.ErrDiskHangs)
		}
	}
	return err
}

// quiesce stops everything that goes on in the replica, and waits for it.
func (r *Replica) quiesce() {
	var a after
	r.mu.Lock()
	r.closed = true
	r.cancel()
	r.stepDown(&a)
	for _, s := range r.streams {
		s.stop()
	}
	if r.follower != nil {
		r.follower.conn.Close()
	}
	r.work.Broadcast()
	r.idle.Broadcast()
	r.readers.Broadcast()
	r.syncWanted.Ring()
	r.room.Ring()
	r.mu.Unlock()
	r.finish(&a)
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.running > 0 || r.logBusy { // a follower in ServeStream counts; a client may order its own write
		r.idle.Wait()
	}
}

// takeLog waits for the right to write the log, with mu held. It fails when the replica is closed.
func (r *Replica) takeLog() bool {
	for r.logBusy && !r.closed {
		r.idle.Wait()
	}
	if r.closed {
		return false
	}
	r.logBusy = true
	return true
}

func (r *Replica) releaseLog() {
	r.logBusy = false
	r.idle.Broadcast()
	if len(r.queue) > 0 || r.begins() {
		r.work.Broadcast()
	}
}

// tickLoop is the core's sense of time. It also finds out when the store failed behind everybody's back, in the applier's
// or the checkpoint's I/O.
func (r *Replica) tickLoop() {
	for sleep(r.ctx, r.rt, time.Second/TicksPerSecond) {
		if err := r.store.Err(); err != nil {
			r.fail(err)
		}
		var a after
		r.mu.Lock()
		r.core.Tick(r.opts.Clock())
		r.tickLearners()
		r.tickFull(&a)
		if r.comparing != nil {
			r.idle.Broadcast() // awaitDigests looks at the time
		}
		r.settle(&a)
		r.mu.Unlock()
		r.finish(&a)
	}
}

// roomLoop wakes those who wait for room in the log.
func (r *Replica) roomLoop() {
	for r.ctx.Err() == nil {
		r.room.Wait(r.ctx, forever)
		r.mu.Lock()
		r.work.Broadcast()
		r.mu.Unlock()
	}
}

// flushInterval is how long written records may stay unsynced in sync mode flush. They cannot be applied before.
const flushInterval = 200 * time.Millisecond

// syncLoop syncs the log when somebody asks, and by itself in sync mode flush, where nobody need ever ask.
func (r *Replica) syncLoop() {
	for r.ctx.Err() == nil {
		if !r.syncWanted.Wait(r.ctx, flushInterval) && !r.unsynced() {
			continue
		}
		r.syncNow()
	}
}

// unsynced tells whether something waits for the sync that nobody asks for.
func (r *Replica) unsynced() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hard.Volume.Sync == viewsvc.SyncFlush && r.core.durable < r.core.written
}

// syncStore syncs the log. One sync is in flight at a time.
func (r *Replica) syncStore() error {
	r.syncMu.Lock()
	defer r.syncMu.Unlock()
	began := r.rt.Now()
	err := r.store.Sync()
	r.noteSync(r.rt.Now().Sub(began))
	return err
}

// syncNow makes what is written durable and says so to whom it concerns.
func (r *Replica) syncNow() {
	r.mu.Lock()
	cuts := r.cuts
	r.mu.Unlock()
	if err := r.syncStore(); err != nil {
		r.fail(err)
		return
	}
	durable := r.store.Marks().Durable
	var a after
	r.mu.Lock()
	if cuts != r.cuts {
		r.mu.Unlock()
		return
	}
	r.core.Durable(durable)
	r.settle(&a)
	f := r.follower
	r.mu.Unlock()
	r.finish(&a)
	if f != nil {
		f.ackDurable()
	}
}
