package blockdev

import "sync/atomic"

// pageArray is the pages of a table, nil where there is none, that anybody reads without a lock while the table grows.
// Those who put and grow are serialised by its owner.
type pageArray[T any] struct {
	pages atomic.Pointer[[]atomic.Pointer[T]]
}

func (a *pageArray[T]) len() int {
	if p := a.pages.Load(); p != nil {
		return len(*p)
	}
	return 0
}

func (a *pageArray[T]) at(i int) *T { return (*a.pages.Load())[i].Load() }

func (a *pageArray[T]) put(i int, page *T) { (*a.pages.Load())[i].Store(page) }

// grow makes the array n pages long, if it is shorter.
func (a *pageArray[T]) grow(n int) {
	have := a.len()
	if n <= have && a.pages.Load() != nil {
		return
	}
	pages := make([]atomic.Pointer[T], n)
	for i := range have {
		pages[i].Store(a.at(i))
	}
	a.pages.Store(&pages)
}
