package main

import (
	"context"
	"time"
)

// pollPeriod is how often a command looks whether what it waits for has come.
const pollPeriod = 25 * time.Millisecond

// poll calls look until it says that all is well, or fails, or ctx ends.
func poll(ctx context.Context, look func() (bool, error)) error {
	for {
		if ok, err := look(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollPeriod):
		}
	}
}
