package memfs

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
)

// Op describes an operation.
type Op struct {
	Kind     string // create, mkdir, rename, remove, write, truncate, punch, sync, syncdir; to Inject also read
	Name     string
	Off, Len int64 // bytes: write and punch; truncate: Len is the new size
}

func (o Op) String() string { return fmt.Sprintf("%s %s %d+%d", o.Kind, o.Name, o.Off, o.Len) }

// change is an un-synced operation: links of directories, or one of a file.
type change struct {
	op    Op
	seq   int
	lost  bool // a sync that covered it failed: no later one makes it stable
	links []link
	file  *node
	data  []byte
}

// link is an entry of a directory; node is nil where it is removed.
type link struct {
	dir  *node
	name string
	node *node
}

// A change is applied to what readers see, or to what is on the disk.
type side bool

const (
	seenSide   side = false
	stableSide side = true
)

func (c *change) apply(s side, survives func(sector int) bool) {
	for _, l := range c.links {
		entries := l.dir.children
		if s == stableSide {
			entries = l.dir.stable
		}
		if l.node == nil {
			delete(entries, l.name)
		} else {
			entries[l.name] = l.node
		}
	}
	if c.file == nil {
		return
	}
	to := &c.file.now
	if s == stableSide {
		to = &c.file.disk
	}
	switch c.op.Kind {
	case "truncate":
		to.truncate(c.op.Len)
	case "punch":
		to.zero(c.op.Off, c.op.Len)
	case "write":
		if survives == nil {
			to.write(c.data, c.op.Off)
			return
		}
		// Sectors are those of the file, not of the write (D1). Neighbours go together.
		from, off, last := c.op.Off, c.op.Off, c.op.Off+c.op.Len
		for i := 0; off < last; i++ {
			end := min((off/sectorBytes+1)*sectorBytes, last)
			if !survives(i) {
				to.write(c.data[from-c.op.Off:off-c.op.Off], from)
				from = end
			}
			off = end
		}
		to.write(c.data[from-c.op.Off:], from)
	}
}

func (c *change) touches(dir *node) bool {
	return slices.ContainsFunc(c.links, func(l link) bool { return l.dir == dir })
}

func lose(list []*change) {
	for _, c := range list {
		c.lost = true
	}
}

func (m *FS) changeNames(op Op, links ...link) {
	m.seq++
	c := &change{op: op, seq: m.seq, links: links}
	c.apply(seenSide, nil)
	m.names = append(m.names, c)
}

func (m *FS) changeFile(n *node, op Op, data []byte) {
	m.seq++
	c := &change{op: op, seq: m.seq, file: n, data: data}
	c.apply(seenSide, nil)
	n.pending = append(n.pending, c)
}

// Pending lists the operations that were not synced, oldest first.
func (m *FS) Pending() []Op {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ops []Op
	for _, c := range m.pending() {
		ops = append(ops, c.op)
	}
	return ops
}

func (m *FS) pending() []*change {
	list := slices.Clone(m.names)
	for n := range m.nodes() {
		list = append(list, n.pending...)
	}
	slices.SortFunc(list, func(a, b *change) int { return cmp.Compare(a.seq, b.seq) })
	return list
}

// nodes is every node that is seen, stable or on the way to either.
func (m *FS) nodes() map[*node]bool {
	all := map[*node]bool{}
	var visit func(n *node)
	visit = func(n *node) {
		if n == nil || all[n] {
			return
		}
		all[n] = true
		for _, c := range n.children {
			visit(c)
		}
		for _, c := range n.stable {
			visit(c)
		}
	}
	visit(m.root)
	for _, c := range m.names {
		for _, l := range c.links {
			visit(l.dir) // it may have been removed, with the change still pending
			visit(l.node)
		}
	}
	return all
}

// Crash gives the file system as it is found after a power failure. The original is not changed, and may be crashed
// again with another fate.
func (m *FS) Crash(fate Fate) *FS {
	m.mu.Lock()
	defer m.mu.Unlock()
	after, copies := m.stable()
	pending := m.pending()
	for i, c := range pending {
		if c.file == nil && fate.Survives(i, 0) {
			c.on(copies).apply(stableSide, nil)
		}
	}
	for k := range pending {
		i := k
		if fate.Reversed {
			i = len(pending) - 1 - k
		}
		if c := pending[i]; c.file != nil && (c.op.Kind == "write" || fate.Survives(i, 0)) {
			c.on(copies).apply(stableSide, func(s int) bool { return fate.Survives(i, s) })
		}
	}
	for _, c := range copies {
		c.now = c.disk.clone()
		c.children = maps.Clone(c.stable)
	}
	return after
}

// Kill gives the file system as the next process finds it when this one is killed and the machine goes on: all that was
// written is seen, and is not stable before it is synced (D5). The original is not changed.
func (m *FS) Kill() *FS {
	m.mu.Lock()
	defer m.mu.Unlock()
	after, copies := m.stable()
	for _, c := range m.pending() {
		c = c.on(copies)
		after.seq++
		c.seq = after.seq
		if c.file == nil {
			after.names = append(after.names, c)
		} else {
			c.file.pending = append(c.file.pending, c)
		}
	}
	for n, c := range copies {
		c.now = n.now.clone()
		c.children = copyEntries(n.children, copies)
	}
	return after
}

// stable copies what is on the disk, and tells which node became which.
func (m *FS) stable() (after *FS, copies map[*node]*node) {
	copies = map[*node]*node{}
	for n := range m.nodes() {
		copies[n] = &node{dir: n.dir, disk: n.disk.clone()}
	}
	for n, c := range copies {
		c.stable = copyEntries(n.stable, copies)
	}
	after = New()
	after.root = copies[m.root]
	return after, copies
}

func copyEntries(entries map[string]*node, copies map[*node]*node) map[string]*node {
	to := make(map[string]*node, len(entries))
	for name, n := range entries {
		to[name] = copies[n]
	}
	return to
}

// on is the change, of the copies of its nodes.
func (c *change) on(copies map[*node]*node) *change {
	to := *c
	to.file = copies[c.file]
	to.links = slices.Clone(c.links)
	for k, l := range c.links {
		to.links[k] = link{copies[l.dir], l.name, copies[l.node]}
	}
	return &to
}

// fingerprint is equal for file systems with equal names and contents on the disk.
func (m *FS) fingerprint() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.root.fingerprint()
}

func (n *node) fingerprint() uint64 {
	if !n.dir {
		return n.disk.fingerprint()
	}
	sum := uint64(1)
	for _, name := range slices.Sorted(maps.Keys(n.stable)) {
		sum = mix(mix(sum, maphash.String(printSeed, name)), n.stable[name].fingerprint())
	}
	return sum
}
