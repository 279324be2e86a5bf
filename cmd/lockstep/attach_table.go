package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// readTable finds a volume in a table of attachments: a line each, with the name and what else `lockstep attach` is to be
// given; # begins a comment. It sets the flags that were not given on the command line, and returns the device, or "".
// tools/packaging/etc/lockstep/attach is an example.
func readTable(flags *pflag.FlagSet, file, volume string) (device string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("attach: --table: %w", err)
	}
	number, fields, err := tableLine(string(b), volume)
	if err != nil {
		return "", usagef("attach: %s: %w", file, err)
	}
	wrong := func(err error) (string, error) { return "", usagef("attach: %s:%d: %w", file, number, err) }
	given := make(map[string]string)
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = f.Value.String() })
	if err := flags.Parse(fields); err != nil {
		return wrong(err)
	}
	rest := flags.Args()
	for name, value := range given {
		if err := flags.Set(name, value); err != nil {
			return wrong(err)
		}
	}
	switch len(rest) {
	case 0:
		return "", nil
	case 1:
		return rest[0], nil
	}
	return wrong(fmt.Errorf("unexpected %q: a line has a volume, options and a device", rest[1]))
}

// tableLine is what stands behind a volume's name, and in which line.
func tableLine(table, volume string) (found int, fields []string, err error) {
	number := 0
	for line := range strings.Lines(table) {
		number++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != volume {
			continue
		}
		if found > 0 {
			return 0, nil, fmt.Errorf("volume %s is in line %d and again in line %d", volume, found, number)
		}
		found, fields = number, words[1:]
	}
	if found == 0 {
		return 0, nil, fmt.Errorf("there is no volume %s: add a line for it", volume)
	}
	return found, fields, nil
}
