package blockdev

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"path"
	"slices"
	"syscall"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// Files of a replica's directory; doc.go says what they hold.
const (
	lockName    = "LOCK"
	metaName    = "meta"
	metaNewName = "meta.new"
	imageName   = "data.img"
	sumsName    = "data.crc"
	regionsName = "regions"
	walName     = "wal"
)

// Limits of a volume and its log.
const (
	MaxVolumeBytes      = 1 << 50
	DefaultLogBytes     = 1 << 30
	DefaultSegmentBytes = wal.DefaultSegmentBytes // holds a frame with MaxRequestBytes of payload
)

// Identity is what a replica is: for ever, but that its size can grow. All texts are up to MaxTextBytes long.
type Identity struct {
	Cluster    string // UUIDs, but the store only stores them
	Volume     string
	Replica    string
	VolumeName string // for people; may be empty
	Size       uint64 // bytes, a multiple of BlockSize, up to MaxVolumeBytes
}

func validSize(n uint64) bool { return n > 0 && n%BlockSize == 0 && n <= MaxVolumeBytes }

// FormatOptions is what Format makes.
type FormatOptions struct {
	Identity
	LogBytes     int64  // default DefaultLogBytes; rounded down to whole segments
	SegmentBytes int64  // default DefaultSegmentBytes, or a quarter of a small log; a frame must fit into a segment
	Salt         uint64 // of the volume's frames, the same for every replica; default: made from Cluster and Volume
}

// Validate tells what is wrong with the options.
func (o FormatOptions) Validate() error {
	switch {
	case !validSize(o.Size):
		return fmt.Errorf("size %d is not a positive multiple of %d up to %d", o.Size, BlockSize, int64(MaxVolumeBytes))
	case o.SegmentBytes <= 0 || o.SegmentBytes%BlockSize != 0:
		return fmt.Errorf("segment size %d is not a positive multiple of %d", o.SegmentBytes, BlockSize)
	case o.LogBytes/o.SegmentBytes < wal.MinSegments:
		return fmt.Errorf("log of %d bytes has fewer than %d segments of %d; make it larger", o.LogBytes, wal.MinSegments, o.SegmentBytes)
	}
	for _, s := range []string{o.Cluster, o.Volume, o.Replica, o.VolumeName} {
		if len(s) > MaxTextBytes {
			return fmt.Errorf("%q is longer than %d bytes", s, MaxTextBytes)
		}
	}
	return nil
}

// Format makes a replica in a directory that is missing, empty, or half-formatted by a Format that did not
// finish. When it returns nil the replica is stable.
//
// The order makes a crash harmless: meta.new, still empty, says "half-formatted"; its rename to meta comes last.
func Format(fsys vfs.FS, dir string, o FormatOptions) (err error) {
	if o.LogBytes == 0 {
		o.LogBytes = DefaultLogBytes
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = min(DefaultSegmentBytes, o.LogBytes/4/BlockSize*BlockSize)
	}
	if err := o.Validate(); err != nil {
		return fmt.Errorf("blockdev: format %s: %w", dir, err)
	}
	if err := format(fsys, dir, o); err != nil {
		return fmt.Errorf("blockdev: format %s: %w", dir, err)
	}
	return nil
}

func format(fsys vfs.FS, dir string, o FormatOptions) (err error) {
	if err := fsys.MkdirAll(dir); err != nil {
		return err
	}
	lock, err := fsys.Lock(path.Join(dir, lockName))
	if errors.Is(err, vfs.ErrLocked) {
		return ErrInUse
	} else if err != nil {
		return err
	}
	defer lock.Close()
	if err := clearHalfFormatted(fsys, dir); err != nil {
		return err
	}
	defer func() {
		// Give back what was taken of a disk that is too small, as far as that can be done. After another error, of a
		// directory's sync, nobody knows which of the names a crash would leave (W5): the mark must stay.
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG) {
			_ = clearHalfFormatted(fsys, dir)
		}
	}()

	mf, err := fsys.Create(path.Join(dir, metaNewName))
	if err != nil {
		return err
	}
	defer mf.Close()
	if err := fsys.SyncDir(dir); err != nil {
		return err
	}
	if err := createFiles(fsys, dir, o.Size); err != nil {
		return err
	}
	m := firstMeta(o)
	if err := wal.Create(walOptions(fsys, dir, m)); err != nil {
		return err
	}
	// Both slots, stable, before the file gets its name.
	if err := mf.Truncate(2 * metaSlotSize); err != nil {
		return fmt.Errorf("meta: %w", err)
	}
	file := newMetaFile(mf, m)
	for range 2 {
		if err := file.save(func(*meta) {}); err != nil {
			return err
		}
	}
	if err := fsys.SyncDir(dir); err != nil {
		return err
	}
	if err := fsys.Rename(path.Join(dir, metaNewName), path.Join(dir, metaName)); err != nil {
		return err
	}
	if err := fsys.SyncDir(dir); err != nil {
		return err
	}
	return syncAncestors(fsys, dir)
}

// createFiles makes the files that are as large as the volume asks for.
func createFiles(fsys vfs.FS, dir string, size uint64) error {
	for _, f := range []struct {
		name string
		size int64
	}{
		{imageName, imageFileSize(size)},
		{sumsName, sumsFileSize(size)},
		{regionsName, regionsFileSize(size)},
		{sessionsName, 2 * sessionsSlotBytes},
	} {
		if err := createSparse(fsys, path.Join(dir, f.name), f.size); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// firstMeta is what the metadata of a replica begins with.
func firstMeta(o FormatOptions) meta {
	m := meta{
		ID:       o.Identity,
		Segment:  o.SegmentBytes,
		Segments: int(o.LogBytes / o.SegmentBytes),
		Salt:     o.Salt,
	}
	if m.Salt == 0 {
		m.Salt = defaultSalt(o.Identity)
	}
	return m
}

// syncAncestors makes the path to a directory stable: MkdirAll may have made any part of it, now or in a Format that
// did not finish. Ancestors that may not be read were not made by us.
func syncAncestors(fsys vfs.FS, dir string) error {
	for up := path.Dir(path.Clean(dir)); ; up = path.Dir(up) {
		if err := fsys.SyncDir(up); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		if up == path.Dir(up) {
			return nil
		}
	}
}

// defaultSalt is the same at every replica of a volume, which take each other's frames as they are.
func defaultSalt(id Identity) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%q %q", id.Cluster, id.Volume)
	return h.Sum64() | 1
}

// Remove deletes a replica that is not open, and its directory. A crash leaves the replica, or what Format and Remove
// take for half-formatted: never a replica that lost a part.
func Remove(fsys vfs.FS, dir string) error {
	if err := remove(fsys, dir); err != nil {
		return fmt.Errorf("blockdev: remove %s: %w", dir, err)
	}
	return nil
}

func remove(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if slices.Contains(names, metaName) {
		if err := fsys.Rename(path.Join(dir, metaName), path.Join(dir, metaNewName)); err != nil {
			return err
		}
		if err := fsys.SyncDir(dir); err != nil {
			return err
		}
	}
	if err := clearHalfFormatted(fsys, dir); err != nil {
		return err
	}
	if err := fsys.RemoveAll(dir); err != nil {
		return err
	}
	return fsys.SyncDir(path.Dir(dir))
}

// clearHalfFormatted removes what an unfinished Format left, and nothing else.
func clearHalfFormatted(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if err != nil {
		return err
	}
	if slices.Contains(names, metaName) {
		return ErrExists
	}
	if !halfFormatted(names) {
		return ErrNotEmpty
	}
	// The mark goes last: until then the directory is recognised as half-formatted.
	for _, n := range []string{imageName, sumsName, regionsName, sessionsName, scrubName, walName, walName + ".new", metaNewName} {
		if n == metaNewName {
			if err := fsys.SyncDir(dir); err != nil {
				return err
			}
		}
		if err := fsys.RemoveAll(path.Join(dir, n)); err != nil {
			return err
		}
	}
	return nil
}

// halfFormatted tells from the names in a directory whether there is no more in it than an unfinished Format leaves, at
// most an empty directory with a lock.
func halfFormatted(names []string) bool {
	if slices.Contains(names, metaName) {
		return false
	}
	return slices.Contains(names, metaNewName) || !slices.ContainsFunc(names, func(n string) bool { return n != lockName })
}

func imageFileSize(volume uint64) int64 { return int64(volume) }

func createSparse(fsys vfs.FS, name string, size int64) error {
	f, err := fsys.Create(name)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func walOptions(fsys vfs.FS, dir string, m meta) wal.Options {
	return wal.Options{
		FS:           fsys,
		Dir:          path.Join(dir, walName),
		SegmentBytes: m.Segment,
		Segments:     m.Segments,
		Salt:         m.Salt,
	}
}

// openFile opens one of a replica's files and checks its length, which may be up to most if it was to become longer.
func openFile(fsys vfs.FS, dir, name string, want, most int64) (vfs.File, error) {
	f, err := fsys.Open(path.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &DamagedError{name, "is missing"}
	} else if err != nil {
		return nil, err
	}
	n, err := f.Size()
	if err == nil && (n < want || n > max(want, most)) {
		err = &DamagedError{name, fmt.Sprintf("is %d bytes long instead of %d", n, want)}
	}
	if err == nil {
		err = syncOpened(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// syncOpened makes stable what a dead process left in the page cache, and drops it from there (W6): a page whose
// write-back failed is clean, and not what is on the disk.
func syncOpened(f vfs.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if c, ok := f.(vfs.CacheDropper); ok {
		c.DropCache()
	}
	return nil
}
