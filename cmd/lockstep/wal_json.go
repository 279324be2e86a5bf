package main

import (
	"encoding/json"
	"io"
	"time"

	"lockstep/blockdev"
	"lockstep/wal"
)

// The lines of `wal dump --json` and `wal verify --json`; "type" tells them apart. As in status_json.go, fields are added
// only.
type (
	metaLine struct {
		Type        string       `json:"type"` // "meta"
		Slot        int          `json:"slot"`
		Error       string       `json:"error,omitempty"` // then nothing else
		Counts      bool         `json:"counts"`          // the next start goes by this slot
		Cluster     string       `json:"cluster,omitempty"`
		Volume      string       `json:"volume,omitempty"`
		VolumeName  string       `json:"volume_name,omitempty"`
		Replica     string       `json:"replica,omitempty"`
		Size        uint64       `json:"size,omitempty"`
		Growing     uint64       `json:"growing,omitempty"` // to that size
		Segments    int          `json:"segments,omitempty"`
		Segment     int64        `json:"segment_bytes,omitempty"`
		Generation  uint64       `json:"generation,omitempty"`
		Incarnation uint64       `json:"incarnation,omitempty"`
		Clean       bool         `json:"clean"`
		Copying     bool         `json:"copying"`
		Checkpoint  wal.LSN      `json:"checkpoint"`
		Commit      wal.LSN      `json:"commit"`
		Epochs      [][2]uint64  `json:"epochs,omitempty"` // epoch, first LSN
		Protocol    protocolText `json:"protocol,omitempty"`
	}
	frameLine struct {
		Type    string       `json:"type"` // "frame"
		State   string       `json:"state"`
		Segment string       `json:"segment"`
		Offset  int64        `json:"offset"`
		Bytes   int          `json:"bytes"`
		First   wal.LSN      `json:"first"`
		Epoch   wal.Epoch    `json:"epoch"`
		By      uint64       `json:"incarnation"`
		Commit  wal.LSN      `json:"commit"`
		Stable  wal.LSN      `json:"stable"`
		Sum     uint32       `json:"sum"`
		Chain   uint32       `json:"chain"`
		Time    time.Time    `json:"time"`
		Damage  string       `json:"damage,omitempty"`
		Records []recordLine `json:"records"`
	}
	recordLine struct {
		LSN     wal.LSN `json:"lsn"`
		Kind    string  `json:"kind"`
		Block   uint64  `json:"block"`
		Count   uint32  `json:"count"`
		Session uint64  `json:"session,omitempty"`
		Seq     uint64  `json:"seq,omitempty"`
	}
	problemLine struct {
		Type     string `json:"type"` // "problem"
		Place    string `json:"place"`
		What     string `json:"what"`
		Harmless bool   `json:"harmless"`
		Mended   bool   `json:"mended"`
	}
	endLine struct {
		Type   string  `json:"type"` // "end"
		Frames int     `json:"frames"`
		End    wal.LSN `json:"end"`
		// Of verify only.
		Sound   *bool  `json:"sound,omitempty"`
		Blocks  uint64 `json:"blocks,omitempty"`
		Written uint64 `json:"written,omitempty"`
		Waiting uint64 `json:"waiting,omitempty"`
	}
)

// protocolText is the protocol state as JSON, if it is that; else as text.
type protocolText []byte

func (p protocolText) MarshalJSON() ([]byte, error) {
	if json.Valid(p) {
		return p, nil
	}
	return json.Marshal(printable(p))
}

type jsonDump struct {
	enc *json.Encoder
	err error // the first
}

func newJSONDump(w io.Writer) *jsonDump { return &jsonDump{enc: json.NewEncoder(w)} }

func (d *jsonDump) line(v any) {
	if d.err == nil {
		d.err = d.enc.Encode(v)
	}
}

func (d *jsonDump) replica(x *blockdev.Inspection) {
	for i, s := range x.Slots {
		if s.Err != nil {
			d.line(metaLine{Type: "meta", Slot: i, Error: s.Err.Error()})
			continue
		}
		m := s.Meta
		line := metaLine{
			Type: "meta", Slot: i, Counts: x.Meta == &x.Slots[i].Meta, Cluster: m.Cluster, Volume: m.Volume, VolumeName: m.VolumeName,
			Replica: m.Replica, Size: m.Size, Growing: m.Growing, Segments: m.Segments, Segment: m.SegmentBytes, Generation: m.Generation,
			Incarnation: m.Incarnation, Clean: m.Clean, Copying: m.Copying, Checkpoint: m.Checkpoint.LSN, Commit: m.Commit,
			Protocol: m.Protocol,
		}
		for _, e := range m.Epochs {
			line.Epochs = append(line.Epochs, [2]uint64{uint64(e.Epoch), uint64(e.First)})
		}
		d.line(line)
	}
}

func (d *jsonDump) frame(f wal.Found, from, to wal.LSN) error {
	h := f.Header
	line := frameLine{
		Type: "frame", State: f.State.String(), Segment: f.Segment, Offset: f.Offset, Bytes: f.Bytes, First: h.First,
		Epoch: h.Epoch, By: h.Incarnation, Commit: h.Commit, Stable: h.Stable, Sum: f.Sum, Chain: h.Chain,
		Time: time.Unix(0, h.Time).UTC(), Damage: f.Reason, Records: []recordLine{},
	}
	if f.Reason == "" {
		for i := range f.Frame.Records() {
			r, _, _ := f.Frame.Record(i)
			if lsn := h.First + wal.LSN(i); lsn >= from && lsn <= to {
				line.Records = append(line.Records, recordLine{lsn, r.Kind.String(), r.Block, r.Count, r.Session, r.Seq})
			}
		}
	}
	d.line(line)
	return d.err
}

func (d *jsonDump) problems(list []wal.Problem) {
	for _, p := range list {
		d.line(problemLine{"problem", p.Place, p.What, p.Harmless, p.Mended})
	}
}

func (d *jsonDump) end(log wal.Inspection, problems []wal.Problem) error {
	d.problems(problems)
	d.line(endLine{Type: "end", Frames: log.Frames, End: log.Recovery.End})
	return d.err
}

func writeVerifiedJSON(w io.Writer, v blockdev.Verified) {
	d := newJSONDump(w)
	d.problems(v.Problems)
	sound := v.Sound()
	d.line(endLine{Type: "end", Frames: v.Log.Frames, End: v.Log.Recovery.End, Sound: &sound,
		Blocks: v.Blocks, Written: v.Written, Waiting: v.Waiting})
}
