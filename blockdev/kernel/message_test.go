package kernel

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"lockstep/blockdev/nbd"
)

var exampleConfig = Config{
	Size: 1 << 30, BlockSize: 4096, DeadTimeout: time.Hour, Identifier: "lockstep vol0",
	Flags: nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendFUA | nbd.FlagSendTrim | nbd.FlagSendWriteZeroes |
		nbd.FlagCanMultiConn | nbd.FlagSendCache,
}

// golden fails if b is not what is written in hexadecimal, spaces aside. The bytes are those that a little-endian
// kernel reads; its header files say what they have to be.
func golden(t *testing.T, what string, b []byte, want string) {
	t.Helper()
	if order.Uint16([]byte{1, 0}) != 1 {
		t.Skip("written down for little-endian machines")
	}
	w, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(want))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, w) {
		t.Errorf("%s:\n got %x\nwant %x", what, b, w)
	}
}

func TestMessagesAreWhatTheKernelReads(t *testing.T) {
	golden(t, "find the driver", message{
		kind: unix.GENL_ID_CTRL, flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK, seq: 1,
		command: unix.CTRL_CMD_GETFAMILY, version: 1, payload: encodeFamilyQuery(),
	}.encode(), `1c000000 1000 0500 01000000 00000000  03 01 0000
		0800 0200 6e626400`)
	golden(t, "connect", encodeConnect(3, exampleConfig, 9), `
		0800 0100 03000000
		0c00 0200 0000004000000000
		0c00 0300 0010000000000000
		0c00 0400 0000000000000000
		0c00 0800 100e000000000000
		0c00 0500 6d00000000000000
		0c00 0600 0000000000000000
		1200 0a00 6c6f636b7374657020766f6c3000 0000
		1000 0780 0c00 0180 0800 0100 09000000`)
	golden(t, "connect any", encodeConnect(AnyIndex, exampleConfig, 9)[:4], `0c00 0200`)
	golden(t, "reconfigure", encodeReconfigure(3, "v", 1<<30, 9), `
		0800 0100 03000000
		0c00 0200 0000004000000000
		0600 0a00 7600 0000
		1000 0780 0c00 0180 0800 0100 09000000`)
	golden(t, "resize", encodeReconfigure(3, "v", 1<<30, noSocket), `
		0800 0100 03000000
		0c00 0200 0000004000000000
		0600 0a00 7600 0000`)
	golden(t, "disconnect", encodeIndex(2), `0800 0100 02000000`)
	golden(t, "status of all", encodeIndex(AnyIndex), ``)
}

func TestAnswersAreRead(t *testing.T) {
	k := newFakeKernel(t)
	k.devices[2] = &fakeDevice{}
	d := k.open(t)
	if diff := cmp.Diff(family{fakeFamily, fakeGroup}, d.family, cmp.AllowUnexported(family{})); diff != "" {
		t.Error(diff)
	}
	all, err := d.Status(AnyIndex)
	if diff := cmp.Diff([]Status{{0, false}, {1, false}, {2, true}, {3, false}}, all); diff != "" || err != nil {
		t.Error(diff, err)
	}
	one, err := d.Status(2)
	if diff := cmp.Diff([]Status{{2, true}}, one); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"sector 0":      func(c *Config) { c.BlockSize = 0 },
		"sector 768":    func(c *Config) { c.BlockSize = 768 },
		"sector 8192":   func(c *Config) { c.BlockSize = 8192 },
		"no disk":       func(c *Config) { c.Size = 0 },
		"odd disk":      func(c *Config) { c.Size++ },
		"no patience":   func(c *Config) { c.DeadTimeout = time.Millisecond },
		"no identifier": func(c *Config) { c.Identifier = "" },
		"long name":     func(c *Config) { c.Identifier = strings.Repeat("x", 257) },
	} {
		c := exampleConfig
		spoil(&c)
		if c.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := exampleConfig.Validate(); err != nil {
		t.Error(err)
	}
}

func TestMalformedMessagesAreRefused(t *testing.T) {
	good := message{kind: fakeFamily, command: cmdStatus, version: 1, payload: newFakeKernel(t).status(fakeRequest{index: AnyIndex})}.encode()
	for n := range good {
		if _, _, err := decodeMessage(good[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	for n := 1; n < len(good)-20; n++ {
		if _, err := decodeStatus(good[20 : 20+n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d of %d bytes of attributes: %v", n, len(good)-20, err)
		}
	}
}

// FuzzDecode: no bytes from the socket cause a panic, and what is read can be written again.
func FuzzDecode(f *testing.F) {
	k := newFakeKernel(nil)
	answer, _ := k.family(message{})
	f.Add(message{kind: unix.GENL_ID_CTRL, command: 1, payload: answer}.encode())
	f.Add(message{kind: fakeFamily, command: cmdStatus, payload: k.status(fakeRequest{index: AnyIndex})}.encode())
	f.Add(message{kind: fakeFamily, command: cmdConnect, payload: encodeConnect(1, exampleConfig, 5)}.encode())
	f.Add(fakeError(1, unix.EBUSY, make([]byte, 16)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			m, rest, err := decodeMessage(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			_, _ = decodeError(m.payload)
			_, _ = decodeFamily(m.payload)
			_, _ = decodeStatus(m.payload)
			_, _ = decodeIndex(m.payload)
			if list, err := decodeAttributes(m.payload); err == nil {
				var again attributes
				for _, a := range list {
					again.bytes(a.kind, a.value)
				}
				if back, err := decodeAttributes(again); err != nil || len(back) != len(list) {
					t.Fatalf("%d attributes became %d: %v", len(list), len(back), err)
				}
			}
			b = rest
		}
	})
}
