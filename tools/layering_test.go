// Package tools holds what torments, measures and packages Lockstep. Nothing but tests and other tools imports it.
package tools

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "lockstep"

// layers is which of our packages each package may import. Data flows one way, nbd → replication → wal ‖ peers, and so do
// imports; a package that is not named here does not exist. Tests may import more (see mayImport).
var layers = map[string][]string{
	"wal/vfs":                nil,
	"wal":                    {"wal/vfs"},
	"blockdev":               {"wal", "wal/vfs"},
	"blockdev/nbd":           {"blockdev"},
	"blockdev/kernel":        {"blockdev/nbd"},
	"viewsvc":                nil,
	"replication/exportname": {"blockdev"},
	"replication":            {"wal", "wal/vfs", "blockdev", "blockdev/nbd", "viewsvc", "replication/exportname"},
	"replication/gateway":    {"blockdev", "blockdev/nbd", "viewsvc", "replication/exportname"},
}

// forTests are the packages that exist for tests and tools, and what they may import.
var forTests = map[string][]string{
	"wal/vfs/memfs": {"wal/vfs"},
}

// cmdOnly are libraries that only cmd may know: packages emit typed events, cmd logs and counts them.
var cmdOnly = []string{"github.com/rs/zerolog", "github.com/prometheus/client_golang", "github.com/spf13/"}

// mayImport tells whether a file of package from (a path inside the module) may import our package to.
func mayImport(from, to string, test bool) bool {
	switch {
	case under(to, "cmd"):
		return false
	case under(from, "tools"):
		return true
	case under(from, "cmd"):
		_, product := layers[to]
		return product || test
	case test:
		// A test may wire up more than its package knows, as an integration test does.
		return true
	}
	allowed, product := layers[from]
	if !product {
		allowed = forTests[from]
	}
	return slices.Contains(allowed, to)
}

func known(pkg string) bool {
	_, product := layers[pkg]
	_, test := forTests[pkg]
	return product || test || under(pkg, "cmd") || under(pkg, "tools")
}

func under(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

// sourceFile is a Go file and what it imports.
type sourceFile struct {
	name    string // path inside the module
	pkg     string // its directory
	test    bool
	ast     *ast.File
	imports []string
}

func sourceFiles(t *testing.T) []sourceFile {
	t.Helper()
	root := moduleRoot(t)
	var files []sourceFile
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if base := d.Name(); rel != "." && (base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if path.Ext(rel) != ".go" {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		f := sourceFile{name: rel, pkg: path.Dir(rel), test: strings.HasSuffix(rel, "_test.go"), ast: parsed}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, imported)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d Go files under %s: this test looks at the wrong place", len(files), root)
	}
	return files
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

func TestImportsGoOneWay(t *testing.T) {
	for _, f := range sourceFiles(t) {
		if !known(f.pkg) {
			t.Errorf("%s: package %s is not in the table of layers: give it a place there, or put it into one that is", f.name, f.pkg)
			continue
		}
		for _, imported := range f.imports {
			if to, ours := strings.CutPrefix(imported, module+"/"); ours && !mayImport(f.pkg, to, f.test) {
				t.Errorf("%s: %s must not import %s", f.name, f.pkg, to)
			}
		}
	}
}

func TestOnlyCmdLogsAndCounts(t *testing.T) {
	for _, f := range sourceFiles(t) {
		for _, imported := range f.imports {
			for _, library := range cmdOnly {
				if strings.HasPrefix(imported, library) && !under(f.pkg, "cmd") {
					t.Errorf("%s imports %s: emit a typed event instead, cmd logs and counts it", f.name, imported)
				}
			}
		}
	}
}

// TestLayersHaveNoCycle guards the table itself, which could allow what the compiler would refuse only later.
func TestLayersHaveNoCycle(t *testing.T) {
	var visit func(pkg string, trail []string)
	visit = func(pkg string, trail []string) {
		if slices.Contains(trail, pkg) {
			t.Fatalf("cycle: %s", strings.Join(append(trail, pkg), " → "))
		}
		for _, next := range layers[pkg] {
			if _, known := layers[next]; !known {
				t.Errorf("%s may import %s, which has no place of its own", pkg, next)
			}
			visit(next, append(slices.Clone(trail), pkg))
		}
	}
	for pkg := range layers {
		visit(pkg, nil)
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range sourceFiles(t) {
		if f.pkg == "." {
			continue
		}
		documented[f.pkg] = documented[f.pkg] || f.ast.Doc != nil && !f.generated()
	}
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment", pkg)
		}
	}
}

func (f sourceFile) generated() bool { return ast.IsGenerated(f.ast) }
