package replication

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"sync"

	"github.com/google/uuid"

	"lockstep/viewsvc"
	"lockstep/wal/vfs"
)

// homeFormat is the version of the data directory's layout:
//
//	LOCK          held by the node's process
//	node.json     format, node id, cluster; written once, when the node first meets a view service
//	volumes/ID/   a replica (package blockdev)
const homeFormat = 1

// identityName is node.json; renamed into place, so that it is there whole or not at all.
const identityName = "node.json"

// maxIdentity bounds node.json.
const maxIdentity = 4096

// identity is node.json.
type identity struct {
	Format  int            `json:"format"`
	Node    viewsvc.NodeID `json:"node"`
	Cluster string         `json:"cluster"`
}

// home is a node's data directory.
type home struct {
	fs   vfs.FS
	dir  string
	lock io.Closer

	mu sync.Mutex // guards id
	id identity
}

// openHome locks a data directory and reads whose it is.
func openHome(fsys vfs.FS, dir string, node viewsvc.NodeID) (*home, error) {
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("node: data directory %s: %w", dir, err)
	}
	if err := mustBeNodes(fsys, dir); err != nil {
		return nil, err
	}
	if err := fsys.MkdirAll(path.Join(dir, volumesDir)); err != nil {
		return nil, fmt.Errorf("node: data directory %s: %w", dir, err)
	}
	lock, err := fsys.Lock(path.Join(dir, "LOCK"))
	if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("node: data directory %s is in use by another process; stop it, or choose another --data", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("node: lock data directory %s: %w", dir, err)
	}
	h := &home{fs: fsys, dir: dir, lock: lock, id: identity{Format: homeFormat, Node: node}}
	if err := h.load(node); err != nil {
		lock.Close()
		return nil, err
	}
	return h, nil
}

func (h *home) load(node viewsvc.NodeID) error {
	name := path.Join(h.dir, identityName)
	f, err := h.fs.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return h.mustBeEmpty()
	}
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxIdentity))
	if err != nil {
		return fmt.Errorf("node: read %s: %w", name, err)
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return fmt.Errorf("node: %s is damaged (%v); restore it, or move the directory away to begin with an empty node", name, err)
	}
	switch {
	case id.Format != homeFormat:
		return fmt.Errorf("node: %s has format version %d, this program knows version %d; use the program that wrote it, or a newer one",
			h.dir, id.Format, homeFormat)
	case id.Node != node:
		return fmt.Errorf("node: data directory %s belongs to node %q, not %q; check --id and --data", h.dir, id.Node, node)
	}
	if _, err := uuid.Parse(id.Cluster); err != nil {
		return fmt.Errorf("node: %s names no cluster; restore it, or move the directory away to begin with an empty node", name)
	}
	h.id = id
	return nil
}

// mustBeNodes refuses a directory with anything else in it, before anything is made there: it is a view server's, or
// somebody's home.
func mustBeNodes(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if err != nil {
		return fmt.Errorf("node: data directory: %w", err)
	}
	if slices.Contains(names, identityName) {
		return nil
	}
	for _, n := range names {
		if !slices.Contains([]string{"LOCK", identityName + ".new", volumesDir, "lost+found"}, n) {
			return fmt.Errorf("node: %s is no data directory of a node: it holds %s; use an empty one", dir, n)
		}
	}
	return nil
}

// mustBeEmpty refuses a directory with replicas in it that nobody owns.
func (h *home) mustBeEmpty() error {
	ids, err := h.volumes()
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return fmt.Errorf("node: %s has replicas but no node.json; restore it, or move the directory away to begin with an empty node", h.dir)
	}
	return nil
}

// cluster is the cluster that the node has joined, or "".
func (h *home) cluster() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.id.Cluster
}

// join records the cluster, for ever.
func (h *home) join(cluster string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.id.Cluster == cluster {
		return nil
	}
	if h.id.Cluster != "" {
		return fmt.Errorf("node: data directory %s belongs to cluster %s, the view service to cluster %s; check --view and --data",
			h.dir, h.id.Cluster, cluster)
	}
	id := h.id
	id.Cluster = cluster
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("node: join: %w", err)
	}
	if err := h.replace(identityName, append(b, '\n')); err != nil {
		return fmt.Errorf("node: join cluster: %w", err)
	}
	h.id = id
	return nil
}

// replace writes a file so that a crash leaves the old one or the new one.
func (h *home) replace(name string, b []byte) error {
	tmp := path.Join(h.dir, name+".new")
	if err := h.fs.RemoveAll(tmp); err != nil {
		return err
	}
	f, err := h.fs.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := h.fs.Rename(tmp, path.Join(h.dir, name)); err != nil {
		return err
	}
	return h.fs.SyncDir(h.dir)
}

// volumes lists the replicas in the directory.
func (h *home) volumes() ([]viewsvc.VolumeID, error) {
	names, err := h.fs.List(path.Join(h.dir, volumesDir))
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	var ids []viewsvc.VolumeID
	for _, name := range names {
		if _, err := uuid.Parse(name); err == nil {
			ids = append(ids, viewsvc.VolumeID(name))
		}
	}
	return ids, nil
}

// has tells whether there is anything of a volume's replica in the directory, be it of use or not.
func (h *home) has(id viewsvc.VolumeID) bool {
	_, err := h.fs.List(path.Join(h.dir, volumesDir, string(id)))
	return !errors.Is(err, fs.ErrNotExist)
}

func (h *home) close() error { return h.lock.Close() }
