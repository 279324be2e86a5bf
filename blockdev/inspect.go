package blockdev

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"lockstep/wal"
)

// ReplicaMeta is what a meta slot says; doc.go has the fields.
type ReplicaMeta struct {
	Identity
	Generation   uint64
	Incarnation  uint64
	SegmentBytes int64
	Segments     int
	Salt         uint64
	Clean        bool   // the last stop was one
	Copying      bool   // B7: the image is not a prefix of history
	Blank        bool   // the log is to be erased
	Growing      uint64 // files may be long enough for that size; 0: for Size
	Checkpoint   wal.Start
	Commit       wal.LSN
	CleanEnd     wal.LSN
	BootID       string
	Epochs       EpochIndex
	Protocol     []byte
}

func (m meta) export() ReplicaMeta {
	return ReplicaMeta{
		Identity: m.ID, Generation: m.Generation, Incarnation: m.Incarnation,
		SegmentBytes: m.Segment, Segments: m.Segments, Salt: m.Salt,
		Clean: m.Flags&flagClean != 0, Copying: m.Flags&flagCopying != 0, Blank: m.Flags&flagBlank != 0,
		Checkpoint: wal.Start{LSN: m.Checkpoint.LSN, Pos: m.Checkpoint.Pos, Chain: m.Checkpoint.Chain,
			Blank: m.Flags&flagBlank != 0, Learner: m.Flags&flagCopying != 0, Durable: max(m.Commit, m.CleanEnd)},
		Commit: m.Commit, CleanEnd: m.CleanEnd, BootID: m.BootID,
		Growing: m.Growing, Epochs: slices.Clone(m.Epochs), Protocol: slices.Clone(m.Protocol),
	}
}

// MetaSlot is one of the two copies of the meta file: what it says, or why it says nothing.
type MetaSlot struct {
	Meta ReplicaMeta
	Err  error
}

// Inspection is a look into a replica's directory that nobody has open, for people and for doubts. It changes nothing:
// what it is given can only be read.
type Inspection struct {
	Slots    [2]MetaSlot
	Meta     *ReplicaMeta // the slot that OpenStore would go by; nil if there is none
	Problems []wal.Problem

	fsys fs.FS
}

// Inspect looks at the directory and its meta file, and goes on with whatever damage there is. The error says that
// there is no replica at all: ErrNotReplica, ErrHalfFormatted, or the file system's.
func Inspect(fsys fs.FS) (*Inspection, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("blockdev: inspect: %w", err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	switch {
	case slices.Contains(names, metaName), slices.Contains(names, walName):
	case len(names) > 0 && halfFormatted(names):
		return nil, fmt.Errorf("blockdev: inspect: %w", ErrHalfFormatted)
	default:
		return nil, fmt.Errorf("blockdev: inspect: %w", ErrNotReplica)
	}
	x := &Inspection{fsys: fsys}
	for _, n := range names {
		if !slices.Contains([]string{lockName, metaName, imageName, sumsName, regionsName, sessionsName, scrubName, walName}, n) {
			x.problem(true, n, "is none of a replica's files")
		}
	}
	x.readMeta()
	return x, nil
}

func (x *Inspection) problem(harmless bool, place, format string, args ...any) {
	x.Problems = append(x.Problems, wal.Problem{Place: place, What: fmt.Sprintf(format, args...), Harmless: harmless})
}

// readMeta reads both slots, and chooses as openMeta does.
func (x *Inspection) readMeta() {
	b, err := fs.ReadFile(x.fsys, metaName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		x.problem(false, metaName, "is missing: without it nobody knows whose replica this is; restore it, or copy the replica anew")
	case err != nil:
		x.problem(false, metaName, "cannot be read: %v", err)
	case len(b) != 2*metaSlotSize:
		x.problem(false, metaName, "is %d bytes long instead of %d", len(b), 2*metaSlotSize)
	}
	refused := false
	for i := range x.Slots {
		s := &x.Slots[i]
		if len(b) < (i+1)*metaSlotSize {
			s.Err = errors.Join(err, fmt.Errorf("%w: it is not there", errBadSlot))
			continue
		}
		m, err := decodeMeta((*[metaSlotSize]byte)(b[i*metaSlotSize:]))
		s.Meta, s.Err = m.export(), err
		place := fmt.Sprintf("meta slot %d", i)
		if newer, ok := errors.AsType[*VersionError](err); ok {
			refused = true
			x.problem(false, place, "%v", newer)
		} else if err != nil {
			// A crash in a save leaves one slot torn, and so does rot: the other has the same or newer content.
			x.problem(true, place, "%v; the other slot counts", err)
		}
	}
	for i := range x.Slots {
		if s := &x.Slots[i]; s.Err == nil && !refused && (x.Meta == nil || s.Meta.Generation > x.Meta.Generation) {
			x.Meta = &s.Meta
		}
	}
	if x.Meta == nil && len(b) > 0 && !refused {
		x.problem(false, metaName, "has no good slot: restore it, or copy the replica anew")
	}
}

// Log looks at the replica's log; see wal.Inspect.
func (x *Inspection) Log(visit func(wal.Found) error) (wal.Inspection, error) {
	sub, err := fs.Sub(x.fsys, walName)
	if err != nil {
		return wal.Inspection{}, err
	}
	o := wal.InspectOptions{FS: sub}
	if m := x.Meta; m != nil {
		o.SegmentBytes, o.Segments, o.Salt, o.Start = m.SegmentBytes, m.Segments, m.Salt, &m.Checkpoint
	}
	out, err := wal.Inspect(o, visit)
	for i, p := range out.Problems {
		if !strings.HasPrefix(p.Place, walName) {
			out.Problems[i].Place = walName + "/" + p.Place
		}
	}
	return out, err
}

// open opens one of the files beside the log and checks its length, which follows from the volume's size. What is wrong is
// said; then the result is nil.
func (x *Inspection) open(name string, length func(size uint64) int64) readerAtFile {
	want := length(x.Meta.Size)
	f, err := x.fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		x.problem(false, name, "is missing: restore it, or copy the replica anew")
		return nil
	}
	if err != nil {
		x.problem(false, name, "cannot be read: %v", err)
		return nil
	}
	r, ok := f.(readerAtFile)
	info, err := f.Stat()
	switch {
	case err != nil || !ok:
		x.problem(false, name, "cannot be read: %v", err)
	case info.Size() < want || info.Size() > max(want, length(x.Meta.Growing)):
		x.problem(false, name, "is %d bytes long instead of %d: restore it, or copy the replica anew", info.Size(), want)
	default:
		return r
	}
	f.Close()
	return nil
}

type readerAtFile interface {
	fs.File
	io.ReaderAt
}
