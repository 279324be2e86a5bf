// Package nbd speaks the NBD protocol, as a server and as a client.
//
// The server exports a blockdev.Device. It is used at two places: a storage node exports its replicas, and the
// gateway exports volumes, whose Device forwards through this package's client. The specification is
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md; names of constants are its own, those that
// github.com/pojntfx/go-nbd/pkg/protocol has are taken from there.
//
// # What the server promises
//
//   - N1 In step. Whatever a client sends after a well-formed header, the server finds the start of the next
//     message, or closes the connection. Bytes from the wire never cause a panic.
//   - N2 Bounded. Every length is checked before memory is taken for it. A connection holds at most MaxInFlight
//     requests and MaxInFlightBytes of payload, all together MaxBytes; a request holds its share until its reply is in the
//     socket. When MaxBytes is used up, a connection still has one request at a time.
//   - N3 Nobody waits for a stuck client. Complete and Abort never block on a socket: what it does not take at once
//     is sent by the connection's writer goroutine.
//   - N4 A role change is not an error. A request that failed with blockdev.ErrSessionClosed gets no reply; the
//     connection is closed. Linux turns every NBD error into an I/O error, there is none that means "try again".
//   - N5 Nothing is lost at the end. After DISC, or when the client has only shut its sending side, requests that
//     were received complete and their replies are delivered before the connection is closed.
//   - N6 Fence before reuse. Session.Close has returned before any buffer of the session is used for something else.
//   - N7 GO acknowledges an attached session. Device.Attach, which fences older connections of the same session, has
//     returned before the client reads the acknowledgement.
//
// The client promises:
//
//   - N8 A request is completed by an answer to it, and once: an answer with the cookie of another, of an earlier user
//     of the slot, or of a request that was not sent whole, ends the connection.
//   - N9 After Handler.Closed nothing is completed, and no request's memory is read or written.
//   - N10 A read succeeds only when each of its bytes has come once, in whatever parts. A server's descriptors of extents
//     are taken up to the request's end and room, no further.
//
// What is not here: the oldstyle handshake, extended headers, TLS with passwords (PSK).
//
// # Handshake
//
// Fixed newstyle only, within HandshakeTimeout.
//
//	option             reply
//	EXPORT_NAME    1   size, flags, 124 zeroes (left out after NO_ZEROES); closes on any refusal
//	ABORT          2   ACK, then the connection is closed
//	LIST           3   one SERVER per export, ACK
//	STARTTLS       5   ACK, then a TLS handshake, and everything negotiated before is forgotten; ERR_POLICY without TLS
//	INFO           6   INFO_EXPORT; NAME, DESCRIPTION, BLOCK_SIZE when asked for; ACK
//	GO             7   the same, and transmission begins
//	STRUCTURED     8   ACK; errors, reads and block status are then answered with structured replies
//	LIST_META      9   META_CONTEXT for base:allocation, if asked for by name, by "base:" or by no query; ACK
//	SET_META      10   META_CONTEXT for base:allocation, if asked for by name; ACK. Replaces what was set before
//	any other          ERR_UNSUP
//
// A malformed option gets ERR_INVALID and one of more than 64 KiB ERR_TOO_BIG; more than 32 MiB closes the connection, and
// so does an unknown client flag. LIST_META and SET_META before STRUCTURED get ERR_INVALID; unknown namespaces and contexts
// are ignored. An export that this server cannot serve now (blockdev.ErrNotPrimary) closes the connection without a reply,
// so that a client which reconnects tries again; a blockdev.MovedError is told with ERR_UNKNOWN first, to clients that know
// what to make of it. The client sends STRUCTURED, SET_META and GO at once: a failover waits for
// one round trip.
//
// # TLS
//
//   - off: STARTTLS is refused. on: the client chooses. require: every option but STARTTLS and ABORT gets ERR_TLS_REQD, and
//     EXPORT_NAME, which has no error reply, closes the connection.
//   - A certificate directory has nbdkit's files: ca-cert.pem, server-cert.pem, server-key.pem; for clients client-cert.pem
//     and client-key.pem. It is looked at before each handshake; new files are used from then on, and files that make no
//     sense leave the old ones in use. TLS 1.2 at least.
//   - A client verifies the server's certificate, and its name, always; a server its clients' if VerifyPeer is set.
//   - Nothing that came in plain text is taken for encrypted: bytes behind STARTTLS, or behind its ACK, end the connection.
//   - A TLS connection is written to by the writer goroutine only, so each reply costs one more wake-up.
//
// # Sockets
//
// Listen takes "host:port" (with keep-alive, so that a client whose machine is gone gives its place free), "unix:/path"
// (a dead process's socket is replaced, a live one's is not; the mode is there before anybody finds the socket), or
// "systemd" (LISTEN_FDS and LISTEN_PID).
//
// # Transmission
//
//	command       flags              error replies
//	READ          DF (structured)    EINVAL past the end or over 64 MiB, EIO
//	WRITE         FUA                ENOSPC past the end or without room, EINVAL over 64 MiB, EPERM, EIO
//	DISC                             (no reply)
//	FLUSH                            EINVAL with a range, EIO
//	TRIM          FUA                EINVAL past the end, EPERM, EIO
//	CACHE                            EINVAL past the end. The device may read ahead
//	WRITE_ZEROES  FUA NO_HOLE        ENOSPC past the end, ENOTSUP for FAST_ZERO that would not be fast, EPERM, EIO
//	              FAST_ZERO
//	BLOCK_STATUS  REQ_ONE            EINVAL past the end or without its context, EIO
//	any other                        EINVAL
//
// With structured replies an error carries a text; a read leaves out its zeroes (OFFSET_HOLE for whole blocks of 4 KiB) and
// has at most 64 chunks, or one if DF asks for it. A block status tells of at most 8192 extents, joined where they are
// alike, and never of anything past the request's end. The client takes chunks in any order.
//
// An export is read-only if its device or its Exporter says so: READ_ONLY is set, TRIM and WRITE_ZEROES are not offered,
// and what would change the disk gets EPERM. Multi-conn is offered unless the export takes one connection
// only (Export.SingleConn), and means that a flush covers the writes acknowledged on any connection: it is
// blockdev.Device's promise.
//
// The end is that of the disk by now: NBD has no way to tell a client that it has grown, but one that knows may use all of it.
//
// FUA is taken on every command, as the specification asks, and means something on those that change the disk. Any
// other flag that the command does not have gets EINVAL. A request of length zero gets EINVAL. The payload of a WRITE
// that is refused is read and dropped. Replies come in the order of completion. Block sizes: minimum 1, preferred
// 4096, maximum 32 MiB, though up to 64 MiB is taken.
//
// # How a request travels
//
//  1. One reader goroutine per connection parses all requests that one read brought, and hands them to
//     Session.Submit as one burst. It never waits (for the socket, for a slot) while it holds a parsed burst.
//  2. Requests that complete during Submit are held back until it returns, so that the burst's replies leave in one
//     writev; not longer, though, than holdTime, and not more than holdReplies or holdBytes of data.
//  3. Whoever completes requests later sends the replies itself: one writev that does not block. A goroutine that finds
//     another one sending leaves its replies to it.
//  4. What the socket does not take goes to the writer goroutine, which sleeps otherwise.
//
// The client is built of the same parts: Conn.Submit never blocks, and its reader hands the replies that one read
// brought to Handler.Complete as one burst. Whoever has just submitted may take what has come already with Conn.Poll: on a
// busy host the answers to its last burst are often there, and the reader would have to be woken for them.
//
// # Locks
//
// A connection has one mutex, its outbox's. Nothing outside the package is called with it held: not Submit, Complete,
// Abort, Close, nor a Handler. A client's connection has another before it, which whoever reads replies holds while it
// calls the Handler.
package nbd
