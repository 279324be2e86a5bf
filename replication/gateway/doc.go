// Package gateway is the NBD server that clients talk to: it finds each volume's primary, and hides failovers.
//
// The lecture calls it the coordinator. A client attaches to an export named as the volume and never learns where
// the volume is served. The gateway keeps every request until it is answered; when the primary dies or is replaced,
// it finds the new one and sends there again what was not answered. The client sees a pause, not an error.
//
// # What it promises
//
//   - A change of role, a dead node, a dead view service and a partition never become an NBD error. Requests wait,
//     for ever by default (Options.Timeout).
//   - Each write takes effect once, as far as any client of any gateway can tell, whatever number of times it was
//     sent, over failovers and restarts of nodes (G12).
//   - With every view server dead, I/O goes on while the primary does; also for new clients of a volume that this
//     gateway has served before.
//   - Bounded memory: what is in flight is what the NBD server admits for each connection.
//
// # What it does not do
//
//   - It keeps nothing on disk, caches nothing, and orders nothing but overlapping writes.
//   - It does not remember for ever: a gateway that is cut off while blockdev.MaxSessions other clients write may have a
//     write carried out a second time. A write of more than 32 MiB, which is no atomic one, may be repeated from its
//     beginning.
//   - A gateway's successor does not fence it, unless it attaches under the same session (AttachOptions). After a crash
//     of the gateway itself, what its sockets still hold is under the node's rules alone, and a client that replays (the
//     kernel, qemu) is in the hands of those.
//   - Without Options.TLS it does not authenticate or encrypt: listen on a trusted network or a unix socket then.
//
// # Parts
//
//	gateway.go   Options, Start, Close; the nbd.Exporter
//	volume.go    one volume in use: its watcher, its route to the primary, the lock over what is in flight
//	session.go   one client connection: a blockdev.Session
//	upstream.go  the session's goroutine: connect, replay, reconnect, fence
//	hint.go      what a node that is no primary says of who is
//	flight.go    the requests in flight (pure: no I/O, no goroutine, no clock)
//	overlap.go   which of them overlap (pure)
//	exclusive.go clients that have a volume for themselves, and clients in the gateway's own process
//	event.go     what it tells its owner
//
// # How a request travels
//
//  1. The front connection's reader parses a burst and calls session.Submit. Under one hold of the volume's lock
//     each request enters the flight: it becomes ready, or waits for an overlapping write (G3).
//  2. The ready ones go to the upstream connection in one Conn.Submit. The front's own request objects are sent:
//     no copy, no allocation.
//  3. The upstream connection's reader hands answers back in bursts, or whoever submits does, with those that have come
//     (Conn.Poll). Under one hold of the lock they leave the flight, which may make others ready; then they are completed
//     to the front connection.
//
// A session has one goroutine beside these two readers, which connects and replays; while a primary answers it sleeps.
// A request that had to wait is sent by whoever made it ready: the reader of any session of the volume.
//
// # Rules
//
// Each has its reason; tests and panics cite the numbers.
//
//   - G1 A primary's answer, or none. What a primary answers goes to the client, errors too: a primary says "past
//     the end", "no space", "I/O error" only when that is true. Everything else (a connection that closes, an
//     export that is not there, a handshake that fails) is the gateway's own business. Linux turns every NBD error
//     into an I/O error, and file systems go read-only for it.
//
//   - G2 Replay. A request is in flight from Submit to its answer. After each reconnect all requests in flight of
//     the session are sent again in the order of their arrival, and before younger ones. Any could have been lost.
//
//   - G3 One writer per byte. Of the requests of a volume that change the disk (WRITE, TRIM, WRITE_ZEROES), on
//     whatever connections of this gateway, no two that overlap are with a primary at the same time: the later
//     waits until the earlier is answered, and so does one that overlaps only a waiting one. This makes replay
//     idempotent. A write W may be carried out at the old primary, not answered, and be carried out again at the
//     new one; between the two nothing else has changed W's bytes, so nobody can see that there were two. It also
//     frees replay from order between sessions: what is in flight together commutes.
//
//   - G4 Reads and flushes neither wait nor are waited for. A read R that is in flight together with a write W may
//     return the bytes before or after W, at its first sending or its last. (a) R after W was answered: R was sent
//     first when W was committed on every member, and only a primary of that or a later view answers. (b) R was
//     seen to return W's bytes while W was not answered: a primary shows committed bytes only, so W outlives every
//     failover, and its repetition writes the same bytes with nothing in between (G3); no later read goes back.
//     (c) R replayed after a younger W was answered: it returns W's bytes, allowed, since it was invoked before W's
//     answer and is answered after it. So holding reads back would buy nothing, and databases read beside their
//     writes all the time. A flush covers the writes answered before it was sent, on any session; those are in the
//     log of every member, thus of the new primary, and a replayed flush covers them there. A FUA write is a write.
//
//   - G5 No loose ends. A request that changes the disk, was sent, and is not waited for any more (its client hung
//     up, or Timeout passed) may still lie unread in a primary's socket and be carried out at any time. It keeps its
//     bytes, in the sense of G3, until its session has been fenced: attached once more, with a higher generation, at
//     a primary. Without this a client that reconnects, repeats its write and overwrites it could find the first
//     original on the disk. Such a session counts as a client until then.
//
//   - G6 A fence before a replay. Each upstream connection has the session's name and the next generation. A node
//     acknowledges it only when older generations are fenced there; a node that acknowledges in a later tenure has
//     fenced all of the earlier primary. Requests are handed to a connection only after that acknowledgement.
//     Duplicates are harmless, by G3; *the original that arrives after its replay was answered* destroys data. Generations
//     of a session that is exclusive begin with its claim's Start, which the view service counts: of two processes the one
//     that asked later wins, whatever their clocks say.
//
//   - G7 Go where the newest view says. A volume's route only moves to later views. When tenure or address
//     differ, the connection is cut, however alive it looks: the old primary may be paused, not dead. News also ends
//     every wait to reconnect. A node that refuses a session may say which later tenure it knows of, and where: a hint.
//     An older one is ignored; a later one moves the route once the node that it names has let the session in. The view
//     service has the last word: the next view that it tells of replaces a hint, and when the way that was hinted at
//     fails, its own is tried.
//
//   - G8 One connection at a time. A session dials only after its former connection reported that it is closed,
//     after which it completes nothing and touches no request's memory. A completion from any other connection than
//     the session's own is a bug, and panics.
//
//   - G9 Silence after Close. When session.Close returns, nothing is completed any more and no request object is
//     referenced; what G5 keeps are ranges.
//
//   - G10 A volume is its ID. If the name stands for another volume, or for none, the sessions end: the client's
//     disk is gone.
//
//   - G11 Alone means alone. An exclusive client is let in when the view service has its claim, the primary has let it
//     in knowing of that claim, and the view service has ended everybody else for good: in this order, so that whoever
//     fails on the way has harmed nobody. The claim is given up after the client's requests are answered or fenced. A
//     session that a claim has ended never comes back (viewsvc.Claim): its client's memory of the disk is out of date.
//
//   - G12 Numbers. A request gets a number when it is first sent, and keeps it: a slot, which no other request of the
//     session has at the time, and a sequence number, which grows from user to user of the slot. It travels as the NBD
//     cookie and goes into the log with what the request changes, so that every primary that comes recognises a
//     repetition, answers it and does not carry it out again (replication/replay.go). By G3 alone, without numbers, this
//     would hold among the clients of one gateway.
//     A session whose name its owner brought (AttachOptions) has a space of numbers of its own, new with each client:
//     those of its former process, or of the client before, are not known here, and a number that was used already would
//     be taken for a repetition and not be carried out.
//
//   - G13 A volume only grows. The size that the view service tells of is offered by the primary and by every later one, so
//     that an older session may use it at once; a status with a smaller one is out of date. A primary that
//     offers less is not connected to.
//
// # Locks
//
// Gateway.mu before volume.mu. Nothing of another package is called with either held, so no order with theirs. Between
// volume.mu and Conn.Submit a connection may end and its requests be sent on the next one: Submit then refuses them
// without touching them, for a connection that has ended refuses everything.
package gateway
