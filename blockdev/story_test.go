package blockdev

import "lockstep/wal"

func zero(block, count uint64) histOp {
	return histOp{kind: wal.KindZero, flags: wal.RecordNoHole, block: block, count: count}
}

// live is the workload of the crash tests: the life of a replica, with a little of everything that a store does.
func (w *survivor) live() {
	w.format()
	w.open()

	// The first writes, overlapping; one of each kind, one of several records that must stay together.
	w.put(attach(1, 1), by(1, 1, write(0, 1)))
	w.put(write(0, 3), write(2, 4), trim(1, 1))
	w.put(zero(4, 2), write(RegionBlocks-1, 3))
	w.steps() // applied and checkpointed

	// Frames without a sync between them, the last one not even committed. It carries the commit point of the others, so
	// that they get into the image.
	w.append(write(1, 2))
	w.append(trim(0, 2), write(crashBlocks-2, 2))
	w.append(write(3, 1))
	w.sync()
	w.commit()
	before := w.end()
	w.append(by(1, 3, write(2, 2)))
	w.sync()
	w.apply()
	w.append(by(1, 4, write(2, 1)))

	// A new view cuts what only this replica had, stable or not, and goes on in a new epoch.
	w.view(1)
	w.cut(before)
	w.put(histOp{kind: wal.KindView}, attach(1, 2), attach(2, 1), by(1, 2, write(3, 2)))
	w.apply() // in the image, in no checkpoint

	// A long trim, over whole pages of checksums and what was written there.
	w.put(by(2, 5, write(600, 5)))
	w.put(trim(0, crashBlocks-10))
	w.put(write(700, 2))
	w.steps()

	// The largest frames, until the log has gone round: each but the last fills most of a segment.
	for i := range uint64(6) {
		w.put(write(10*i, 18))
		w.apply()
	}
	w.close()
	w.open()

	// Sync mode flush: committed is more than is stable, until somebody flushes.
	for i := range uint64(4) {
		w.append(write(2*i, 3), zero(2*i+1, 1))
		w.commit()
	}
	w.sync()
	w.append(write(100, 1))
	w.commit()
	w.apply()
	w.apply()

	// A cut to what the image has, right behind the checkpoint; then to the middle of several segments.
	w.put(write(5, 1))
	w.steps()
	w.append(write(5, 17))
	w.append(write(6, 17))
	w.append(write(7, 17))
	w.sync()
	w.cut(w.synced - 2)
	w.view(2)
	w.cut(w.synced - 1)
	w.put(write(5, 2))

	// The process is killed, with work half done.
	w.append(write(1, 1))
	w.die()
	w.open()
	w.view(3)
	w.put(write(1, 1), trim(RegionBlocks, 2*RegionBlocks))
	w.close()
}
