package wal

// MaxFrame is the size in bytes of the largest frame that this log takes.
func (l *Log) MaxFrame() int { return int(min(l.o.SegmentBytes, MaxFrameBytes)) }

// Fits tells whether Append has room for a frame of so many bytes now.
func (l *Log) Fits(bytes int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.fit(l.endPos, Pos((bytes+BlockSize-1)/BlockSize))
	return at%l.segBlocks != 0 || l.freeLocked(at/l.segBlocks)
}

// Fill is the part of the log, 0 to 1, that cannot be reused before a checkpoint.
func (l *Log) Fill() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	used := l.endPos - l.checkpoint.Pos/l.segBlocks*l.segBlocks
	return float64(used) / float64(l.segBlocks*Pos(len(l.files)))
}

// First is the oldest record in the log; End()+1 when there is none.
func (l *Log) First() LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.index.n == 0 {
		return l.end + 1
	}
	return l.index.at(0).first
}

// End is the last record appended.
func (l *Log) End() LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}

// Durable is the last record that is on stable storage.
func (l *Log) Durable() LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

// EndSum is the Chain that the next frame must have.
func (l *Log) EndSum() uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.endSum
}

// EndPos is the position behind the last frame.
func (l *Log) EndPos() Pos {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.endPos
}

// Err is the error that poisoned the log, ErrClosed after Close, nil while it works.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
