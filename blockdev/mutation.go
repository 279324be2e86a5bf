package blockdev

// mutation names rules that a test can break, to see that the tests notice.
type mutation uint

const (
	metaBeforeSync  mutation = 1 << iota // B3: the checkpoint is noted before the image is stable
	applyUnrecorded                      // B1: the image goes beyond the commit point that recovery knows
	clearChanged                         // B2: page-table entries are dropped though they changed
	releaseEarly                         // W3: segments are released when they are applied
)

func (m mutation) has(x mutation) bool { return m&x != 0 }
