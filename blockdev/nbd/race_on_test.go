//go:build race

package nbd_test

// The race detector allocates, and makes sync.Pool forget.
const raceEnabled = true
