package wal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"lockstep/wal/vfs"
)

// InspectOptions say what log is to be looked at, and what its owner knows of it.
type InspectOptions struct {
	FS fs.FS // the log's directory; only read
	// Shape and salt as for Open. What is 0 is guessed from the files: the log has no word of it in itself.
	SegmentBytes int64
	Segments     int
	Salt         uint64
	// Start is where Open would begin; nil when that is not known. Then every whole frame is FrameFound.
	Start *Start
}

// FrameState says what a frame that lies in a log is to it.
type FrameState uint8

// The states of a frame.
const (
	FrameFound   FrameState = iota // whole; whether it belongs to the log is not known
	FrameLive                      // Open reads it: it follows the checkpoint
	FrameApplied                   // up to the checkpoint; kept for peers that lack it
	FrameLeft                      // left by an earlier lap; not in the log any more
	FrameBehind                    // behind the end: cut, torn by a crash, or out of reach behind damage
)

func (s FrameState) String() string {
	switch s {
	case FrameFound:
		return "found"
	case FrameLive:
		return "live"
	case FrameApplied:
		return "applied"
	case FrameLeft:
		return "left"
	case FrameBehind:
		return "behind"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Found is a frame that lies in a segment, whole or damaged.
type Found struct {
	Segment string // file name
	Offset  int64  // bytes into the segment
	Pos     Pos    // by the lap that the segment is in now; a FrameLeft was written in an earlier one
	Bytes   int
	State   FrameState
	Header  Header
	Sum     uint32
	// Reason says what is wrong; "" for a whole frame. Then Frame is set, and lives until the visit returns. With
	// HeaderOK the header at least, and the records, are as they were written.
	Reason   string
	HeaderOK bool
	Frame    Frame
}

// Problem is something that an inspection found to be wrong.
type Problem struct {
	Place string // "wal/03.seg at byte 4096", "meta", ...
	What  string
	// Harmless: a crash leaves it, and the next start repairs it.
	Harmless bool
	// Mended: the replica opens with it, and gets what is lost from another member, or can do without.
	Mended bool
}

func (p Problem) String() string { return p.Place + ": " + p.What }

// Inspection is what Inspect found, besides frames.
type Inspection struct {
	SegmentBytes int64
	Segments     int
	Salt         uint64
	Recovery     Recovery // what Open would find; zero without a Start
	Frames       int      // whole ones
	Problems     []Problem
}

// Inspect reads a log that nobody has open, and changes nothing. It tells visit of every frame, in the order of
// the log, damaged ones as well, and goes on whatever it meets. The error is visit's, or that of a directory that is
// no log at all.
func Inspect(o InspectOptions, visit func(Found) error) (Inspection, error) {
	x := &inspector{o: o, visit: visit}
	if err := x.open(); err != nil {
		return Inspection{}, err
	}
	defer closeAll(x.opened())
	if o.Start != nil {
		x.followLog(*o.Start)
	}
	err := x.scanPool()
	return x.out, err
}

type inspector struct {
	o     InspectOptions
	visit func(Found) error
	out   Inspection

	l     *Log // has the files; nothing is ever written through it
	names []string
	// live has the positions of the frames that Open would read.
	live map[Pos]bool
	// linked has the sums of the frames that lead, one after the other, to the checkpoint.
	linked map[frameName]bool
}

// frameName tells a frame from all others: the chain is a checksum over everything before.
type frameName struct {
	last LSN
	sum  uint32
}

func (x *inspector) problem(harmless bool, place, format string, args ...any) {
	x.out.Problems = append(x.out.Problems, Problem{Place: place, What: fmt.Sprintf(format, args...), Harmless: harmless})
}

func (x *inspector) mended(place, format string, args ...any) {
	x.out.Problems = append(x.out.Problems, Problem{Place: place, What: fmt.Sprintf(format, args...), Mended: true})
}

// open opens what there is of the pool, and finds out its shape.
func (x *inspector) open() error {
	names, err := fs.Glob(x.o.FS, "*.seg")
	if err != nil || len(names) == 0 {
		return fmt.Errorf("wal: inspect: %w", errors.Join(err, errors.New("there are no segments here")))
	}
	segments := x.o.Segments
	if segments == 0 {
		segments = max(len(names), MinSegments)
	}
	files := make([]vfs.File, segments)
	sizes := make([]int64, segments)
	for i := range segments {
		x.names = append(x.names, segmentName(i))
		files[i], sizes[i] = x.openSegment(segmentName(i))
	}
	for _, n := range names {
		if !slices.Contains(x.names, n) {
			x.problem(false, n, "is not one of the log's %d segments: move it away", segments)
		}
	}
	size := x.o.SegmentBytes
	if size == 0 {
		size = slices.Max(sizes) / BlockSize * BlockSize
	}
	for i, n := range sizes {
		if n >= 0 && n != size {
			x.problem(false, x.names[i], "is %d bytes long instead of %d: restore the file, or copy the replica anew", n, size)
		}
	}
	o := Options{SegmentBytes: size, Segments: segments, Salt: x.o.Salt}
	if size < BlockSize {
		closeAll(slices.DeleteFunc(files, func(f vfs.File) bool { return f == nil }))
		return fmt.Errorf("wal: inspect: the segments are empty")
	}
	x.l = &Log{o: o, segBlocks: Pos(size / BlockSize), files: files}
	if o.Salt == 0 {
		x.l.o.Salt = x.guessSalt()
	}
	x.out.SegmentBytes, x.out.Segments, x.out.Salt = size, segments, x.l.o.Salt
	return nil
}

// openSegment gives a segment and its length: -1 if it cannot be read, which is said.
func (x *inspector) openSegment(name string) (vfs.File, int64) {
	f, err := x.o.FS.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		x.problem(false, name, "is missing: restore the file, or copy the replica anew")
		return readOnly{err: err}, -1
	}
	if err != nil {
		x.problem(false, name, "cannot be read: %v", err)
		return readOnly{err: err}, -1
	}
	info, err := f.Stat()
	at, ok := f.(io.ReaderAt)
	if err != nil || !ok {
		f.Close()
		x.problem(false, name, "cannot be read: %v", err)
		return readOnly{err: fs.ErrInvalid}, -1
	}
	return readOnly{ReaderAt: at, f: f}, info.Size()
}

func (x *inspector) opened() []vfs.File { return x.l.files }

// guessSalt takes the salt of the first intact frame.
func (x *inspector) guessSalt() uint64 {
	b := make([]byte, maxHeadBytes)
	for _, f := range x.l.files {
		for p := range x.l.segBlocks {
			n, _ := f.ReadAt(b, int64(p)*BlockSize)
			if n < BlockSize {
				break
			}
			if le.Uint32(b) != frameMagic {
				continue
			}
			if size, reason := frameSize(b); reason == "" {
				head := headBytes(int(le.Uint32(b[offRecords:])), int(le.Uint32(b[offPayload:])))
				if head <= n && size > 0 && (Frame{b}).headIntact() {
					return le.Uint64(b[offSalt:])
				}
			}
		}
	}
	return 0
}

// followLog reads the log as Open would, with the same code, and says what Open would say.
func (x *inspector) followLog(start Start) {
	l := x.l
	if start.Pos > maxPos/2 {
		x.problem(false, "wal", "begins at position %d, which is out of bounds: the replica's metadata is damaged", start.Pos)
		return
	}
	x.live = map[Pos]bool{}
	x.linked = map[frameName]bool{}
	l.checkpoint = Start{LSN: start.LSN, Pos: start.Pos, Chain: start.Chain}
	l.end, l.endPos, l.endSum = start.LSN, start.Pos, start.Chain
	l.newest = start.Pos / l.segBlocks
	r := &x.out.Recovery
	r.End, r.Commit = start.LSN, start.LSN
	if start.Blank {
		x.problem(true, "wal", "is to be erased behind record %d: a copy began, and the next start erases it", start.LSN)
		return
	}
	defer func() { r.End, r.Commit = l.end, min(r.Commit, l.end) }()
	sc := scanner{l: l}
	for {
		f, at, err := sc.next()
		if err == nil && len(f.b) == 0 {
			if f, at = x.endOrRotten(&sc, start); len(f.b) == 0 {
				return
			}
		}
		if err != nil {
			name, off := l.segmentAt(at)
			x.problem(false, place(name, off), "%v", err)
			return
		}
		x.live[at] = true
		r.Frames++
		r.Commit = max(r.Commit, f.Header().Commit)
		l.end, l.endSum, l.endPos = f.Last(), f.Sum(), at+Pos(len(f.b)/BlockSize)
		l.newest = max(l.newest, at/l.segBlocks)
	}
}

// endOrRotten says what Open would make of what follows the good frames, and gives the frame of which only payload is bad.
func (x *inspector) endOrRotten(sc *scanner, start Start) (f Frame, at Pos) {
	l, r := x.l, &x.out.Recovery
	_, _, err := l.judge(sc, r, start)
	var corrupt *CorruptError
	switch {
	case errors.As(err, &corrupt) && sc.rotten:
		if f, err = sc.rottenFrame(); err == nil {
			r.Rotten = corrupt
			x.mended(place(corrupt.Segment, corrupt.Offset), "blocks of the records from %d on are lost: %s; the replica opens, and has them repaired by another member",
				corrupt.LSN, corrupt.Reason)
			return f, sc.badAt
		}
		x.problem(false, "wal", "%v", err)
	case errors.As(err, &corrupt):
		r.Corruption = corrupt
		x.problem(false, place(corrupt.Segment, corrupt.Offset), "record %d is lost: %s; %s", corrupt.LSN, corrupt.Reason, corrupt.Evidence)
	case err != nil:
		x.problem(false, "wal", "%v", err)
	case r.Torn:
		name, off := l.segmentAt(r.TornAt)
		x.problem(true, place(name, off), "%d pieces of unfinished or cut frames behind record %d: the next start erases them", r.Erased, l.end)
	}
	return Frame{}, 0
}

func place(segment string, off int64) string { return fmt.Sprintf("%s at byte %d", segment, off) }

// readOnly is a segment that is looked at. What would change it fails.
type readOnly struct {
	io.ReaderAt
	f   fs.File
	err error // of a segment that is not there
}

var errReadOnly = errors.New("wal: an inspection changes nothing")

func (r readOnly) ReadAt(b []byte, off int64) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	return r.ReaderAt.ReadAt(b, off)
}

func (r readOnly) Close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}

func (r readOnly) Size() (int64, error)               { return 0, errReadOnly }
func (r readOnly) WriteAt([]byte, int64) (int, error) { return 0, errReadOnly }
func (r readOnly) Truncate(int64) error               { return errReadOnly }
func (r readOnly) Sync() error                        { return errReadOnly }
func (r readOnly) PunchHole(int64, int64) error       { return errReadOnly }
func (r readOnly) StartWriteback(int64, int64)        {}
