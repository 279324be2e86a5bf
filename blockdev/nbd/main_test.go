package nbd_test

import (
	"testing"

	"go.uber.org/goleak"
)

// No test leaves a goroutine behind: neither a connection's, nor its writer's. The cluster's processes end with the
// thread that started them, which a goroutine holds for ever.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("lockstep/tools/e2e/cluster.init.func1.1"))
}
