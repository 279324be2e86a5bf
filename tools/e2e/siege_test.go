package e2e

import (
	"testing"

	"lockstep/tools/e2e/cluster"
	"lockstep/tools/stamp/stamped"
)

// siege is everything that can check a volume, at once: stamped writes, which know each block's content; a recorded
// history of clients who share blocks; and a file system. Each has a part of the disk.
type siege struct {
	t      *testing.T
	c      *cluster.Cluster
	ledger *stamped.Ledger
	run    *torment
	h      *history
	fs     *fileSystem
}

// beset begins a siege. Clients of the history also come through the gateways with other URIs.
func beset(t *testing.T, c *cluster.Cluster, others ...string) *siege {
	t.Helper()
	s := &siege{t: t, c: c, ledger: clean(t, c.URI)}
	withDisk(t, c.URI, func(d *stamped.NBD) { must(t, d.WriteAt(make([]byte, historyBlocks*blockSize), historyArea, false)) })
	s.fs = startFiles(t, c.URI, fsArea)
	s.h = record(t, append([]string{c.URI}, others...)...)
	s.run = tormentIt(t, c.URI, s.ledger, seed(t), false)
	s.goesOn()
	return s
}

// goesOn waits until everybody has got further.
func (s *siege) goesOn() {
	s.t.Helper()
	s.run.goesOn(300)
	s.h.goesOn(200)
	s.fs.goesOn(5)
}

// end ends all of it, checks what each knows, and compares the copies.
func (s *siege) end() {
	s.t.Helper()
	s.t.Log(s.run.stop())
	s.h.linearizable()
	verify(s.t, s.c.URI, s.ledger)
	s.fs.check()
	sameImages(s.t, s.c)
}
