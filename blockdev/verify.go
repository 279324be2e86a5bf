package blockdev

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"lockstep/wal"
)

// maxProblemRuns is how many runs of bad blocks are told one by one.
const maxProblemRuns = 20

// Verified is what Verify looked at and found. A replica is sound when none of the problems but harmless ones is there.
type Verified struct {
	Log      wal.Inspection
	Blocks   uint64 // of the volume
	Written  uint64 // have a checksum: their content was compared
	Waiting  uint64 // are in the log, not yet in the image for sure: not compared
	Problems []wal.Problem
}

// Sound tells whether everything is as it should be, but for what a crash leaves.
func (v *Verified) Sound() bool {
	return !slices.ContainsFunc(v.Problems, func(p wal.Problem) bool { return !p.Harmless })
}

// Opens tells whether the replica can be used, and what is lost of it, if anything, be repaired from another member.
func (v *Verified) Opens() bool {
	return !slices.ContainsFunc(v.Problems, func(p wal.Problem) bool { return !p.Harmless && !p.Mended })
}

// Verify checks everything that can be checked of a replica that nobody has open: meta, every frame of the log and their
// chain, every block of the image against its checksum, the regions against the log and the checksums. It changes
// nothing. Damage is no error: the error says that verifying could not go on.
func (x *Inspection) Verify() (Verified, error) {
	v := verifier{x: x}
	log, err := x.Log(v.frame)
	if err != nil {
		x.problem(false, walName, "%v", err)
	}
	v.out.Log = log
	if x.Meta != nil {
		v.checkMeta()
		if err := v.checkFiles(); err != nil {
			return Verified{}, err
		}
	}
	v.out.Problems = slices.Concat(x.Problems, log.Problems, v.out.Problems)
	return v.out, nil
}

type verifier struct {
	x   *Inspection
	out Verified

	// waiting are the blocks that live frames change: the image may have them, not have them, or have half of them.
	waiting []span
	// changed has the newest applied record of each region that the log still knows of (B5).
	changed map[int]wal.LSN
	runs    int // of bad blocks
	more    uint64
}

// span is a range of blocks, to exclusive.
type span struct{ from, to uint64 }

func (v *verifier) problem(place, format string, args ...any) {
	v.out.Problems = append(v.out.Problems, wal.Problem{Place: place, What: fmt.Sprintf(format, args...)})
}

// mended is a problem with which the replica opens.
func (v *verifier) mended(place, format string, args ...any) {
	v.problem(place, format, args...)
	v.out.Problems[len(v.out.Problems)-1].Mended = true
}

// frame takes in what a frame of the log says about the image.
func (v *verifier) frame(f wal.Found) error {
	m := v.x.Meta
	if m == nil || f.Reason != "" || f.State != wal.FrameLive && f.State != wal.FrameApplied {
		return nil
	}
	place := fmt.Sprintf("%s/%s at byte %d", walName, f.Segment, f.Offset)
	blocks := m.Size / BlockSize
	if e, ok := m.Epochs.At(f.Header.First); ok && f.State == wal.FrameApplied && e != f.Header.Epoch {
		v.problem(place, "record %d is of epoch %d, meta says epoch %d", f.Header.First, f.Header.Epoch, e)
	}
	for i := range f.Frame.Records() {
		r, _, _ := f.Frame.Record(i)
		lsn := f.Header.First + wal.LSN(i)
		if r.Kind == wal.KindView && r.Seq > blocks { // B11
			v.problem(place, "record %d begins a volume of %d blocks, the replica has %d", lsn, r.Seq, blocks)
		}
		if r.Kind == wal.KindView || r.Kind == wal.KindAttach {
			continue
		}
		if r.Block >= blocks || uint64(r.Count) > blocks-r.Block {
			v.problem(place, "record %d reaches beyond the volume: %d blocks at block %d of %d", lsn, r.Count, r.Block, blocks)
			continue
		}
		if f.State == wal.FrameLive {
			v.waiting = append(v.waiting, span{r.Block, r.Block + uint64(r.Count)})
			continue
		}
		if v.changed == nil {
			v.changed = map[int]wal.LSN{}
		}
		for g := int(r.Block / RegionBlocks); g <= int((r.Block+uint64(r.Count)-1)/RegionBlocks); g++ {
			v.changed[g] = max(v.changed[g], lsn)
		}
	}
	return nil
}

// checkMeta compares what meta promises with what the log has.
func (v *verifier) checkMeta() {
	m, rec := v.x.Meta, v.out.Log.Recovery
	if known := max(m.Commit, rec.Commit); known > rec.End && rec.Corruption == nil && !m.Blank {
		v.problem(walName, "ends with record %d, but %d was committed: copy the replica anew", rec.End, known)
	}
}

// checkFiles compares image, sums and regions.
func (v *verifier) checkFiles() error {
	m := v.x.Meta
	v.out.Blocks = m.Size / BlockSize
	image := v.x.open(imageName, imageFileSize)
	sums := v.x.open(sumsName, sumsFileSize)
	regions := v.x.open(regionsName, regionsFileSize)
	for _, f := range []readerAtFile{image, sums, regions} {
		if f != nil {
			defer f.Close()
		}
	}
	if m.Growing != 0 {
		v.x.problem(true, metaName, "the files were being made for a volume of %d bytes, which has %d", m.Growing, m.Size)
	}
	if m.Copying {
		v.x.problem(true, imageName, "was being copied from another member: its content is not compared, the copy goes on at the next start")
		return nil
	}
	written := make([]bool, regionCount(m.Size))
	if image != nil && sums != nil {
		v.normalise()
		if err := v.compare(image, sums, written); err != nil {
			return err
		}
	}
	if regions != nil {
		v.checkRegions(regions, written)
	}
	return nil
}

// normalise sorts and merges the waiting spans.
func (v *verifier) normalise() {
	slices.SortFunc(v.waiting, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	merged := v.waiting[:0]
	for _, s := range v.waiting {
		if n := len(merged); n > 0 && s.from <= merged[n-1].to {
			merged[n-1].to = max(merged[n-1].to, s.to)
		} else {
			merged = append(merged, s)
		}
	}
	v.waiting = merged
	for _, s := range merged {
		v.out.Waiting += s.to - s.from
	}
}

// waits tells whether a block's newest version is in the log. Blocks are asked for in ascending order.
func (v *verifier) waits(block uint64) bool {
	for len(v.waiting) > 0 && v.waiting[0].to <= block {
		v.waiting = v.waiting[1:]
	}
	return len(v.waiting) > 0 && v.waiting[0].from <= block
}

// compare reads the whole image but for its holes, and holds each block against its sum. A page of sums at a time is
// 4 MiB of image.
func (v *verifier) compare(image, sums readerAtFile, written []bool) error {
	var (
		page [pageSize]byte
		data = wal.AlignedBuffer(sumsPerPage * BlockSize)
		bad  runs
		next = dataFinder{f: image, size: int64(v.x.Meta.Size)}
	)
	for first := uint64(0); first < v.out.Blocks; first += sumsPerPage {
		if _, err := sums.ReadAt(page[:], int64(first/sumsPerPage)*pageSize); err != nil {
			return fmt.Errorf("blockdev: verify: read checksums: %w", err)
		}
		n := min(sumsPerPage, v.out.Blocks-first)
		if bytes.Equal(page[:], zeroPage[:]) && !next.dataIn(int64(first)*BlockSize, int64(first+n)*BlockSize) {
			continue
		}
		if !v.readImage(image, first, data[:n*BlockSize], &bad) {
			continue
		}
		for i := range n {
			b := first + i
			sum := binary.LittleEndian.Uint32(page[i*4:])
			if HasData(sum) {
				v.out.Written++
			}
			written[b/RegionBlocks] = written[b/RegionBlocks] || sum != sumHole
			d := data[i*BlockSize : (i+1)*BlockSize]
			switch {
			case v.waits(b):
			case !HasData(sum) && !bytes.Equal(d, zeroPage[:]):
				bad.add(v, b, "holds data, the checksum says zeroes")
			case HasData(sum) && wal.BlockSum(b, d) != sum:
				bad.add(v, b, "content does not match the checksum")
			}
		}
	}
	bad.flush(v)
	if v.more > 0 {
		v.mended(imageName, "%d more blocks are bad", v.more)
	}
	return nil
}

// readImage reads a stretch of the image. Where that fails it is read block by block, and the blocks that cannot be read
// are told; the rest of the stretch is not compared.
func (v *verifier) readImage(image io.ReaderAt, first uint64, data []byte, bad *runs) bool {
	if _, err := image.ReadAt(data, int64(first)*BlockSize); err == nil {
		return true
	}
	for b := first; len(data) > 0; b, data = b+1, data[BlockSize:] {
		if _, err := image.ReadAt(data[:BlockSize], int64(b)*BlockSize); err != nil {
			bad.add(v, b, "cannot be read from the disk")
		}
	}
	return false
}

var zeroPage [pageSize]byte

// runs makes one line of neighbouring blocks with the same trouble.
type runs struct {
	at   span
	what string
}

func (r *runs) add(v *verifier, block uint64, what string) {
	if r.what == what && r.at.to == block {
		r.at.to++
		return
	}
	r.flush(v)
	r.at, r.what = span{block, block + 1}, what
}

func (r *runs) flush(v *verifier) {
	if r.what == "" {
		return
	}
	if v.runs++; v.runs > maxProblemRuns {
		v.more += r.at.to - r.at.from
	} else if r.at.to == r.at.from+1 {
		v.mended(imageName, "block %d: %s", r.at.from, r.what)
	} else {
		v.mended(imageName, "blocks %d to %d: %s", r.at.from, r.at.to-1, r.what)
	}
	r.what = ""
}

// checkRegions: a region that has content was changed once, and not before its newest change that the log knows of.
func (v *verifier) checkRegions(regions readerAtFile, written []bool) {
	b := make([]byte, regionsFileSize(v.x.Meta.Size))
	if _, err := regions.ReadAt(b, 0); err != nil {
		v.problem(regionsName, "cannot be read: %v", err)
		return
	}
	end, told := v.out.Log.Recovery.End, 0
	say := func(g int, format string, args ...any) {
		if told++; told <= maxProblemRuns {
			v.problem(regionsName, "region %d %s", g, fmt.Sprintf(format, args...))
		}
	}
	sayMended := func(g int, what string) {
		if told++; told <= maxProblemRuns {
			v.mended(regionsName, "region %d %s", g, what)
		}
	}
	for g := range written {
		l, ok := decodeRegion(g, binary.LittleEndian.Uint64(b[g*8:]))
		switch {
		case !ok:
			sayMended(g, "has an entry whose check does not match: a delta copy will take it for changed")
		case l == 0 && written[g]:
			say(g, "has content, but is said never to have changed: a delta copy would leave it out")
		case l < v.changed[g]:
			say(g, "changed with record %d, but is said to have changed last with %d: a delta copy would leave it out", v.changed[g], l)
		case l > end && v.out.Log.Recovery.Corruption == nil:
			say(g, "is said to have changed with record %d, but the log ends with %d", l, end)
		}
	}
	if told > maxProblemRuns {
		v.problem(regionsName, "%d more regions are wrong", told-maxProblemRuns)
	}
}
