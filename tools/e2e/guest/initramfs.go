package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
)

// archive is an initramfs under way, in cpio's "newc" format.
type archive struct {
	buf  bytes.Buffer
	seen map[string]bool
	ino  int
}

func newArchive() *archive { return &archive{seen: make(map[string]bool)} }

// entry adds a file or directory, and the directories above it. A second one of the same name is ignored.
func (a *archive) entry(name string, mode uint32, data []byte) {
	if a.seen[name] {
		return
	}
	a.seen[name] = true
	if dir := path.Dir(name); dir != "." {
		a.entry(dir, 0o40755, nil)
	}
	a.ino++
	// magic, then inode, mode, uid, gid, links, mtime, size, 4 device numbers, length of the name, a checksum that is 0
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.buf.WriteString(name + "\x00")
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

func (a *archive) file(name string, data []byte) { a.entry(name, 0o100755, data) }

// finish gives the whole.
func (a *archive) finish() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}

// host adds a file of this machine.
func (a *archive) host(name, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.file(name, b)
	return nil
}

// libraryDirs is where the dynamic linker looks, in Debian on amd64.
var libraryDirs = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "lib", "usr/lib"}

// program adds a program of this machine, with the libraries that it needs.
func (a *archive) program(tool string) error {
	from, err := exec.LookPath(tool)
	if err != nil {
		return err
	}
	if from, err = filepath.EvalSymlinks(from); err != nil {
		return err
	}
	if err := a.host("bin/"+tool, from); err != nil {
		return err
	}
	return a.libraries(from)
}

func (a *archive) libraries(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return err
			}
			interpreter := string(bytes.TrimRight(b, "\x00"))
			if err := a.host(interpreter[1:], interpreter); err != nil {
				return err
			}
		}
	}
	for _, lib := range needed {
		i := slices.IndexFunc(libraryDirs, func(dir string) bool {
			_, err := os.Stat("/" + dir + "/" + lib)
			return !errors.Is(err, fs.ErrNotExist)
		})
		if i < 0 {
			return fmt.Errorf("guest: %s needs %s, which is not here", file, lib)
		}
		name := libraryDirs[i] + "/" + lib
		if a.seen[name] {
			continue
		}
		if err := a.host(name, "/"+name); err != nil {
			return err
		}
		if err := a.libraries("/" + name); err != nil {
			return err
		}
	}
	return nil
}
