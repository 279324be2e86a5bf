package nbd_test

import (
	"testing"

	"go.uber.org/goleak"
)

// No test leaves a goroutine behind: neither a connection's, nor its writer's.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
