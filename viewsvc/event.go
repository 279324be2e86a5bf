package viewsvc

// EventKind says what happened. Each constant names the fields of Event that it sets, besides Text.
type EventKind string

// The events of a view server.
const (
	EventLeading       EventKind = "leading"        // this server leads from now on
	EventFollowing     EventKind = "following"      // it does not any more
	EventView          EventKind = "view"           // View was made by Change: Volume, View, Change
	EventVolumeCreated EventKind = "volume_created" // Volume
	EventVolumeDeleted EventKind = "volume_deleted" // Volume
	EventVolumeGone    EventKind = "volume_gone"    // the last copy of a deleted one: Volume
	EventVolumeResize  EventKind = "volume_resize"  // a larger size is wanted: Volume, Text
	EventVolumeGrown   EventKind = "volume_grown"   // it is there: Volume, Text
	EventClaim         EventKind = "claim"          // who has a volume to itself changed: Volume, Text
	EventVolumeRefused EventKind = "volume_refused" // V9: Volume
	EventAwaited       EventKind = "awaited"        // no suspect is promoted before a member is back: Volume, Node, Replica
	EventBelow         EventKind = "below"          // a member has lost acknowledged writes: Volume, Node, Replica
	EventUnknownVolume EventKind = "unknown_volume" // a node holds a copy of a volume that never was: Node, Volume
	EventNodeAlive     EventKind = "node_alive"     // Node
	EventNodeRestarted EventKind = "node_restarted" // a new process pings: Node
	EventNodeDead      EventKind = "node_dead"      // Node
	EventNodeForgotten EventKind = "node_forgotten" // by an operator: Node
	EventNodeRefused   EventKind = "node_refused"   // foreign or duplicate: Node, Err
	EventReplica       EventKind = "replica"        // a copy was registered: Volume, Node, Replica
	EventCopyDropped   EventKind = "copy_dropped"   // an operator wants a spare copy removed: Volume, Node
	EventRejected      EventKind = "rejected"       // a command of this service was rejected: Err
	EventPaused        EventKind = "paused"         // this server did not run for long; the grace period starts anew
	EventSick          EventKind = "sick"           // a replica's disk hangs: Volume, Replica
	EventWell          EventKind = "well"           // it works again, and has for a while: Volume, Replica
	EventRaft          EventKind = "raft"           // a warning of the Raft library
)

// Event is something that an operator may want to read or count. ServerOptions.OnEvent gets it.
type Event struct {
	Kind    EventKind
	Volume  VolumeID
	Node    NodeID
	Replica ReplicaID
	View    View
	Change  Kind
	Text    string // for people: why, or what to do
	Err     error
}
