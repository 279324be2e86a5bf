package viewsvc

import (
	"slices"
	"time"
)

// ViewNum numbers the views of a volume, from 1. 0 is "no view yet".
type ViewNum uint64

// NodeID names a storage server: what its operator calls it ("n1").
type NodeID string

// ReplicaID names one node's copy of one volume: a UUID, made when its directory is formatted. A disk that was
// wiped and formatted again is another replica, whatever its node is called (hazard 5).
type ReplicaID string

// VolumeID names a volume for ever: a UUID, made when it is created. A volume's name can be used again after
// it was deleted; its ID cannot.
type VolumeID string

// SyncMode says when a write is acknowledged.
type SyncMode string

// The sync modes of a volume.
const (
	SyncAlways SyncMode = "always" // stable on every member of the view
	SyncFlush  SyncMode = "flush"  // in the page cache of every member; stable on all at FLUSH and FUA
)

// View is who serves a volume. Views are compared by Num alone: the view service commits one view per number.
type View struct {
	Volume      VolumeID    `json:"volume"`
	Num         ViewNum     `json:"num"`
	Tenure      ViewNum     `json:"tenure"` // number of the view in which the present primary process took office
	Primary     ReplicaID   `json:"primary"`
	Backups     []ReplicaID `json:"backups"`
	DataLossGen uint64      `json:"data_loss_gen"` // how often an operator forced a promotion
}

// Members are the primary and the backups, the primary first.
func (v View) Members() []ReplicaID {
	if v.Primary == "" {
		return nil
	}
	return append([]ReplicaID{v.Primary}, v.Backups...)
}

// Has tells whether r is a member.
func (v View) Has(r ReplicaID) bool {
	return r != "" && (r == v.Primary || slices.Contains(v.Backups, r))
}

// Equal tells whether two views are the same in every field.
func (v View) Equal(w View) bool {
	return v.Volume == w.Volume && v.Num == w.Num && v.Tenure == w.Tenure && v.Primary == w.Primary &&
		v.DataLossGen == w.DataLossGen && slices.Equal(v.Backups, w.Backups)
}

// Volume is what was asked for when a volume was created, and how large it is by now.
type Volume struct {
	ID        VolumeID `json:"id"`
	Name      string   `json:"name"`
	Size      uint64   `json:"size"` // bytes; it only grows
	Sync      SyncMode `json:"sync"`
	Copies    int      `json:"copies"`     // members that the view service aims at
	MinCopies int      `json:"min_copies"` // members below which writes wait

	Wanted uint64 `json:"wanted,omitzero"` // the larger size that it is to get; 0: none

	Claim Claim `json:"claim,omitzero"` // who has it to itself now
}

// Role is what a replica says of itself in a ping; the view service believes its own views only.
type Role string

// The roles of a replica. replication/doc.go has the transitions.
const (
	RoleBlank      Role = "blank"      // formatted, holds nothing of the volume yet
	RoleLearner    Role = "learner"    // being brought up to date, outside the view
	RoleBackup     Role = "backup"     // member, mirrors the primary
	RoleOpening    Role = "opening"    // primary of a new tenure that does not serve yet
	RolePrimary    Role = "primary"    // primary, open to clients
	RoleHeld       Role = "held"       // primary that waits for an operator's resume (sync mode flush)
	RoleRecovering Role = "recovering" // restarted; was primary when it went down
	RolePoisoned   Role = "poisoned"   // its storage failed; never a member again
)

// ReplicaReport is what a node says of one of its replicas in each ping.
type ReplicaReport struct {
	Volume    VolumeID     `json:"volume"`
	Replica   ReplicaID    `json:"replica"`
	Role      Role         `json:"role"`
	View      ViewNum      `json:"view"` // newest that it has on stable storage
	Tenure    ViewNum      `json:"tenure"`
	LogEnd    uint64       `json:"log_end"` // LSNs
	Commit    uint64       `json:"commit"`
	Applied   uint64       `json:"applied"`
	Suspect   bool         `json:"suspect"`             // may have lost acknowledged writes (flush mode, machine crash)
	Copying   bool         `json:"copying,omitempty"`   // its image is a mixture: regions are being copied to it, or were when that ended
	Error     string       `json:"error,omitempty"`     // why it is poisoned, or takes no writes
	Full      bool         `json:"full,omitempty"`      // its disk and its log are full: it takes no writes
	Dead      []ReplicaID  `json:"dead,omitempty"`      // peers whose node refuses connections, seen by this replica
	Learners  []Progress   `json:"learners,omitempty"`  // primary only
	BytesLeft uint64       `json:"bytes_left"`          // what this member lacks, estimated; primary's view of it
	Lag       []Progress   `json:"lag,omitempty"`       // primary only: the backups' progress
	Check     *CheckReport `json:"check,omitempty"`     // of the check that it was ordered last
	OldestIO  int64        `json:"oldest_io,omitempty"` // ms: age of the oldest pending log write, or of the node's question to it (hazard 10)

	Room      uint64 `json:"room,omitempty"`       // bytes that its files are long enough for
	Serves    uint64 `json:"serves,omitempty"`     // primary only: the size that its clients are told
	GrowError string `json:"grow_error,omitempty"` // why it has no room for the size that is wanted
}

// CheckOrder orders the primary to compare the members' checksums and mend what differs, or every replica to scrub.
type CheckOrder struct {
	ID    uint64 `json:"id"`
	Scrub bool   `json:"scrub,omitempty"`
}

// CheckReport is what became of a CheckOrder.
type CheckReport struct {
	ID       uint64 `json:"id"`
	Blocks   uint64 `json:"blocks"`   // looked at so far
	Bad      uint64 `json:"bad"`      // blocks that differed, or did not fit their checksums
	Repaired uint64 `json:"repaired"` // of those
	Finished bool   `json:"finished"`
	Error    string `json:"error,omitempty"` // why it ended before everything was looked at
}

// Progress is how far the primary has brought another replica.
type Progress struct {
	Replica   ReplicaID `json:"replica"`
	Match     uint64    `json:"match"` // last LSN known to be stable there
	BytesDone uint64    `json:"bytes_done"`
	BytesLeft uint64    `json:"bytes_left"`
	Rate      float64   `json:"rate"` // bytes per second
}

// PingRequest is a node's sign of life. The service holds it back until there is news for the node, PingHold at
// the longest, so that a view reaches its members at once and a dead node's connection is seen to break.
type PingRequest struct {
	Cluster     string          `json:"cluster,omitempty"` // "" from a node that never joined one
	Node        NodeID          `json:"node"`
	Incarnation string          `json:"incarnation"` // new at every start of the node's process
	PID         int             `json:"pid"`
	Addr        string          `json:"addr"` // host:port where peers reach it
	NBD         string          `json:"nbd"`  // host:port or unix:path where gateways reach it
	Seq         uint64          `json:"seq"`  // grows within an incarnation
	Echo        uint64          `json:"echo"` // PingReply.Seq of the last reply seen: without a recent one a ping is no sign of life (hazard 9)
	News        uint64          `json:"news"` // PingReply.News of the last reply seen
	Bye         bool            `json:"bye,omitempty"`
	Replicas    []ReplicaReport `json:"replicas"`
	Absent      []Absence       `json:"absent,omitempty"`
}

// Absence is a volume of which a node has something on its disk, or is to have, but no replica in service.
type Absence struct {
	Volume VolumeID `json:"volume"`
	Error  string   `json:"error,omitempty"` // what keeps it from having one; "" while one is made or removed
}

// PingReply is what a node is to know and do.
type PingReply struct {
	Cluster string         `json:"cluster"`
	Seq     uint64         `json:"seq"`
	News    uint64         `json:"news"` // grows whenever anything below changed
	Volumes []VolumeOrders `json:"volumes"`
}

// VolumeOrders is one volume as a node with a copy of it is to see it.
type VolumeOrders struct {
	Volume   Volume      `json:"volume"`
	Replica  ReplicaID   `json:"replica"` // the node's copy; "" orders the node to format one and report it
	View     View        `json:"view"`
	Peers    []Peer      `json:"peers"`              // where every replica of the volume is, this one included
	Recruit  []ReplicaID `json:"recruit,omitempty"`  // to the primary: bring these up to date and propose to add them
	Handover ReplicaID   `json:"handover,omitempty"` // to the primary: hand the volume over to this member
	Floor    Floor       `json:"floor,omitzero"`     // what every member has: one that has less takes no office
	Resume   bool        `json:"resume,omitempty"`   // to a held primary: an operator accepts what was lost
	Check    *CheckOrder `json:"check,omitempty"`
	Delete   bool        `json:"delete,omitempty"` // the volume was deleted; so may be the copy
}

// Peer is where a replica is.
type Peer struct {
	Replica ReplicaID `json:"replica"`
	Node    NodeID    `json:"node"`
	Addr    string    `json:"addr"`
	NBD     string    `json:"nbd"`
	Alive   bool      `json:"alive"`
	Room    uint64    `json:"room,omitempty"` // as ReplicaReport has them
	Full    bool      `json:"full,omitempty"`
}

// Kind says what a proposal changes.
type Kind string

// The kinds of view change; doc.go has the rule for each.
const (
	KindFirst    Kind = "first"
	KindAdd      Kind = "add"
	KindRemove   Kind = "remove"
	KindPromote  Kind = "promote"
	KindResume   Kind = "resume"
	KindHandover Kind = "handover"
	KindForce    Kind = "force"
)

// Proposal asks for the view after Expect. The service accepts it only by the rules of doc.go.
type Proposal struct {
	Cluster string    `json:"cluster,omitempty"` // the proposer's cluster; a foreign one is refused
	Volume  VolumeID  `json:"volume"`
	Expect  ViewNum   `json:"expect"` // the view that the proposer is in; compare-and-swap
	Tenure  ViewNum   `json:"tenure"` // the proposer's tenure: Add, Remove and Handover only
	From    ReplicaID `json:"from"`   // the proposer; "" for the service itself
	// Try numbers the proposer's questions in its tenure, repetitions too, so that a refusal also refuses whatever it asked
	// before and had no answer to (V10). 0 is no number.
	Try     uint64      `json:"try,omitempty"`
	Kind    Kind        `json:"kind"`
	Primary ReplicaID   `json:"primary"`
	Backups []ReplicaID `json:"backups"`
	Reason  string      `json:"reason"`
}

// HistoryEntry is a row of the table of views.
type HistoryEntry struct {
	View   View      `json:"view"`
	Kind   Kind      `json:"kind"`
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"` // of the leader's clock; for people

	// Nodes has the node of every member, also of replicas that are gone by now.
	Nodes map[ReplicaID]NodeID `json:"nodes,omitempty"`
}

// VolumeStatus is a volume with all that the service knows of it now.
type VolumeStatus struct {
	Volume   Volume          `json:"volume"`
	View     View            `json:"view"`
	Peers    []Peer          `json:"peers"`
	Reports  []ReplicaReport `json:"reports"` // latest, also of dead nodes
	Floor    Floor           `json:"floor,omitzero"`
	News     uint64          `json:"news"` // grows whenever Volume, View or Peers changed
	Held     bool            `json:"held"`
	Deleting bool            `json:"deleting"`
	Problem  string          `json:"problem,omitempty"` // why the service makes no views for it, or it is not gone yet, and what to do
	Troubles []Trouble       `json:"troubles,omitempty"`
}

// Trouble is what keeps an assigned node from having a replica in service, in the node's words.
type Trouble struct {
	Node  NodeID `json:"node"`
	Error string `json:"error"`
}

// NodeStatus is a node as the service sees it.
type NodeStatus struct {
	ID    NodeID `json:"id"`
	Alive bool   `json:"alive"`
	PID   int    `json:"pid"`
	Addr  string `json:"addr"`
	NBD   string `json:"nbd"`
}

// ServerStatus is a view server.
type ServerStatus struct {
	ID     string `json:"id"`
	Addr   string `json:"addr"`
	Leader bool   `json:"leader"`
}

// ClusterStatus is everything, for `lockstep status`.
type ClusterStatus struct {
	Cluster string         `json:"cluster"`
	Volumes []VolumeStatus `json:"volumes"`
	Nodes   []NodeStatus   `json:"nodes"`
	Servers []ServerStatus `json:"servers"`
}
