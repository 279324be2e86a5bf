// Package viewsvc decides who serves a volume: the view service, and the client by which nodes, gateways and
// operators talk to it.
//
// A view names a volume's primary and backups. The service makes views one after the other, by the rules below,
// of which the first is: the primary of view n+1 was primary or backup in view n. What a member of a view must
// hold and do is replication's business; this package knows of data only what nodes report.
//
// # Promises
//
//   - One history: a volume has one view per number, on stable storage of a majority of the view servers before
//     anybody hears of it. Numbers grow by one.
//   - Safety comes from the apply rules alone (V1 to V9). They are checked where the Raft log is applied, on
//     replicated state only. The failure detector, clocks, pings and operators' impatience can make a needless
//     view, never a wrong one.
//   - Off the data path: with every view server dead the members of a view go on.
//   - With the service's state lost or rolled back, a volume is refused; no view is made from ignorance (V9).
//
// It does not promise: that a primary knows that it was replaced (replication fences it), that the node it calls
// dead is dead, a view when all members are gone, nor secrecy: the API has no authentication and belongs on a
// trusted network.
//
// # Parts
//
//	types.go               the vocabulary
//	state.go, rules.go     replicated state; pure, deterministic: State.Apply(Command)
//	resize.go              how a volume grows
//	claim.go               exclusive attachments: the part of the state that keeps a disk from being mounted twice
//	forget.go              nodes that are gone for good
//	drop.go                copies that nobody needs
//	floor.go               what every member has for certain, so that one that forgot is known
//	snapshot.go            its form on disk, versioned JSON
//	monitor.go, detector.go, health.go, probe.go, plan.go, orders.go, operator.go, status.go
//	                       the leader's soft state and its decisions; pure: Monitor takes pings, ticks and the
//	                       results of probes and gives commands and probes. It counts ticks and has no clock.
//	raft.go, mux.go        hashicorp/raft under the state; one listening address for Raft and HTTP
//	server.go, leader.go, api.go, queue.go, dir.go
//	                       drives the Monitor while this server leads; HTTP/JSON
//	client.go, find.go     finds the leader and calls it
//
// # Apply rules
//
// Proposals are accepted or rejected by State.Apply. cur is the volume's current view, n its number.
//
//	V1  Every kind: the volume exists and is not being deleted; Expect = n; the new number is n+1; primary and
//	    backups are different replicas that were registered for this volume.
//	V2  First: n = 0, the primary is the present replica of an assigned node, no backups. Nothing but First
//	    makes a view when n = 0.
//	V3  Add: From = cur.primary and Tenure = cur.tenure; same primary; members(n) plus at least one; each new
//	    one is the present replica of an assigned node; same tenure.
//	V4  Remove: From = cur.primary and Tenure = cur.tenure; same primary; members(n) less at least one; same
//	    tenure.
//	V5  Promote: by the service; another primary, from members(n); members ⊆ members(n); tenure n+1.
//	V6  Resume: by the service; same primary, whose process restarted; members ⊆ members(n); tenure n+1.
//	V7  Handover: From = cur.primary and Tenure = cur.tenure; another primary, from members(n); members ⊆
//	    members(n); tenure n+1.
//	V8  Force: by an operator; the primary is the present replica of an assigned node; backups ⊆ members(n);
//	    tenure n+1, DataLossGen + 1. It is the only exception from: primary(n+1) ∈ members(n).
//	V9  A proposal that expects a view above n is evidence that this service lost state: rejected for ever. The
//	    leader makes no view for a volume of which some replica reports a view above n.
//
//	V10 The questions of a tenure's primary are numbered (Try). One is refused when a later one was decided, that is
//	    accepted or refused. So a primary that is refused knows that none of its earlier questions, whose
//	    answers were lost, will be accepted any more.
//
//	V11 A volume's size only grows: to what an operator wants (Resize notes that), when a primary says that it serves that
//	    much (Grown; resize.go).
//
//	V12 A volume's floor is raised in the tenure that it speaks of, and only grows, until an operator forces.
//
// It follows that no view has the members and roles of the one before, Resume excepted. Rejections are a
// *ConflictError for an old Expect, else a *RuleError that names the rule.
//
// # Messages
//
// HTTP/1.1 and JSON on one TCP address, which Raft shares (mux.go). Errors are {code, message, ...}; errors.go
// has the codes. A server that does not lead answers 421 with the leader's address.
//
//	POST   /v1/ping                    PingRequest → PingReply    held until there is news, PingHold at most
//	POST   /v1/propose                 Proposal → View            Add, Remove, Handover
//	GET    /v1/watch?volume=V&news=N   → VolumeStatus             held until News ≠ N, WatchHold at most
//	GET    /v1/status                  → ClusterStatus
//	GET    /v1/views?volume=V          → []HistoryEntry           oldest first
//	GET    /v1/events?after=N&hold=1   → []RecentEvent            the leader's own; held until there is one, WatchHold at most
//	DELETE /v1/nodes/N                                            forget.go
//	POST   /v1/volumes                 Volume → Volume
//	DELETE /v1/volumes/V
//	DELETE /v1/volumes/V/copies/N                                 drop.go
//	POST   /v1/volumes/V/resize        {size}                     the volume has it when its status says so
//	POST   /v1/volumes/V/handover      {node} → View              held until done, HandoverTimeout at most
//	POST   /v1/volumes/V/resume
//	POST   /v1/volumes/V/check         {scrub} → {id}             its outcome is in the replicas' reports
//	POST   /v1/volumes/V/force         {node, reason} → View
//	POST   /v1/volumes/V/claim         ClaimChange → Claim        who has the volume to itself (claim.go)
//
// A node's life with the service: ping with an empty cluster ID → learn it. Orders without a Replica → format a
// copy, report it as blank → the service registers it (through Raft) → orders with the Replica and, soon, a view.
// A node whose home is empty again, or that lives without its copy for long, gets orders without a Replica again:
// the copy that it makes is a new replica, which replaces the lost one in the assignment, never in a view.
// The numbers Seq and News begin anew, far higher, with each leader: they are compared for equality, so a node
// carries the last ones from leader to leader without thought.
//
// # Who is alive
//
// A node is alive while its pings arrive that echo one of the last few replies; it has two ways to die:
// silence for TDead, counted in ticks from the last sign of life or from the start of the grace period; or at
// once, when it says goodbye, or when nothing listens at its address any more (connection refused) and no sign
// of life came since the suspicion. Suspicion is a broken ping connection, or a member's report. A reset
// connection by itself proves nothing. Nobody is silent before a full grace period after this server began to
// lead or was itself stopped for long (PauseAfter).
//
// A primary is replaced when its node is dead, its storage failed (poisoned), its replica is gone from its node,
// or its process restarted, if another member lives: the one with the longest log, those whose disk hangs after the
// others. It is also replaced when its disk hangs (health.go: a log write has been
// under way for 2 s), if that of another member does not; a replica whose disk hung is not recruited before its log writes
// were young for 10 s. The same for a primary whose disk is full, and its log with it; but that is recruited as soon as it
// has room. All living members come along; the replaced primary never does, also when it is back already: it
// returns as a learner, by the one path that is exercised most. A restarted primary without living backups
// resumes. Both wait shortly for members that this leader has not heard of yet. With no living member nothing
// moves. A dead backup is removed by the primary, not by the service: only the primary knows what it has
// acknowledged.
//
// A member below the floor (floor.go) has lost what it acknowledged: its directory is an old one that was put back, or its
// disk did not keep what it called stable. It is neither promoted nor resumed, and one that is primary is replaced; it
// comes back as a learner. If no other member lives the volume waits for one, or for an operator's force.
//
// A member is a suspect when it may have lost acknowledged writes (sync mode flush, its machine went down) and nobody who
// lost nothing has brought it up to date since. While a member that is none may come back, no suspect is promoted: the
// volume waits, and its status says for whom. A primary that restarted and is none resumes, with the living suspects as
// its backups. So that a machine that went down a moment ago counts as down, a backup is promoted in sync mode flush only when
// it has answered since the primary's trouble began. A primary that is held all the same gives way to a living member that
// is no suspect. A member is not waited for any more when its node has made another copy, or when an operator forces
// (V8). If all members live and are suspects, the one with the longest log is primary, and held until
// an operator resumes it (replication).
//
// # Timing
//
//	Tick          20 ms   the unit of all counting
//	TDead         2 s     silence of a dead node; also the grace period
//	PingHold      100 ms  how long a ping without news is held back
//	PauseAfter    500 ms  a tick that is later than this restarts the grace period
//	FirstWait     300 ms  a first primary waits for the replica that was assigned first
//	ResumeWait    300 ms  a failover waits for backups not heard of yet: a young leader, or nodes that just started
//	RecruitAfter  10 s    a volume short of copies waits for its own nodes before an idle one is assigned, and a
//	                      node that lives without its copy is ordered to make another
//	WellAfter     10 s    how long a replica's log writes are young before it is not sick any more
//	probes        0, 5, 15, 30, 50 ms after a ping connection broke
//	Raft          elections 500 ms of three servers, 50 ms of one
package viewsvc
