package viewsvc

import (
	"context"
	"iter"
	"sync"
)

// maxQueuedEvents is how many events wait for a callback that is slow; further ones are dropped. Commands and
// probes are bounded by the Monitor: one per purpose and one per node.
const (
	maxQueuedEvents = 4096
	maxQueuedTasks  = 1 << 20
)

// queue hands items from many goroutines to one, without ever blocking them.
type queue[T any] struct {
	limit int
	wake  chan struct{} // holds a token when items is not empty

	mu    sync.Mutex
	items []T
}

func newQueue[T any](limit int) *queue[T] {
	return &queue[T]{limit: limit, wake: make(chan struct{}, 1)}
}

func (q *queue[T]) add(item T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) >= q.limit {
		return
	}
	q.items = append(q.items, item)
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// all gives the items in order as they come, until ctx ends.
func (q *queue[T]) all(ctx context.Context) iter.Seq[T] {
	return func(yield func(T) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case <-q.wake:
			}
			q.mu.Lock()
			items := q.items
			q.items = nil
			q.mu.Unlock()
			for _, item := range items {
				if ctx.Err() != nil || !yield(item) {
					return
				}
			}
		}
	}
}
