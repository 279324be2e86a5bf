package guest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// kernelPackage is Debian's name for its current kernel: it depends on the package that has it.
const kernelPackage = "linux-image-amd64"

// kernelTree is a kernel that was taken out of its package.
type kernelTree struct {
	Image   string            // the file to boot
	Modules map[string]string // file by the module's name
}

// kernel finds the kernel in the cache, or downloads it with apt-get.
func kernel(ctx context.Context) (kernelTree, error) {
	cache, err := os.UserCacheDir()
	if err != nil { // no $HOME, in CI
		cache = os.TempDir()
	}
	pkg, err := newestKernel(ctx)
	if err != nil && os.Getuid() == 0 { // the lists may be missing, in a container
		if out, e := exec.CommandContext(ctx, "apt-get", "-qq", "update").CombinedOutput(); e != nil {
			return kernelTree{}, fmt.Errorf("guest: apt-get update: %w: %s", e, out)
		}
		pkg, err = newestKernel(ctx)
	}
	if err != nil {
		return kernelTree{}, err
	}
	dir := filepath.Join(cache, "lockstep-guest", pkg)
	if _, err := os.Stat(dir); err != nil {
		if err := download(ctx, pkg, dir); err != nil {
			return kernelTree{}, fmt.Errorf("guest: kernel: %w", err)
		}
	}
	return readTree(dir)
}

// newestKernel resolves the dependency.
func newestKernel(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--no-recommends", "--no-suggests", kernelPackage).Output()
	if err != nil {
		return "", fmt.Errorf("guest: apt-cache depends %s: %w", kernelPackage, err)
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + name, nil
		}
	}
	return "", errors.New("guest: apt knows no kernel; run apt-get update")
}

// download makes dir, whole or not at all.
func download(ctx context.Context, pkg, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	get := exec.CommandContext(ctx, "apt-get", "-q", "download", pkg)
	get.Dir = work
	if os.Getuid() == 0 {
		// apt drops root's rights for the download if the directory lets it, and warns otherwise.
		get.Args = append(get.Args, "-o", "APT::Sandbox::User=root")
	}
	if out, err := get.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download %s: %w: %s", pkg, err, out)
	}
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("apt-get download %s: got %v", pkg, debs)
	}
	tree := filepath.Join(work, "tree")
	if err := unpack(ctx, debs[0], tree); err != nil {
		return err
	}
	return os.Rename(tree, dir)
}

// unpack takes the kernel and its modules out of a package, and leaves the rest.
func unpack(ctx context.Context, deb, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := tar.NewReader(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return errors.Join(err, cmd.Wait())
		}
		base := path.Base(h.Name)
		if h.Typeflag != tar.TypeReg || !strings.HasPrefix(base, "vmlinuz") && !strings.Contains(base, ".ko") {
			continue
		}
		f, err := os.Create(filepath.Join(dir, base))
		if err != nil {
			return errors.Join(err, cmd.Wait())
		}
		_, err = io.Copy(f, r)
		if err = errors.Join(err, f.Close()); err != nil {
			return errors.Join(err, cmd.Wait())
		}
	}
	return cmd.Wait()
}

func readTree(dir string) (kernelTree, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return kernelTree{}, err
	}
	t := kernelTree{Modules: make(map[string]string)}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if module, _, ok := strings.Cut(e.Name(), ".ko"); ok {
			t.Modules[moduleName(module)] = name
		} else {
			t.Image = name
		}
	}
	if t.Image == "" || len(t.Modules) == 0 {
		return t, fmt.Errorf("guest: there is no kernel in %s; remove it to download it again", dir)
	}
	return t, nil
}

// moduleName is the kernel's spelling: file names may have dashes.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// readModule gives a module's ELF file. Debian compresses them from version 13 on.
func readModule(ctx context.Context, name string) ([]byte, error) {
	switch filepath.Ext(name) {
	case ".xz", ".zst":
		tool := map[string]string{".xz": "xz", ".zst": "zstd"}[filepath.Ext(name)]
		return exec.CommandContext(ctx, tool, "-dc", name).Output()
	case ".gz":
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	}
	return os.ReadFile(name)
}
