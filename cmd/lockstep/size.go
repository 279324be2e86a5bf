package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"

	"lockstep/blockdev"
)

// units are the suffixes of a size. All are binary, as in fio, qemu-img and lvcreate. Decimal ones (GB) are refused:
// they name sizes that are no multiple of a block, and most people who write them mean the binary ones.
var units = []struct {
	suffix string
	shift  uint
}{{"K", 10}, {"M", 20}, {"G", 30}, {"T", 40}, {"P", 50}}

// parseSize reads a disk's size: bytes, or a whole number with one of the units (1G, 512M, 10GiB). The result is a
// positive multiple of the block size.
func parseSize(s string) (uint64, error) {
	digits := strings.TrimRightFunc(s, unicode.IsLetter)
	suffix := strings.ToUpper(s[len(digits):])
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size: write a whole number with a unit, like 512M or 10G", s)
	}
	shift, err := unitShift(suffix)
	if err != nil {
		return 0, fmt.Errorf("%q: %w", s, err)
	}
	// An offset has to fit into an int64: the operating system counts in those.
	if n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is too large for a disk", s)
	}
	n <<= shift
	if n == 0 || n%blockdev.BlockSize != 0 {
		return 0, fmt.Errorf("%q is %d bytes: a size has to be a positive multiple of %d", s, n, blockdev.BlockSize)
	}
	return n, nil
}

func unitShift(suffix string) (uint, error) {
	if suffix == "" || suffix == "B" {
		return 0, nil
	}
	for _, u := range units {
		switch suffix {
		case u.suffix, u.suffix + "IB":
			return u.shift, nil
		case u.suffix + "B":
			return 0, fmt.Errorf("decimal units are not used here: write %s for 2^%d bytes", u.suffix, u.shift)
		}
	}
	return 0, fmt.Errorf("unknown unit %s: use K, M, G, T or P", suffix)
}

// formatSize is parseSize's opposite for people: exact where that is short, else rounded down to a tenth.
func formatSize(n uint64) string {
	for i := len(units) - 1; i >= 0; i-- {
		u := units[i]
		if n>>u.shift == 0 {
			continue
		}
		whole, rest := n>>u.shift, n&(1<<u.shift-1)
		if rest == 0 {
			return fmt.Sprintf("%d %siB", whole, u.suffix)
		}
		return fmt.Sprintf("%d.%d %siB", whole, rest*10>>u.shift, u.suffix)
	}
	return fmt.Sprintf("%d B", n)
}

// sizeFlag is a size on the command line.
type sizeFlag uint64

func (f *sizeFlag) String() string {
	if *f == 0 {
		return ""
	}
	return strings.TrimSuffix(strings.ReplaceAll(formatSize(uint64(*f)), " ", ""), "iB")
}
func (f *sizeFlag) Type() string { return "SIZE" }
func (f *sizeFlag) Set(s string) error {
	n, err := parseSize(s)
	if err == nil {
		*f = sizeFlag(n)
	}
	return err
}
