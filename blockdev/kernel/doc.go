// Package kernel makes a Linux block device, /dev/nbdN, of an NBD server in this process.
//
// The kernel's nbd driver is a client. It gets one end of a socket pair, the server of this process has the other:
// there is no network between them that could fail, and the handshake is skipped, since both ends know the export.
// The driver is configured over generic netlink (family "nbd", Linux 4.12); where there is only the older ioctl
// interface, that is used, with less to offer.
//
// # What it promises
//
//   - While the process lives the device's socket lives, however long the server needs for an answer.
//   - The process may be killed and started again while the device is mounted: the kernel keeps its requests and
//     gives them to the next process (netlink only).
//   - Nobody's device is taken over by mistake: a live device carries the identifier of who made it.
//
// # Parts
//
//	netlink.go   messages and attributes of generic netlink (pure)
//	message.go   what is said to the driver and what it answers (pure)
//	endpoint.go  the socket to the kernel
//	driver.go    the driver over netlink
//	ioctl.go     the driver over ioctl
//	device.go    what /sys and /dev say of a device
//	pair.go      the socket pair
//	agent.go     the life of a device: attach, serve, attach again, detach
//	event.go     what the agent tells its owner
//
// # Messages
//
// All numbers are in the machine's byte order. A message is a header of 16 bytes (length, type, flags, sequence number,
// port), a generic header of 4 (command, version, two zeroes), and attributes: 2 bytes of length, which counts these
// four, 2 of type, the value, and zeroes up to a multiple of 4. Numbers are part of the kernel's interface.
//
//	CONNECT      1   INDEX (left out: any free device), SIZE_BYTES, BLOCK_SIZE_BYTES, TIMEOUT, DEAD_CONN_TIMEOUT,
//	                 SERVER_FLAGS, CLIENT_FLAGS, BACKEND_IDENTIFIER, SOCKETS
//	                 → CONNECT with INDEX, acknowledgement
//	DISCONNECT   2   INDEX → acknowledgement. The driver sends NBD_CMD_DISC on the socket
//	RECONFIGURE  3   INDEX, SIZE_BYTES, BACKEND_IDENTIFIER, SOCKETS → acknowledgement, also when no socket was wanted (K4).
//	                 Without SOCKETS: the device goes on, and has another size
//	LINK_DEAD    4   from the kernel, to the group "nbd_mc_group": INDEX
//	STATUS       5   INDEX or nothing → STATUS with DEVICE_LIST
//
//	attribute                type     attribute                type
//	INDEX                1   u32      SOCKETS              7   list of 1 {1: u32 descriptor}
//	SIZE_BYTES           2   u64      DEAD_CONN_TIMEOUT    8   u64, s
//	BLOCK_SIZE_BYTES     3   u64      DEVICE_LIST          9   list of 1 {1: u32 index, 2: u8 connected}
//	TIMEOUT              4   u64, s   BACKEND_IDENTIFIER  10   string (Linux 5.14; older ones ignore it)
//	SERVER_FLAGS         5   u64
//	CLIENT_FLAGS         6   u64
//
// # Rules
//
//   - K1 One connection. The order in which the kernel sends is kept only within a connection. And with several the driver
//     takes a socket for dead on which a request has waited for the block layer's time-out, whatever TIMEOUT says (K2): a
//     long failover would cost one socket after the other, and a failover is what this is for.
//
//   - K2 TIMEOUT is 0. With any other value the driver gives a request up, or its socket, because the cluster needs
//     longer for a failover than somebody thought. With 0 it only looks at old requests now and then, and sends those
//     again that went to an earlier socket. How often is the block layer's own time-out, 30 s unless set; it is set to
//     ReplayAfter, since that is how long a file system waits after the agent was started again.
//
//   - K3 DEAD_CONN_TIMEOUT is long. For so long the kernel holds requests while there is no agent. After it they fail,
//     and file systems go read-only.
//
//   - K4 A socket is served only if the kernel took it. RECONFIGURE succeeds without using the socket when the
//     driver has not yet noticed that the former one is dead. Both ends are in this process, so that an unused one shows:
//     after the kernel's end is closed here, the other reads end-of-file.
//
//   - K5 Fence before you serve. The kernel repeats requests on the new socket without knowing what became of them.
//     Before the first one is carried out, whatever the former agent sent to the storage must be beyond being carried
//     out: *the original that arrives after its repetition was answered* would bring back what it overwrites. It is for
//     Backend to see to that (cmd/lockstep does it with a session's name and its next generation; rule G6 of
//     replication/gateway).
//
//   - K6 One agent per device. The owner of an Agent holds a lock on what the device is called, from before Run
//     until after it.
//
//   - K7 A goodbye is not a failure. NBD_CMD_DISC means that somebody detached the device. Any other end of the
//     socket is an accident, and the device gets another socket, until the driver says that it is not configured.
//
//   - K8 An agent that stops without detaching closes its end of the socket last, after the requests it has were
//     answered or given up. The device then waits for the next agent (K3).
//
//   - K9 An agent never opens its own device. A thread that waits for a block device cannot be killed; it would keep the
//     process's end of the socket open after the rest of the process was, and the kernel would wait for an answer from
//     nobody. Even opening a device can read: the kernel looks for partitions.
//
//   - K10 A device is never larger than its disk: the backend serves a size before the kernel is told of it.
package kernel
