package tools

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"testing"
)

var (
	// ruleOf finds a numbered rule of a doc.go: a line of its comment that begins with the number, as an item or in a table.
	ruleOf = regexp.MustCompile(`(?m)^//\s+(?:- )?([A-Z][0-9]+)\s`)
	cited  = regexp.MustCompile(`\b[A-Z][0-9]+\b`)
)

// A rule that no code and no test names holds by accident, or says nothing.
func TestEveryRuleIsCited(t *testing.T) {
	rules := map[string]string{} // and the file that has it
	where := map[string]bool{}
	for _, f := range sourceFiles(t) {
		text, err := os.ReadFile(filepath.Join(moduleRoot(t), f.name))
		if err != nil {
			t.Fatal(err)
		}
		if path.Base(f.name) == "doc.go" {
			for _, m := range ruleOf.FindAllSubmatch(text, -1) {
				rules[string(m[1])] = f.name
			}
			continue
		}
		for _, rule := range cited.FindAll(text, -1) {
			where[string(rule)] = true
		}
	}
	if len(rules) < 50 {
		t.Fatalf("only %d rules: this test looks for them in the wrong way", len(rules))
	}
	for rule, file := range rules {
		if !where[rule] {
			t.Errorf("%s: nothing cites %s: say where it holds, or drop it", file, rule)
		}
	}
}
