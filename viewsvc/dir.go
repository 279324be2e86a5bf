package viewsvc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// dirFormat is the version of a view server's data directory:
//
//	LOCK        flock, held while a server runs on it
//	meta.json   whose directory it is (dirMeta)
//	raft.db     Raft's log, term and vote (bbolt)
//	snapshots/  Raft's snapshots of the replicated state
const dirFormat = 1

const maxMetaBytes = 1 << 16

// dirMeta ties a directory to one view server of one group. A server that forgot its votes could give two
// different ones in a term, so a directory whose Raft state vanished is refused and not begun anew.
type dirMeta struct {
	Format  int      `json:"format"`
	ID      string   `json:"id"`
	Servers []string `json:"servers"` // IDs of all view servers, sorted; fixed for the life of the cluster
	Begun   bool     `json:"begun"`   // Raft's state was made
}

// lockDir takes a directory for this process; closing the file gives it back.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("viewsvc: data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("viewsvc: data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("viewsvc: data directory %s is in use by another process; stop it, or choose another --data", dir)
		}
		return nil, fmt.Errorf("viewsvc: lock data directory %s: %w", dir, err)
	}
	return f, nil
}

// openDir checks that a directory is this server's, or makes it so if it is empty.
func openDir(dir, id string, servers []string) (dirMeta, error) {
	path := filepath.Join(dir, "meta.json")
	b, err := readLimited(path, maxMetaBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return newDir(dir, dirMeta{Format: dirFormat, ID: id, Servers: servers})
	}
	if err != nil {
		return dirMeta{}, fmt.Errorf("viewsvc: data directory: %w", err)
	}
	var meta dirMeta
	if err := json.Unmarshal(b, &meta); err != nil {
		return dirMeta{}, fmt.Errorf("viewsvc: %s is damaged: %w; restore the directory, or empty it if other view servers have the state", path, err)
	}
	switch {
	case meta.Format != dirFormat:
		return dirMeta{}, fmt.Errorf("viewsvc: data directory %s has format %d, this release knows %d: use the release that wrote it",
			dir, meta.Format, dirFormat)
	case meta.ID != id:
		return dirMeta{}, fmt.Errorf("viewsvc: data directory %s is view server %s's, not %s's: check --id and --data", dir, meta.ID, id)
	case !slices.Equal(meta.Servers, servers):
		return dirMeta{}, fmt.Errorf("viewsvc: data directory %s is of a group of view servers %v, not %v: check --peer", dir, meta.Servers, servers)
	}
	return meta, nil
}

func newDir(dir string, meta dirMeta) (dirMeta, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return dirMeta{}, fmt.Errorf("viewsvc: data directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "LOCK" && e.Name() != metaTemp && e.Name() != "lost+found" {
			return dirMeta{}, fmt.Errorf("viewsvc: %s is no data directory of a view server: it holds %s; use an empty one", dir, e.Name())
		}
	}
	return meta, writeMeta(dir, meta)
}

const metaTemp = "meta.json.new"

// writeMeta replaces the file as a whole: a crash leaves the old one or the new one.
func writeMeta(dir string, meta dirMeta) error {
	b, err := json.Marshal(meta)
	if err != nil {
		return fmt.Errorf("viewsvc: encode meta.json: %w", err)
	}
	temp := filepath.Join(dir, metaTemp)
	if err := writeSynced(temp, append(b, '\n')); err != nil {
		return fmt.Errorf("viewsvc: data directory: %w", err)
	}
	if err := os.Rename(temp, filepath.Join(dir, "meta.json")); err != nil {
		return fmt.Errorf("viewsvc: data directory: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("viewsvc: data directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("viewsvc: data directory: %w", err)
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func readLimited(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return os.ReadFile(path)
}
