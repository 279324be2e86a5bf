package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"lockstep/tools/e2e/cluster"
)

var (
	soak     = flag.Duration("soak", 0, "how long random faults go on; the other tests run longer, too")
	seedFlag = flag.Uint64("seed", 0, "of the random choices; 0 draws one")
)

// program is the binary under test, built by TestMain.
var program string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lockstep-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if program, err = cluster.Build(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// need skips a test whose tools are missing; where nobody would notice, it fails.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, tool+" is not installed")
		}
	}
}

// missing skips the test, or fails it in CI.
func missing(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// seed is the seed of a test's random choices, printed.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := *seedFlag
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d", s)
	return s
}

// times is how often to do something: less in the default set.
func times(normal, soaking int) int {
	if *soak > 0 {
		return soaking
	}
	return normal
}

// start starts a cluster that ends with the test. When the test has failed its logs are shown.
func start(t *testing.T, o cluster.Options) *cluster.Cluster {
	t.Helper()
	o.Binary, o.Dir = program, t.TempDir()
	if o.NodeArgs == nil {
		o.NodeArgs = []string{"--log-size", "256M"}
	}
	c, err := cluster.Start(t.Context(), o)
	if c != nil {
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(c.Logs(4000))
			}
			c.KillAll()
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ask is must for a call that also returns something.
func ask[T any](t *testing.T, f func(context.Context) (T, error)) T {
	t.Helper()
	v, err := f(t.Context())
	must(t, err)
	return v
}
