package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pollEvery is how often Await looks.
const pollEvery = 50 * time.Millisecond

// Await polls until look returns nil. When the time is over it returns an error with what look said last, and at once
// when look says ErrDown.
func Await(ctx context.Context, limit time.Duration, what string, look func() error) error {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := look()
		if err == nil || errors.Is(err, ErrDown) {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("cluster: %s: not within %v: %w", what, limit, err)
		case <-ctx.Done():
			return fmt.Errorf("cluster: %s: %w: %w", what, ctx.Err(), err)
		}
	}
}
