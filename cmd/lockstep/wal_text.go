package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"lockstep/blockdev"
	"lockstep/wal"
)

// dumper renders `wal dump`: for people, or for programs.
type dumper interface {
	replica(x *blockdev.Inspection)
	frame(f wal.Found, from, to wal.LSN) error
	end(log wal.Inspection, problems []wal.Problem) error
}

type textDump struct {
	w       io.Writer
	segment string // of the last frame
}

func (d *textDump) replica(x *blockdev.Inspection) {
	if m := x.Meta; m != nil {
		fmt.Fprintf(d.w, "replica %s of volume %s, cluster %s\n", m.Replica, volumeText(m.Identity), m.Cluster)
		fmt.Fprintf(d.w, "%s, log of %d segments of %s, salt %016x\n\n", formatSize(m.Size), m.Segments, formatSize(uint64(m.SegmentBytes)), m.Salt)
	}
	for i, s := range x.Slots {
		switch {
		case s.Err != nil:
			fmt.Fprintf(d.w, "meta slot %d: %v\n", i, s.Err)
		case x.Meta == &x.Slots[i].Meta:
			fmt.Fprintf(d.w, "meta slot %d: generation %d, counts\n", i, s.Meta.Generation)
			d.meta(s.Meta)
		default:
			fmt.Fprintf(d.w, "meta slot %d: generation %d\n", i, s.Meta.Generation)
		}
	}
	fmt.Fprintln(d.w)
}

func volumeText(id blockdev.Identity) string {
	if id.VolumeName == "" {
		return id.Volume
	}
	return fmt.Sprintf("%s (%s)", id.VolumeName, id.Volume)
}

func (d *textDump) meta(m blockdev.ReplicaMeta) {
	state := "stopped without notice"
	if m.Clean {
		state = fmt.Sprintf("stopped in good order with record %d", m.CleanEnd)
	}
	fmt.Fprintf(d.w, "  opened %d times, %s, boot %s\n", m.Incarnation, state, m.BootID)
	if m.Copying {
		fmt.Fprintln(d.w, "  image is being copied from another member")
	}
	if m.Growing != 0 {
		fmt.Fprintf(d.w, "  growing to %s\n", formatSize(m.Growing))
	}
	if m.Blank {
		fmt.Fprintln(d.w, "  log is to be erased")
	}
	per := wal.Pos(m.SegmentBytes / blockdev.BlockSize)
	c := m.Checkpoint
	fmt.Fprintf(d.w, "  checkpoint record %d, then %02d.seg byte %d, sum %08x\n", c.LSN,
		c.Pos/per%wal.Pos(m.Segments), c.Pos%per*blockdev.BlockSize, c.Chain)
	fmt.Fprintf(d.w, "  committed record %d\n", m.Commit)
	for _, e := range m.Epochs {
		fmt.Fprintf(d.w, "  epoch %d from record %d\n", e.Epoch, e.First)
	}
	if len(m.Protocol) > 0 {
		fmt.Fprintf(d.w, "  protocol %s\n", printable(m.Protocol))
	}
}

// printable is text as it is, on one line, and anything else as hex.
func printable(b []byte) string {
	if utf8.Valid(b) && !strings.ContainsFunc(string(b), func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return string(b)
	}
	return fmt.Sprintf("%x", b)
}

func (d *textDump) frame(f wal.Found, from, to wal.LSN) error {
	if d.segment != f.Segment {
		d.segment = f.Segment
		fmt.Fprintf(d.w, "%s\n", f.Segment)
	}
	h := f.Header
	if !f.HeaderOK {
		_, err := fmt.Fprintf(d.w, "  byte %d: frame, perhaps of record %d: %s\n", f.Offset, h.First, f.Reason)
		return err
	}
	sync := choose(h.Flags&wal.FlagSync != 0, ", sync", "")
	_, err := fmt.Fprintf(d.w, "  byte %d: frame of %s, %d bytes, epoch %d by %d, commit %d, stable %d, sum %08x on %08x, %s%s: %s\n",
		f.Offset, lsnRange(h.First, h.Records), f.Bytes, h.Epoch, h.Incarnation, h.Commit, h.Stable, f.Sum, h.Chain,
		time.Unix(0, h.Time).UTC().Format(time.RFC3339Nano), sync, f.State)
	if f.Reason != "" {
		_, err = fmt.Fprintf(d.w, "    damaged: %s\n", f.Reason)
		return err
	}
	for i := range f.Frame.Records() {
		r, _, _ := f.Frame.Record(i)
		if lsn := h.First + wal.LSN(i); lsn >= from && lsn <= to {
			_, err = fmt.Fprintf(d.w, "    %d %s\n", lsn, recordText(r))
		}
	}
	return err
}

func lsnRange(first wal.LSN, n uint32) string {
	if n == 1 {
		return fmt.Sprintf("record %d", first)
	}
	return fmt.Sprintf("records %d-%d", first, first+wal.LSN(n)-1)
}

func recordText(r wal.Record) string {
	var s strings.Builder
	s.WriteString(r.Kind.String())
	switch r.Kind {
	case wal.KindWrite, wal.KindZero, wal.KindTrim:
		fmt.Fprintf(&s, " block %d", r.Block)
		if r.Count != 1 {
			fmt.Fprintf(&s, "-%d", r.Block+uint64(r.Count)-1)
		}
		if r.Flags&wal.RecordNoHole != 0 {
			s.WriteString(", no hole")
		}
		if r.Session != 0 {
			fmt.Fprintf(&s, ", request %d of session %x", r.Seq, r.Session)
		}
	case wal.KindView:
		fmt.Fprintf(&s, " %d", r.Block)
		if r.Seq != 0 {
			fmt.Fprintf(&s, ", %s", formatSize(r.Seq*wal.BlockSize))
		}
	case wal.KindAttach: // replication gives the fields their meaning
		fmt.Fprintf(&s, " %d session %x seq %d", r.Block, r.Session, r.Seq)
	}
	return s.String()
}

func (d *textDump) end(log wal.Inspection, problems []wal.Problem) error {
	fmt.Fprintf(d.w, "\n%d whole frames; the log ends with record %d\n", log.Frames, log.Recovery.End)
	return writeProblems(d.w, problems)
}

// writeProblems prints a line for each, first what matters.
func writeProblems(w io.Writer, problems []wal.Problem) (err error) {
	for _, harmless := range []bool{false, true} {
		for _, p := range problems {
			if p.Harmless == harmless {
				_, err = fmt.Fprintf(w, "%s%s\n", choose(harmless, "note: ", ""), p)
			}
		}
	}
	return err
}

func writeVerified(w io.Writer, v blockdev.Verified) {
	_ = writeProblems(w, v.Problems) // if standard output is gone, the exit code still tells
	if v.Sound() {
		fmt.Fprintf(w, "sound: %d frames, the log ends with record %d; %d of %d blocks are written and match, %d wait in the log\n",
			v.Log.Frames, v.Log.Recovery.End, v.Written, v.Blocks, v.Waiting)
	}
}
