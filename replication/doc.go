// Package replication makes one volume out of several replicas: it orders the writes at the primary, mirrors them to
// the backups before they are acknowledged, takes part in view changes, and brings new and returning replicas up to
// date. A Node is a storage server; it holds a Replica for each volume it has a copy of, and a Replica that is an open
// primary is a blockdev.Device.
//
// The protocol descends from PacificA (Microsoft Research, 2008: configuration by compare-and-swap at a service that is
// off the data path) and from the view server of MIT's 6.824. Its decisions live in Core, which has no goroutine, clock,
// randomness or I/O; Replica is the driver that gives it events and carries out its effects. Replica's goroutines, locks
// and clock come from a Runtime: the simulator's runs one goroutine at a time, in an order that a seed decides, so that
// the driver is simulated as it stands and not as a model of it.
//
// # Words
//
// A view is (number, tenure, primary, backups). A tenure is the number of the view in which the present primary process
// took office; views that only add or remove a backup keep it. The tenure is the epoch of every record: one process
// writes in one epoch, ever (I3). R is the set of replicas whose acknowledgement the primary needs.
//
// # Roles
//
//	role        meaning                                               next
//	blank       a learner that was never in touch with a primary      as learner
//	learner     outside the view; takes what a primary sends          learner, backup, opening, held (both forced), recovering
//	backup      member; mirrors the primary, refuses clients          backup, learner, opening, held, recovering
//	opening     primary of a new tenure; clients refused              opening (another tenure), open, backup, learner
//	held        as recovering; may lack something (Suspects)          held (another tenure), opening, backup, learner, recovering
//	open        primary; serves clients                               opening (another tenure), backup, learner
//	recovering  primary of a tenure it did not begin, or below floor  recovering, opening, held (a new tenure), backup, learner
//	poisoned    its storage failed; does nothing any more             (none)
//
// Every role can become poisoned. A replica begins as recovering, backup or learner, by the view that it has stored.
// Core.setState asserts the table.
//
// # Messages between replicas
//
// The primary of a view opens one TCP connection, a stream, to each peer: the other members, and the learners that
// the view service told it to recruit. Every message has a fixed header (wire.go) with the sender's view number.
//
//	message   from     carries                                     answer
//	Hello     primary  cluster, volume, both replicas, view        Welcome | Stale
//	Welcome   peer     log end, applied, epoch index, copy state
//	Stale     peer     the newer view; the stream ends
//	Foreign   primary  you have committed what is not in our history; the stream ends
//	Start     primary  common point c: cut your log after c        Ack
//	Copy      primary  your log begins anew after LSN c; the size  Ack
//	Region    primary  blocks of 1 MiB of the disk as of an LSN; of lost ones the sum; the size
//	Sessions  primary  which requests of clients the regions have
//	CopyDone  primary  all regions were sent                       Ack (copied)
//	Append    primary  commit LSN and one frame                    Ack
//	Confirm   primary  commit LSN, nonce; may ask for a sync or a  Ack with the nonce, and what was granted
//	                   grant, or return all grants
//	View      primary  the next view of the same tenure
//	Digest    primary  a region's number, crc of its sums, commit  Sums
//	Sums      peer     nothing if its sums are the same, else they
//	Mend      primary  a block's content as of the commit LSN
//	Fetch     primary  a block's number, on a connection of its own  Block
//	Block     peer     its content as of an LSN; nothing if it is bad there, too
//	Ack       peer     written LSN, durable LSN, view and tenure it is in, nonce, newest grant, whether it is a suspect
//
// # Steps
//
//  1. Write. The committer takes what is queued, under the lock that a closing session also takes, gives it LSNs and
//     makes one frame; sends the frame to every stream; then writes and syncs its own log. commit is the minimum over
//     R of what is durable (sync mode always) or written (mode flush, while R has two or more). Whoever moves commit
//     makes the records visible and completes the requests. While the view has fewer than min_copies members nothing is
//     ordered, and what was ordered before is not answered.
//  2. Read. Answered from committed data when, after the request was taken from the client, every other member of R has
//     confirmed the primary's present view; or at once if after that moment the lease still runs (Leases, below).
//     With R = {self} nothing needs to be asked: no other replica can be primary before this one proposes it.
//  3. View change. A replica stores a view (fsync) before it acts in it (I1). A replica that finds itself the primary
//     of a new tenure appends a VIEW record after its whole log and opens when all of R has it and its own promise to
//     another primary is over. The others cut what is not in the primary's log when its stream reaches them.
//  4. Recruit. A learner is brought up to date while writes go on, put into R, and then proposed as a member
//     (Recruiting, below).
//  5. Remove. A primary proposes the view without a member that has not answered for 2 s, that refuses connections, that
//     the view service calls dead while it has no stream, or that has lacked for 2 s what is stable at the primary (a disk
//     or a link that is slow; not where writes would have to wait without it). It goes on waiting for that member
//     until such a view is received. A member whose disk and log are full ends its stream and says so to the view service,
//     and to who dials; a primary that is full is replaced by a member with room, and one that is alone in its view
//     gives its clients ENOSPC after a second, until there is space (full.go). A member that went though its connection
//     stood has a trial before it joins again: as a learner it has to keep pace, within half a second, for 3 s the first
//     time and twice as long each further time.
//  6. Repair. A block of the primary's image that fails its checksum is fetched from a backup, as of the backup's commit
//     point; the store refuses it if the block may have changed since, and it is fetched again. A learner is asked as well,
//     and believed if the checksum here says that this was the content.
//     A gateway that sends a write again, here or to the next primary, is answered and the write is not carried out a
//     second time (replay.go: R1–R3).
//  7. Exclusive attachment. The view service says who has the volume to itself (viewsvc.Claim), with the orders; the
//     primary refuses everybody else, but who was there before while the owner neither holds the claim nor is attached,
//     and ends sessions that a claim has ended. It serves clients only after orders of its own tenure, which have every
//     claim that was made before.
//  8. Handover. The primary takes no new writes, waits until the successor has everything, returns its grants, and when
//     the successor has heard of that proposes it; not while it is a suspect. No timeout is involved.
//  9. Verify (ordered by an operator). The primary sends digests of the regions' checksums down its streams, each taken and
//     queued under the lock under which commit moves, so that a member compares it with its own committed state as of
//     the very same LSN. What differs is replaced by what most members have, else by what the primary has.
//
// # Recruiting
//
// The last common (epoch, LSN) is found from the two epoch indexes. There are three ways from there.
//
//   - The primary's log reaches back to it: the log is shipped from there.
//   - It does, and takes clearly more than the blocks that it changed (written over, or in small frames): its headers tell
//     these blocks, and they alone are copied. A replica that was away for a short while is sent what differs, once.
//   - It does not: the learner's log begins anew at the primary's commit point, and every region changed since the
//     learner's commit point is copied while new frames flow.
//
// A block that is bad here and, as they say, with all other members is copied as lost: an error there, too, until a client
// writes it. While it is copied to, a learner hears of commit points in the order of what it is sent: no region is older
// than what it may have applied (I13).
//
// When the copy is complete and the learner's log is close to the commit point, the primary puts it into R: commit waits
// for it from there on. When it has all that is committed it is proposed. If the answer is lost it stays in R, until a newer
// view is seen or a later try refused, which refuses the earlier ones with it (I8; viewsvc V10).
//
// What is sent yields to clients, but for the log, of which a learner is sent more than clients write (pace.go). One that
// does not arrive all the same is sent all that it takes; if that does not help, or it is about to lose its place in the
// log, clients are slowed down, by milliseconds a frame, and not for ever (approach.go).
//
// A replica that has committed what is not in the history, after an operator's forced promotion or resumption, is disowned:
// its node sets it aside and makes another (outcast.go). So does the node of a replica that is damaged when it is opened,
// once a view goes on without it.
//
// # Suspects
//
// In sync mode flush a crash of its machine can take from a member what it acknowledged. A member that starts after one, in
// another boot and not after a stop in good order, is a suspect: it tells the view service and, in its Acks, its primary.
// It is none any more, on its disk before it says so, when it has as durable all that a primary had when its stream began:
// a primary that sends anything lacks nothing. One that is promoted all the same is held. It begins no tenure, for a VIEW
// record would have the others cut what it lacks; the view service takes the office from it when a member that lacks
// nothing lives, else an operator resumes it.
//
// # Growing
//
// An operator wishes for a larger volume. Every replica makes room; when all members have, the primary orders another VIEW
// record, with the size in it, and a replica takes the size on before it has the record. When that is committed, clients
// that come are told the size. grow.go has the reasons.
//
// # Leases
//
// A Confirm on behalf of reads also asks for a grant of G: the peer promises not to open a tenure of its own (Opening →
// Open) for G from the moment when it took the request from its stream. The primary relies on a grant for
// L = 0.8 G from the moment when it asked (one clock may be a fifth slower), and holds a lease while it relies on a grant
// of every other member of R. Whoever can become primary of the next tenure is in R (I2, I8), so while the lease runs
// nobody else is open, and what this replica has committed is everything that was acknowledged.
//
//   - G is between 15 and 300 ms: three times what the later of the members' answers take, not counting single ones that
//     are later than others by far. It is in each request, and a peer refuses to promise more. After a restart a replica
//     waits 300 ms before it opens: it does not know what it promised.
//   - A promise ends early when the primary returns it (handover), or answers in the new primary's tenure: then it has
//     left the one in which it relied on it. Otherwise only its time ends it. A connection that breaks, or a
//     port that refuses connections, proves nothing: a firewall can do either to a primary that goes on serving.
//   - Only reads ask: the first one, and the first after each sixth of G. A volume that is not read gives no promises and
//     fails over as fast as without leases; one that is read waits up to G (15 ms where answers come in 5 ms) longer.
//     A lapsed lease costs a confirmation, never an error.
//   - Time is CLOCK_BOOTTIME, which goes on while a machine sleeps, and is given to Core with its events. Where it is not
//     made from a counter in the processor (tsc, the ARM counter) a node neither asks nor promises, and every read
//     is confirmed; so also with --reads confirm, which is for machines whose clock can be stopped from outside: a
//     virtual machine that is migrated, or goes on from a snapshot, while it runs.
//   - The clock is read after the request was taken from the client, and that once is enough. A lease that runs then
//     makes the answer right as of then, and what is committed here later is history, too; so it is the value of some
//     moment between request and answer, also if the process is stopped for a minute in between.
//
// # Invariants
//
// Behind each is what asserts it, or what it holds by. A broken one is a programmer's error and panics, unless it can come
// from the disk or the wire: then it is an error.
//
//	I1  View numbers only grow, on disk, before the first act in the view.            Core.adopt; Replica.settle (EffectSaveView)
//	I2  primary(n+1) ∈ members(n); members(n+1) ⊆ members(n) ∪ {proposed by primary(n)}.   viewsvc
//	I3  One writer per epoch.                                                         Core.adopt: who did not begin a tenure, or may have forgotten it, recovers
//	I4  Equal (epoch, LSN) ⇒ equal content and prefix.                                wal: every frame names the sum of the one before
//	I5  commit ≤ durable at every member (mode always).                               Core.advance: the minimum over R; the walks, the simulator
//	I6  applied ≤ commit.                                                             blockdev.Store (W1); Core.CutTo
//	I7  An open primary's log has every acknowledged write.                           follows from I2, I8
//	I8  R ⊇ members of any view that the service may hold for this tenure.            Core.require
//	I9  At most one replica can commit or answer reads.                               Core.open, Core.ReadTicket; the random walks
//	I10 Learners, poisoned and blank replicas are never in a view.                    viewsvc; Core.addCaughtUp, proposeJoining; Replica.beginTenure
//	I11 Nothing is ordered from a session of another tenure or attach generation.     Replica.order
//	I12 Members are byte-equal once everything is applied.                            verify; end-to-end tests
//	I13 No region undoes what a learner has applied.                                  blockdev.Store.WriteRegion
//
// # Limits
//
// Without a lease (a lapsed one, --reads confirm) a read beside heavy writes may wait for a backup's sync. A backup whose
// log is a fraction of the primary's begins its stream anew whenever its log is full of records whose commit it has yet to
// hear of: it keeps up, and costs more. One whose log is too small for the frames that clients' writes make never joins.
//
// Where the log does not reach back a region of 1 MiB goes whole, also for one block of it. Its blocks' sums, exchanged first,
// would tell those that differ, but not for certain: of a few hundred million blocks that changed, as a copy of a TiB may have,
// one has the sum that it had before with a probability of some per cent, and nobody would ever notice. A record number for
// each block would be 2 GiB for a TiB, written with every block. So the log is what makes rejoining cheap: size it for the
// outages that are to be.
//
// A replica in whose log recovery finds a hole (wal: W7) is refused, whatever it was: a learner by its own view may be a
// member by a newer one and have acknowledged what the hole had, and its image may be ahead of what would be left of the
// log, so that it is neither a prefix of history nor a copy in the making. Its directory is moved away by people.
package replication
