package main

import (
	"strings"
	"testing"
)

func read(t *testing.T, lines ...string) (*tally, string) {
	t.Helper()
	var out strings.Builder
	counts := newTally(&out)
	if err := counts.read(strings.NewReader(strings.Join(lines, "\n"))); err != nil {
		t.Fatal(err)
	}
	return counts, out.String()
}

func TestCountsTestsAndSubtests(t *testing.T) {
	counts, out := read(t,
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		`{"Action":"output","Package":"p","Test":"TestA/one","Output":"    quiet\n"}`,
		`{"Action":"pass","Package":"p","Test":"TestA/one","Elapsed":0.1}`,
		`{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}`,
		`{"Action":"output","Package":"p","Test":"TestB","Output":"    no fio here\n"}`,
		`{"Action":"skip","Package":"p","Test":"TestB"}`,
		`{"Action":"pass","Package":"p","Elapsed":1.5}`,
		`{"Action":"skip","Package":"no/tests"}`,
	)
	if got, want := counts.String(), "2 passed, 0 failed, 1 skipped"; got != want || !counts.ok() {
		t.Errorf("got %q, ok %t; want %q", got, counts.ok(), want)
	}
	if strings.Contains(out, "quiet") || !strings.Contains(out, "no fio here") {
		t.Errorf("want the words of what was skipped and not of what passed:\n%s", out)
	}
}

func TestFailureIsShownAndCountedOnce(t *testing.T) {
	counts, out := read(t,
		`{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:9: lost a write\n"}`,
		`{"Action":"fail","Package":"p","Test":"TestA"}`,
		`{"Action":"fail","Package":"p"}`,
	)
	if got, want := counts.String(), "0 passed, 1 failed, 0 skipped"; got != want || counts.ok() {
		t.Errorf("got %q, ok %t; want %q", got, counts.ok(), want)
	}
	if got, want := counts.end(), "failed: p TestA\n0 passed, 1 failed, 0 skipped\n"; got != want {
		t.Errorf("it ends with\n%s, want\n%s", got, want)
	}
	if !strings.Contains(out, "lost a write") {
		t.Errorf("the failure's words are missing:\n%s", out)
	}
}

func TestPackageThatDoesNotBuildCounts(t *testing.T) {
	counts, out := read(t,
		`{"ImportPath":"p [p.test]","Action":"build-output","Output":"p.go:3: syntax error\n"}`,
		`{"ImportPath":"p [p.test]","Action":"build-fail"}`,
		`{"Action":"fail","Package":"p","Elapsed":0,"FailedBuild":"p [p.test]"}`,
		`{"Action":"pass","Package":"q","Test":"TestQ"}`,
	)
	if got, want := counts.String(), "1 passed, 1 failed, 0 skipped"; got != want || counts.ok() {
		t.Errorf("got %q, ok %t; want %q", got, counts.ok(), want)
	}
	if !strings.HasPrefix(counts.end(), "failed: p\n") {
		t.Errorf("the package is not named at the end: %s", counts.end())
	}
	if !strings.Contains(out, "syntax error") {
		t.Errorf("the compiler's words are missing:\n%s", out)
	}
}

func TestTestThatHungIsNamed(t *testing.T) {
	counts, out := read(t,
		`{"Action":"output","Package":"p","Test":"TestHangs","Output":"=== RUN   TestHangs\n"}`,
		`{"Action":"output","Package":"p","Output":"panic: test timed out after 1m0s\n"}`,
		`{"Action":"fail","Package":"p"}`,
	)
	if counts.failed != 1 || !strings.Contains(out, "unfinished: TestHangs") || !strings.Contains(out, "timed out") {
		t.Errorf("%s\n%s", counts, out)
	}
}

func TestNothingRanIsAFailure(t *testing.T) {
	counts, _ := read(t, `{"Action":"skip","Package":"p","Test":"TestA"}`, `{"Action":"pass","Package":"p"}`)
	if counts.ok() {
		t.Error("a run in which nothing passed is ok")
	}
}
