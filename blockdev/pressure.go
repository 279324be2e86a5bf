package blockdev

import "time"

// Back-pressure. Clients can fill the log faster than the applier empties it. They are slowed down little by little
// before it is full, so that nobody waits long at any moment: each frame is held up for as long as makes the
// two as fast as each other. What a delay must be for that need not be known: it grows without bound as the room goes,
// and somewhere on the way there is the balance.
const (
	// Delays begin at delayFrom of the log, and would be endless at delayFull.
	delayFrom = 0.75
	delayFull = 0.95
	// delayRate is the rate, in bytes a second, to which appending is held halfway between.
	delayRate = 400 << 20
	// maxDelay bounds the time that one frame is held up.
	maxDelay = 25 * time.Millisecond
)

// pressure tells how far the log is on its way from delayFrom, 0, to delayFull, 1. It counts as full what is not
// applied, and two segments more: the one where recovery would begin is freed as a whole, and a checkpoint under
// pressure comes after each.
func (s *Store) pressure() float64 {
	used := float64(int64(s.endPos.Load()) - int64(s.appliedPos.Load()) + 2*int64(s.segBlocks))
	return min(1, max(0, (used/float64(s.logBlocks)-delayFrom)/(delayFull-delayFrom)))
}

// Delay is how long a frame of so many bytes should wait before it is appended, to leave the applier time. It is
// advice: Append takes the frame at any time, while there is room (RoomFor).
func (s *Store) Delay(bytes int) time.Duration {
	x := s.pressure()
	if x == 0 {
		return 0
	}
	d := float64(bytes) / delayRate * x / (1 - x + 1e-6)
	return min(maxDelay, time.Duration(d*float64(time.Second)))
}
