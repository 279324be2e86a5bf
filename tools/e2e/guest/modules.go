package guest

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"strings"
)

// module is a kernel module, ready to be loaded after those before it.
type module struct {
	Name string
	ELF  []byte
}

// modulesFor gives the wanted modules with what they depend on, in the order in which they load. What this kernel has
// built in, or does not know, is left out: the guest's init finds out.
func modulesFor(ctx context.Context, t kernelTree, wanted ...string) ([]module, error) {
	var order []module
	seen := make(map[string]bool)
	var add func(name string) error
	add = func(name string) error {
		name = moduleName(name)
		file, ok := t.Modules[name]
		if !ok || seen[name] {
			return nil
		}
		seen[name] = true
		b, err := readModule(ctx, file)
		if err != nil {
			return fmt.Errorf("guest: module %s: %w", name, err)
		}
		needs, err := dependencies(b)
		if err != nil {
			return fmt.Errorf("guest: module %s: %w", name, err)
		}
		for _, dep := range needs {
			if err := add(dep); err != nil {
				return err
			}
		}
		order = append(order, module{name, b})
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// dependencies reads what a module says of itself: hard ones, and soft ones that load before it.
func dependencies(b []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var list []string
	for _, field := range strings.Split(string(info), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "depends":
			for _, name := range strings.Split(value, ",") {
				if name != "" {
					list = append(list, name)
				}
			}
		case "softdep":
			if pre, ok := strings.CutPrefix(value, "pre: "); ok {
				list = append(list, strings.Fields(pre)...)
			}
		}
	}
	return list, nil
}
