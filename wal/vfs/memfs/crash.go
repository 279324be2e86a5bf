package memfs

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Op describes an operation that was not synced yet.
type Op struct {
	Kind     string // create, mkdir, rename, remove, write, truncate, punch
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
		// Sectors are those of the file, not of the write (D1).
		for i, off := 0, c.op.Off; off < c.op.Off+c.op.Len; i++ {
			end := min((off/sectorBytes+1)*sectorBytes, c.op.Off+c.op.Len)
			if survives(i) {
				to.write(c.data[off-c.op.Off:end-c.op.Off], off)
			}
			off = end
		}
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

// Fate decides what of the un-synced operations is on the disk after a crash: for operation i of FS.Pending, and for
// each sector of it if it is a write; 0 otherwise.
type Fate struct {
	Name     string
	Survives func(i, sector int) bool
}

// Fates of everything at once.
var (
	None = Fate{"none", func(int, int) bool { return false }}
	All  = Fate{"all", func(int, int) bool { return true }}
)

// Drop is the fate in which operation i alone is lost.
func Drop(i int) Fate {
	return Fate{fmt.Sprintf("drop %d", i), func(j, _ int) bool { return j != i }}
}

// Keep is the fate in which operation i alone survives.
func Keep(i int) Fate {
	return Fate{fmt.Sprintf("keep %d", i), func(j, _ int) bool { return j == i }}
}

// Torn is the fate in which only the sectors [from, to) of operation i survive, and all others whole.
func Torn(i, from, to int) Fate {
	return Fate{fmt.Sprintf("torn %d: %d to %d", i, from, to), func(j, s int) bool { return j != i || from <= s && s < to }}
}

// Random is a fate in which each sector survives with probability p.
func Random(seed uint64, p float64) Fate {
	return Fate{fmt.Sprintf("random %d %.2f", seed, p), func(i, s int) bool {
		return rand.New(rand.NewPCG(seed, uint64(i)<<32|uint64(s))).Float64() < p
	}}
}

// Fates lists the fates that a crash test should try for pending operations: none and all survive; each alone is lost,
// survives, is torn at either end; and a few random ones.
func Fates(pending []Op, seed uint64) []Fate {
	list := []Fate{None}
	if len(pending) == 0 {
		return list
	}
	list = append(list, All)
	for i, op := range pending {
		if len(pending) > 1 {
			list = append(list, Drop(i), Keep(i))
		}
		if sectors := int(op.Len+sectorBytes-1) / sectorBytes; op.Kind == "write" && sectors > 1 {
			list = append(list, Torn(i, 0, 1), Torn(i, 1, sectors), Torn(i, 0, sectors-1), Torn(i, 0, sectors/2))
		}
	}
	for k := range uint64(3) {
		list = append(list, Random(seed+k, 0.25*float64(k+1)))
	}
	return list
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
	slices.SortFunc(list, func(a, b *change) int { return a.seq - b.seq })
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
	copies := map[*node]*node{}
	for n := range m.nodes() {
		copies[n] = &node{dir: n.dir, disk: n.disk.clone(), stable: map[string]*node{}}
	}
	for n, c := range copies {
		for name, child := range n.stable {
			c.stable[name] = copies[child]
		}
	}
	for i, c := range m.pending() {
		c := change{op: c.op, links: slices.Clone(c.links), file: copies[c.file], data: c.data}
		for k, l := range c.links {
			c.links[k] = link{copies[l.dir], l.name, copies[l.node]}
		}
		if c.file == nil && !fate.Survives(i, 0) {
			continue
		}
		if c.file != nil && c.op.Kind != "write" && !fate.Survives(i, 0) {
			continue
		}
		c.apply(stableSide, func(s int) bool { return fate.Survives(i, s) })
	}
	after := New()
	after.root = copies[m.root]
	for _, c := range copies {
		c.now = c.disk.clone()
		c.children = make(map[string]*node, len(c.stable))
		for name, child := range c.stable {
			c.children[name] = child
		}
	}
	return after
}
