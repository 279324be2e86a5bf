//go:build race

package blockdev

// raceEnabled: under the race detector everything takes ten times as long; tests that enumerate take samples then.
const raceEnabled = true
