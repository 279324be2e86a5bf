package main

import (
	"math"
	"os/exec"
	"strings"
	"testing"
)

func TestSizes(t *testing.T) {
	good := map[string]uint64{
		"4096":       4096,
		"8192B":      8192,
		"4K":         4096,
		"512M":       512 << 20,
		"1g":         1 << 30,
		"10GiB":      10 << 30,
		"2T":         2 << 40,
		"7P":         7 << 50,
		"1048576KiB": 1 << 30,
	}
	for text, want := range good {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	bad := map[string]string{
		"":                      "is not a size",
		"G":                     "is not a size",
		"-1G":                   "is not a size",
		"1.5G":                  "is not a size",
		"1 G":                   "is not a size",
		"0x10":                  "is not a size",
		"ten":                   "is not a size",
		"0":                     "multiple of 4096",
		"1K":                    "multiple of 4096",
		"4097":                  "multiple of 4096",
		"1GB":                   "write G for",
		"1GG":                   "unknown unit",
		"1E":                    "unknown unit",
		"9P9":                   "is not a size",
		"8192P":                 "too large",
		"18446744073709551615":  "too large",
		"99999999999999999999G": "is not a size",
	}
	for text, want := range bad {
		if got, err := parseSize(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseSize(%q) = %d, %v; want an error with %q", text, got, err, want)
		}
	}
}

func TestSizesForPeople(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 4095: "3.9 KiB", 1000: "1000 B", 4096: "4 KiB", 1 << 30: "1 GiB", 3 << 29: "1.5 GiB",
		10<<40 - 1: "9.9 TiB", math.MaxUint64: "16383.9 PiB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

// TestShellReadsAPathAsItIs: hints can be copied whatever a directory is called.
func TestShellReadsAPathAsItIs(t *testing.T) {
	for path, want := range map[string]string{"/srv/a-b_c.1": "/srv/a-b_c.1", "": "''", "/my data": "'/my data'", "it's $HOME": `'it'\''s $HOME'`} {
		got := shellWord(path)
		out, err := exec.Command("sh", "-c", "printf %s "+got).Output()
		if got != want || err != nil || string(out) != path {
			t.Errorf("%q is written %s and read %q, %v; want %s", path, got, out, err, want)
		}
	}
}

// TestSizeFlagShowsWhatItReads: the default in a help text can be typed.
func TestSizeFlagShowsWhatItReads(t *testing.T) {
	for _, n := range []uint64{4096, 128 << 20, 1 << 30, 10 << 40} {
		f := sizeFlag(n)
		if back, err := parseSize(f.String()); err != nil || back != n {
			t.Errorf("%d shows as %q, which reads as %d, %v", n, f.String(), back, err)
		}
	}
}

func FuzzSize(f *testing.F) {
	for _, s := range []string{"1G", "10GiB", "1GB", "", "B", "4096"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSize(s)
		if err == nil && (n == 0 || n%4096 != 0 || n > math.MaxInt64) {
			t.Errorf("parseSize(%q) = %d", s, n)
		}
	})
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		check func(string) error
		addr  string
		want  string // part of the error; "" for none
	}{
		{checkListen, "127.0.0.1:7400", ""},
		{checkListen, ":0", ""},
		{checkListen, "[::1]:7400", ""},
		{checkListen, "localhost", "not HOST:PORT"},
		{checkListen, "::1:7400", "not HOST:PORT"},
		{checkListen, "h:http", "port has to be a number"},
		{checkListen, "h:65536", "port has to be a number"},
		{checkReachable, "db1:7400", ""},
		{checkReachable, ":7400", "no host"},
		{checkReachable, "0.0.0.0:7400", "no host"},
		{checkReachable, "[::]:7400", "no host"},
		{checkReachable, "127.0.0.1:0", "port 0"},
		{checkClientExport, "unix:/run/lockstep.sock", ""},
		{checkClientExport, "unix:lockstep.sock", "absolute path"},
		{checkClientExport, "unix:/" + strings.Repeat("x", 107), "at most 107 bytes"},
		{checkClientExport, "unix:/" + strings.Repeat("x", 106), ""},
		{checkClientExport, ":10809", ""},
	} {
		err := c.check(c.addr)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.addr, err, c.want)
		}
	}
}

func TestPeers(t *testing.T) {
	peers := peersFlag{}
	if err := peers.Set("v2=10.0.0.2:7400"); err != nil || peers["v2"] != "10.0.0.2:7400" {
		t.Fatal(peers, err)
	}
	for value, want := range map[string]string{
		"10.0.0.3:7400":    "not ID=HOST:PORT",
		"=10.0.0.3:7400":   "must not be empty",
		"v3=10.0.0.3":      "not HOST:PORT",
		"v2=10.0.0.3:7400": "given twice",
	} {
		if err := peers.Set(value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--peer %s: %v, want %q", value, err, want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"vol0", "a", "0-a_b.c", strings.Repeat("x", 63)} {
		if err := checkVolumeName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "-a", "a/b", "a b", "a\n", "ä", "a?b", "Vol0", strings.Repeat("x", 64)} {
		if err := checkVolumeName(name); err == nil {
			t.Errorf("%q is accepted as a volume's name", name)
		}
	}
	if err := checkName("a node's id", "N1"); err != nil {
		t.Errorf("upper case is for nodes: %v", err)
	}
}
