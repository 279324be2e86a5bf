package exportname

import (
	"errors"
	"math"
	"strings"
	"testing"

	"lockstep/blockdev"
)

func TestNamesOfTheProtocol(t *testing.T) {
	for _, c := range []struct {
		name   string
		volume string
		id     blockdev.SessionID
	}{
		{"vol0", "vol0", blockdev.SessionID{}},
		{"my disk/ü&session=x", "my disk/ü&session=x", blockdev.SessionID{}},
		{"vol0?session=s&generation=0", "vol0", blockdev.SessionID{Name: "s"}},
		{"vol0?session=6f1c2f9e-2b7d-4d4e-9c1f-0a1b2c3d4e5f&generation=12", "vol0",
			blockdev.SessionID{Name: "6f1c2f9e-2b7d-4d4e-9c1f-0a1b2c3d4e5f", Generation: 12}},
		{"v?session=A.b_c-9&generation=18446744073709551615", "v",
			blockdev.SessionID{Name: "A.b_c-9", Generation: math.MaxUint64}},
		{"v?session=s&generation=1&era=9", "v", blockdev.SessionID{Name: "s", Generation: 1, Era: 9}},
		{"v?session=s&generation=1&exclusive=1", "v", blockdev.SessionID{Name: "s", Generation: 1, Exclusive: true}},
		{"v?session=s&generation=1&numbered=1", "v", blockdev.SessionID{Name: "s", Generation: 1, Numbers: "s"}},
		{"v?session=s&generation=1&era=9&exclusive=1&numbered=1", "v",
			blockdev.SessionID{Name: "s", Generation: 1, Era: 9, Exclusive: true, Numbers: "s"}},
		{"v?session=s&generation=1&numbers=t", "v", blockdev.SessionID{Name: "s", Generation: 1, Numbers: "t"}},
		{"v?session=s&generation=1&era=9&exclusive=1&numbers=6f1c2f9e-2b7d-4d4e-9c1f-0a1b2c3d4e5f", "v",
			blockdev.SessionID{Name: "s", Generation: 1, Era: 9, Exclusive: true, Numbers: "6f1c2f9e-2b7d-4d4e-9c1f-0a1b2c3d4e5f"}},
		{"v?session=s&generation=1&era=9&exclusive=1", "v", blockdev.SessionID{Name: "s", Generation: 1, Era: 9, Exclusive: true}},
	} {
		volume, id, err := Parse(c.name)
		if err != nil || volume != c.volume || id != c.id {
			t.Errorf("Parse(%q) = %q, %+v, %v; want %q, %+v", c.name, volume, id, err, c.volume, c.id)
		}
		if got := Format(c.volume, c.id); got != c.name {
			t.Errorf("Format(%q, %+v) = %q, want %q", c.volume, c.id, got, c.name)
		}
	}
}

func TestMalformedNamesAreRefused(t *testing.T) {
	for _, name := range []string{
		"",
		"?session=s&generation=1",
		"v?",
		"v?x",
		"v?session=s",
		"v?session=&generation=1",
		"v?session=s&generation=",
		"v?session=s&generation=01",
		"v?session=s&generation=+1",
		"v?session=s&generation=-1",
		"v?session=s&generation=1 ",
		"v?session=s&generation=1&more=2",
		"v?session=s&generation=18446744073709551616",
		"v?session=s&session=t&generation=1",
		"v?session=s&generation=1&era=0",
		"v?session=s&generation=1&era=",
		"v?session=s&generation=1&era=1&era=2",
		"v?session=s&generation=1&exclusive=0",
		"v?session=s&generation=1&numbered=1&exclusive=1",
		"v?session=s&generation=1&numbered=2",
		"v?session=s&generation=1&numbers=",
		"v?session=s&generation=1&numbers=s",
		"v?session=s&generation=1&numbers=t&numbered=1",
		"v?session=s&generation=1&numbered=1&numbers=t",
		"v?session=s&generation=1&numbers=t&exclusive=1",
		"v?session=s&generation=1&numbers=t&numbers=t",
		"v?session=s&generation=1&numbers=" + strings.Repeat("x", MaxSessionBytes+1),
		"v?session=s&generation=1&exclusive=1&era=1",
		"v?session=s&generation=1&exclusive=1&exclusive=1",
		"v?session=a\x00b&generation=1",
		"v?generation=1&session=s",
		"v??session=s&generation=1",
		"v?session=" + strings.Repeat("x", MaxSessionBytes+1) + "&generation=1",
		strings.Repeat("v", MaxVolumeBytes+1),
	} {
		if volume, id, err := Parse(name); !errors.Is(err, ErrMalformed) {
			t.Errorf("Parse(%q) = %q, %+v, %v; want ErrMalformed", name, volume, id, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("vol0")
	f.Add("vol0?session=s&generation=7")
	f.Add("vol0?session=s&generation=07")
	f.Add("vol0?session=s&generation=7&era=3&exclusive=1")
	f.Add("vol0?session=s&generation=7&numbered=1")
	f.Add("vol0?session=s&generation=7&era=3&exclusive=1&numbers=t")
	f.Fuzz(func(t *testing.T, name string) {
		volume, id, err := Parse(name)
		if err != nil {
			if volume != "" || id != (blockdev.SessionID{}) {
				t.Errorf("Parse(%q) fails and returns %q, %+v", name, volume, id)
			}
			return
		}
		if got := Format(volume, id); got != name {
			t.Errorf("Format(Parse(%q)) = %q", name, got)
		}
	})
}

func TestPrimarysSpelling(t *testing.T) {
	for _, p := range []Primary{{View: 1, NBD: "127.0.0.1:10810"}, {View: math.MaxUint64, NBD: "[::1]:1"}, {View: 7, NBD: "a-b_c.example:65535"}} {
		got, err := ParsePrimary(FormatPrimary(p))
		if err != nil || got != p {
			t.Errorf("%+v came back as %+v, %v", p, got, err)
		}
	}
	for _, text := range []string{
		"", "primary", "primary?view=1", "primary?view=0&nbd=a:1", "primary?view=01&nbd=a:1", "primary?view=1&nbd=",
		"primary?view=1&nbd=a", "primary?view=1&nbd=a:0", "primary?view=1&nbd=a:65536", "primary?view=1&nbd=unix:/x",
		"primary?view=1&nbd=a/b:1", "primary?view=1&nbd=a\n:1", "there is no export \"x\" here",
		"primary?view=1&nbd=" + strings.Repeat("a", 300) + ":1",
	} {
		if p, err := ParsePrimary(text); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q was read as %+v, %v", text, p, err)
		}
	}
}
