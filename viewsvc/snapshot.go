package viewsvc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// snapshotFormat is the version of the replicated state's form on disk, and maxSnapshotBytes a bound on it.
const (
	snapshotFormat   = 1
	maxSnapshotBytes = 256 << 20
)

// snapshot is a State as JSON. Part of the format; fields may be added, never renamed.
type snapshot struct {
	Format  int                       `json:"format"`
	Cluster string                    `json:"cluster"`
	Nodes   map[NodeID]NodeInfo       `json:"nodes"`
	Volumes map[VolumeID]*volumeState `json:"volumes"`
}

// Encode is the state's snapshot. Equal states give equal bytes.
func (s *State) Encode() ([]byte, error) {
	b, err := json.Marshal(snapshot{Format: snapshotFormat, Cluster: s.cluster, Nodes: s.nodes, Volumes: s.volumes})
	if err != nil {
		return nil, fmt.Errorf("viewsvc: encode snapshot: %w", err)
	}
	return b, nil
}

// DecodeState reads a snapshot. It refuses one whose views could not have come from Apply: better no service
// than one that goes on from damage.
func DecodeState(r io.Reader) (*State, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSnapshotBytes+1))
	if err != nil {
		return nil, fmt.Errorf("viewsvc: read snapshot: %w", err)
	}
	if len(b) > maxSnapshotBytes {
		return nil, fmt.Errorf("viewsvc: snapshot is larger than %d bytes", maxSnapshotBytes)
	}
	var snap snapshot
	if err := json.Unmarshal(b, &snap); err != nil {
		return nil, fmt.Errorf("viewsvc: decode snapshot: %w", err)
	}
	if snap.Format != snapshotFormat {
		return nil, fmt.Errorf("viewsvc: snapshot has format %d, this release reads %d: use the release that wrote it", snap.Format, snapshotFormat)
	}
	s := NewState()
	s.cluster = snap.Cluster
	for id, n := range snap.Nodes {
		if n.ID != id {
			return nil, fmt.Errorf("viewsvc: snapshot is damaged: node %q is %q", id, n.ID)
		}
		s.nodes[id] = n
	}
	for id, v := range snap.Volumes {
		if err := v.check(id); err != nil {
			return nil, fmt.Errorf("viewsvc: snapshot is damaged: volume %q: %w", id, err)
		}
		s.volumes[id] = v
	}
	return s, nil
}

// check holds what Apply keeps true of every volume.
func (v *volumeState) check(id VolumeID) error {
	if v == nil {
		return errors.New("is missing")
	}
	if v.Volume.ID != id || v.View.Volume != id {
		return errors.New("is another's")
	}
	if err := v.Volume.validate(); err != nil {
		return err
	}
	if v.Replicas == nil {
		v.Replicas = map[ReplicaID]NodeID{}
	}
	for i, a := range v.Assigned {
		if v.assignment(a.Node) != &v.Assigned[i] {
			return fmt.Errorf("node %q is assigned twice", a.Node)
		}
		if a.Replica != "" && v.Replicas[a.Replica] != a.Node {
			return fmt.Errorf("replica %q is unknown", a.Replica)
		}
	}
	return v.checkViews()
}

func (v *volumeState) checkViews() error {
	if v.View.Num == 0 {
		if v.View.Primary != "" || len(v.View.Backups)+len(v.History) != 0 {
			return errors.New("view 0 has members or a history")
		}
		return nil
	}
	if len(v.History) == 0 || !v.History[len(v.History)-1].View.Equal(v.View) {
		return fmt.Errorf("the history does not end with view %d", v.View.Num)
	}
	for i, e := range v.History {
		if i > 0 && e.View.Num != v.History[i-1].View.Num+1 {
			return fmt.Errorf("view %d follows view %d", e.View.Num, v.History[i-1].View.Num)
		}
		if e.View.Num == 0 || e.View.Tenure == 0 || e.View.Tenure > e.View.Num {
			return fmt.Errorf("view %d has tenure %d", e.View.Num, e.View.Tenure)
		}
		for _, r := range e.View.Members() {
			if v.Replicas[r] == "" {
				return fmt.Errorf("view %d has unknown member %q", e.View.Num, r)
			}
		}
		if e.View.Primary == "" {
			return fmt.Errorf("view %d has no primary", e.View.Num)
		}
	}
	return nil
}
