package main

import (
	"fmt"
	"strings"
)

// nameMax is the longest name of a volume, node or view server.
const nameMax = 63

// checkName accepts names of nodes and view servers: letters, digits, and, after the first, dots, dashes and underscores.
func checkName(what, s string) error {
	if s == "" {
		return fmt.Errorf("%s must not be empty", what)
	}
	if len(s) > nameMax {
		return fmt.Errorf("%s has at most %d bytes, \"%.20s...\" has %d", what, nameMax, s, len(s))
	}
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '-' || c == '_'):
		default:
			return fmt.Errorf("%s is made of letters, digits and (not first) . - _, which %q is not", what, s)
		}
	}
	return nil
}

// checkVolumeName accepts names of volumes. They have no upper case: a volume's name is a directory's name and a part of
// URLs, and two volumes should differ by more than that.
func checkVolumeName(s string) error {
	if err := checkName("a volume's name", s); err != nil {
		return err
	}
	if low := strings.ToLower(s); low != s {
		return fmt.Errorf("a volume's name has no upper case: write %q", low)
	}
	return nil
}

// nameFlag is the name of a node or view server on the command line.
type nameFlag string

func (f *nameFlag) String() string { return string(*f) }
func (f *nameFlag) Type() string   { return "NAME" }
func (f *nameFlag) Set(s string) error {
	*f = nameFlag(s)
	return checkName("a name", s)
}
