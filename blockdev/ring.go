package blockdev

// ring is a queue that also gives up its newest elements. It grows by doubling and keeps its memory.
type ring[T any] struct {
	buf  []T // length is a power of two, or 0
	head int
	n    int
}

func (r *ring[T]) len() int { return r.n }

// at is element i, the oldest being 0. The pointer is good until the next push.
func (r *ring[T]) at(i int) *T { return &r.buf[(r.head+i)&(len(r.buf)-1)] }

func (r *ring[T]) push(v T) {
	if r.n == len(r.buf) {
		buf := make([]T, max(64, 2*len(r.buf)))
		for i := range r.n {
			buf[i] = *r.at(i)
		}
		r.buf, r.head = buf, 0
	}
	r.n++
	*r.at(r.n - 1) = v
}

func (r *ring[T]) dropFront(k int) {
	r.n -= k
	r.head += k
}

func (r *ring[T]) dropBack(k int) { r.n -= k }
