package stamped

import "fmt"

// Fault says which rule of doc.go a disk broke, and how.
type Fault string

// The faults that a disk can be caught at.
const (
	Lost      Fault = "lost"      // S2: an older version than an acknowledged one
	Backward  Fault = "backward"  // S3: an older version than one that was read before
	Torn      Fault = "torn"      // S1: a mixture within one cell
	Garbage   Fault = "garbage"   // S1: bytes that were never written
	Misplaced Fault = "misplaced" // S1: another cell's content
	Foreign   Fault = "foreign"   // S1: a stamp of another run
	Unissued  Fault = "unissued"  // S4: a version from the future
	HalfWrite Fault = "half"      // S6: some cells of one write, but not all
)

// Violation is a rule broken by the disk.
type Violation struct {
	Fault  Fault
	Cell   int
	Offset uint64 // of the cell on the disk, in bytes
	Got    string // what the cell held
	Want   string // what it should have held
}

func (v *Violation) Error() string {
	return fmt.Sprintf("stamped: %s: cell %d at byte %d (block %d): got %s, want %s",
		v.Fault, v.Cell, v.Offset, v.Offset/blockBytes, v.Got, v.Want)
}
