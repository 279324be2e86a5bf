package replication

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// goldenMessages are bytes that other versions of this program send, too.
var goldenMessages = []struct {
	name  string
	bytes []byte
	hex   string
}{
	{"ack", func() []byte {
		b := make([]byte, headerSize)
		msg{Type: msgAck, Flags: flagCopied, View: 7, A: 0x1122334455667788, B: 9, Commit: 5, Nonce: 0xabcdef}.put(b)
		return b
	}(), "4c4b5334363bccf70b0200000000000007000000000000008877665544332211" +
		"09000000000000000500000000000000efcdab000000000000000000000000000000000000000000"},
	{"view", msg{Type: msgView, View: 3}.encodeJSON(viewsvc.View{Volume: "v", Num: 3, Tenure: 2, Primary: "a", Backups: []viewsvc.ReplicaID{"b"}}), ""},
	{"welcome", msg{Type: msgWelcome, View: 3}.encodeJSON(welcome{End: 9, Committed: 8, Applied: 7, Copying: true, CopyBase: 6,
		Epochs: blockdev.EpochIndex{{Epoch: 1, First: 1}, {Epoch: 4, First: 5}}}), ""},
	{"copy", msg{Type: msgCopy, View: 3, B: 12}.encodeJSON(startCopy{To: 8, Chain: 77, Epochs: blockdev.EpochIndex{{Epoch: 1, First: 1}}, Base: 4, Keep: true}), ""},
	{"region", msg{Type: msgRegion, View: 3, A: 2, B: 12}.encode(encodeRegion(&blockdev.RegionImage{Blocks: []blockdev.RegionBlock{{Index: 3}, {Index: 9, Lost: true, Sum: 5}}})), ""},
}

func TestHeaderOnTheWireIsAsDocumented(t *testing.T) {
	g := goldenMessages[0]
	if got := hex.EncodeToString(g.bytes); got != g.hex {
		t.Errorf("an Ack is\n%s, it was\n%s", got, g.hex)
	}
}

func TestMessageComesBackAsItWasSent(t *testing.T) {
	var wire bytes.Buffer
	view := viewsvc.View{Volume: "v", Num: 3, Tenure: 2, Primary: "a", Backups: []viewsvc.ReplicaID{"b"}}
	frame := bytes.Repeat([]byte{7}, 10000)
	sent := []msg{
		{Type: msgView, View: 3},
		{Type: msgAppend, View: 4, Commit: 99, BodyLen: uint32(len(frame))},
		{Type: msgConfirm, Flags: flagSync | flagReturn, View: 4, Commit: 100, Nonce: 1 << 60},
	}
	wire.Write(sent[0].encodeJSON(view))
	head := make([]byte, headerSize)
	sent[1].put(head)
	wire.Write(append(head, frame...))
	wire.Write(sent[2].encode(nil))
	rd := newReader(&wire)
	for i, want := range sent {
		m, body, err := rd.next()
		if err != nil {
			t.Fatal(err)
		}
		switch i {
		case 0:
			var v viewsvc.View
			if err := decodeJSON(body, &v); err != nil || !v.Equal(view) {
				t.Errorf("view %+v, %v", v, err)
			}
			m.BodyLen, m.BodySum = 0, 0
		case 1:
			if !bytes.Equal(body, frame) {
				t.Error("the frame is not what was sent")
			}
		}
		if diff := cmp.Diff(want, m); diff != "" {
			t.Error(diff)
		}
	}
	if _, _, err := rd.next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// Whatever byte of a message is damaged, it is found, except in a frame's body, which has sums of its own.
func TestDamageOnTheWireIsFound(t *testing.T) {
	whole := goldenMessages[1].bytes
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x10
		if _, _, err := newReader(bytes.NewReader(b)).next(); err == nil {
			t.Errorf("damage in byte %d goes unnoticed", i)
		}
	}
}

func TestLengthIsCheckedBeforeMemoryIsTaken(t *testing.T) {
	for typ, limit := range map[msgType]uint32{msgHello: maxControlBody, msgAppend: maxFrameBody, msgRegion: maxRegionBody,
		msgAck: 0, msgConfirm: 0, msgStart: 0, msgCopyDone: 0, 0: 0, 200: 0} {
		b := make([]byte, headerSize)
		msg{Type: typ, BodyLen: limit + 1}.put(b)
		if _, err := parseMsg(b); !errors.Is(err, errWire) {
			t.Errorf("type %d with a body of %d bytes: %v", typ, limit+1, err)
		}
	}
	// The largest frame there is, a write of 32 MiB that straddles blocks, has to fit.
	if maxFrameBody < blockdev.MaxRequestBytes+2*blockdev.BlockSize {
		t.Error("the largest frame does not fit into a message")
	}
}

// Who has not greeted yet cannot make a node take memory for a frame.
func TestStrangerGetsNoBuffer(t *testing.T) {
	b := make([]byte, headerSize)
	msg{Type: msgAppend, BodyLen: 16 << 20}.put(b)
	rd := newReader(bytes.NewReader(b))
	rd.max = maxControlBody
	if _, _, err := rd.next(); !errors.Is(err, errWire) || cap(rd.body) != 0 {
		t.Errorf("%v, buffer of %d bytes", err, cap(rd.body))
	}
}

func TestWelcomeWithImpossibleEpochsIsRefused(t *testing.T) {
	for _, x := range []blockdev.EpochIndex{
		{{Epoch: 1, First: 0}}, {{Epoch: 2, First: 5}, {Epoch: 1, First: 9}}, {{Epoch: 1, First: 5}, {Epoch: 2, First: 5}},
		make(blockdev.EpochIndex, blockdev.MaxEpochs+1),
	} {
		if (welcome{Epochs: x}).check() == nil {
			t.Errorf("%v is taken", x)
		}
	}
	if err := (welcome{Epochs: blockdev.EpochIndex{{Epoch: 0, First: 1}, {Epoch: 3, First: 2}}}).check(); err != nil {
		t.Error(err)
	}
}

func FuzzMessage(f *testing.F) {
	for _, g := range goldenMessages {
		f.Add(g.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		rd := newReader(bytes.NewReader(b))
		for {
			m, body, err := rd.next()
			if err != nil {
				return
			}
			if len(body) != int(m.BodyLen) {
				t.Fatalf("%d bytes of body, the header says %d", len(body), m.BodyLen)
			}
			var h hello
			var w welcome
			var c startCopy
			_, _ = decodeJSON(body, &h), decodeJSON(body, &c)
			if decodeJSON(body, &w) == nil && w.check() == nil {
				blockdev.CommonPoint(w.Epochs, w.End, blockdev.EpochIndex{{Epoch: 1, First: 1}, {Epoch: 4, First: 5}}, 9)
			}
			again := make([]byte, headerSize)
			m.put(again)
			if m2, err := parseMsg(again); err != nil || m2 != m {
				t.Fatalf("%+v is read back as %+v, %v", m, m2, err)
			}
		}
	})
}

func FuzzRegion(f *testing.F) {
	f.Add(encodeRegion(&blockdev.RegionImage{Blocks: []blockdev.RegionBlock{{Index: 3, Sum: 9}}, Data: make([]byte, blockdev.BlockSize)}))
	f.Add(encodeRegion(&blockdev.RegionImage{Blocks: []blockdev.RegionBlock{{Index: 3, Lost: true, Sum: 9}, {Index: 8}}}))
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		var img blockdev.RegionImage
		if decodeRegion(b, &img) == nil && !bytes.Equal(encodeRegion(&img), b) {
			t.Fatal("a region is not encoded as it was read")
		}
	})
}

func TestRegionComesBackAsItWasSent(t *testing.T) {
	const blocks = blockdev.RegionBytes / blockdev.BlockSize
	full := &blockdev.RegionImage{}
	for i := range blocks {
		data := bytes.Repeat([]byte{byte(i)}, blockdev.BlockSize)
		b := blockdev.RegionBlock{Index: uint16(i), Sum: wal.BlockSum(uint64(i), data)}
		switch i % 3 {
		case 0:
			b.Sum = 0
		case 1:
			full.Data = append(full.Data, data...)
		case 2:
			b.Lost = true
		}
		full.Blocks = append(full.Blocks, b)
	}
	for _, img := range []*blockdev.RegionImage{{}, {Blocks: []blockdev.RegionBlock{{Index: 255}}}, full} {
		b := encodeRegion(img)
		if len(b) > maxRegionBody {
			t.Fatalf("a region of %d bytes does not fit into a message", len(b))
		}
		var got blockdev.RegionImage
		if err := decodeRegion(b, &got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Data, img.Data) || !slices.Equal(got.Blocks, img.Blocks) {
			t.Error("a region is not what was sent")
		}
	}
	if err := decodeRegion(encodeRegion(full)[:1000], &blockdev.RegionImage{}); err == nil {
		t.Error("a piece of a region is taken")
	}
}

// Strangers, garbage and half a greeting neither stop a node nor hold it up.
func TestNodeShrugsOffGarbage(t *testing.T) {
	c := startCluster(t, 1)
	c.create(viewsvc.Volume{Name: "vol0", Size: 8 << 20, Copies: 1, MinCopies: 1, Sync: viewsvc.SyncAlways})
	v := c.safe("vol0", 1)
	at := c.nodes["n1"].PeerAddr().String()
	greeting := hello{Cluster: "another", Volume: v.Volume, From: "x", To: v.View.Primary, View: v.View}
	for name, b := range map[string][]byte{
		"nothing":          nil,
		"garbage":          bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 100),
		"half a header":    goldenMessages[0].bytes[:20],
		"an ack":           goldenMessages[0].bytes,
		"a foreign Hello":  msg{Type: msgHello}.encodeJSON(greeting),
		"no JSON":          msg{Type: msgHello}.encode([]byte("{{{")),
		"a foreign Fetch":  msg{Type: msgFetch}.encodeJSON(fetch{Volume: v.Volume.ID, To: v.View.Primary, Cluster: "another"}),
		"an endless frame": func() []byte { b := make([]byte, headerSize); msg{Type: msgAppend, BodyLen: 1 << 24}.put(b); return b }(),
	} {
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(b)
		if name != "nothing" && name != "half a header" {
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %d bytes of answer, %v", name, n, err)
			}
		}
		conn.Close()
	}
	d := c.dial(c.safe("vol0", 1))
	defer d.Close()
	if _, err := d.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
}

func TestHomeIsOneNodes(t *testing.T) {
	const uuid = "6f1a2b3c-0000-4000-8000-000000000001"
	for _, c := range []struct {
		name, file, want string
	}{
		{"of another node", `{"format":1,"node":"n2","cluster":"` + uuid + `"}`, `belongs to node "n2", not "n1"`},
		{"of a newer version", `{"format":2,"node":"n1","cluster":"` + uuid + `"}`, "format version 2"},
		{"damaged", `{"format":1,"no`, "is damaged"},
		{"without a cluster", `{"format":1,"node":"n1","cluster":""}`, "names no cluster"},
		{"too large", strings.Repeat("x", 2*maxIdentity), "is damaged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys, dir := newTestFS(t)
			f, err := fsys.Create(filepath.Join(dir, "node.json"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte(c.file), 0); err != nil {
				t.Fatal(err)
			}
			f.Close()
			_, err = openHome(fsys, dir, "n1")
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %q, want one line with %q", err, c.want)
			}
			if _, err := openHome(fsys, dir, "n1"); err == nil || strings.Contains(err.Error(), "in use") {
				t.Errorf("the lock was kept after a failure: %v", err)
			}
		})
	}
}

func TestHomeIsOneProcess(t *testing.T) {
	fsys, dir := newTestFS(t)
	h, err := openHome(fsys, dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openHome(fsys, dir, "n1"); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second process: %v", err)
	}
	h.close()
	if h, err = openHome(fsys, dir, "n1"); err != nil {
		t.Fatal(err)
	}
	h.close()
}

func TestHomeKeepsItsCluster(t *testing.T) {
	const one, two = "6f1a2b3c-0000-4000-8000-000000000001", "6f1a2b3c-0000-4000-8000-000000000002"
	fsys, dir := newTestFS(t)
	h, err := openHome(fsys, dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.join(one); err != nil {
		t.Fatal(err)
	}
	h.close()
	disk := fsys.Crash(noneSurvives)
	if h, err = openHome(disk, dir, "n1"); err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if h.cluster() != one {
		t.Errorf("after a power failure the cluster is %q", h.cluster())
	}
	if err := h.join(two); err == nil || !strings.Contains(err.Error(), "belongs to cluster "+one) {
		t.Errorf("joining another cluster: %v", err)
	}
}

func TestViewThatCannotBeStoredIsRefused(t *testing.T) {
	good := viewsvc.View{Volume: "v", Num: 1, Tenure: 1, Primary: "p", Backups: make([]viewsvc.ReplicaID, maxViewBackups)}
	if err := checkView(good); err != nil {
		t.Errorf("a view with %d backups: %v", maxViewBackups, err)
	}
	many, long := good, good
	many.Backups = make([]viewsvc.ReplicaID, maxViewBackups+1)
	long.Primary = viewsvc.ReplicaID(make([]byte, maxIDBytes+1))
	for _, v := range []viewsvc.View{many, long} {
		if err := checkView(v); !errors.Is(err, errWire) {
			t.Errorf("%d backups, primary of %d bytes: %v, want errWire", len(v.Backups), len(v.Primary), err)
		}
	}
}

// During an upgrade that changes the protocol a node says what is wrong, where it would otherwise only hang up.
func TestAnotherVersionOfTheProtocolIsRefusedInWords(t *testing.T) {
	newer := msg{Type: msgHello}.encodeJSON(hello{})
	newer[3]++
	if _, err := parseMsg(newer); !errors.Is(err, errVersion) || !strings.Contains(err.Error(), string(newer[:4])) {
		t.Errorf("%v", err)
	}
	var said Event
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() { // until far is closed, at the latest
		defer close(done)
		ServePeer(near, Host{Greet: make(chan struct{}, 1), OnEvent: func(e Event) { said = e }})
	}()
	if _, err := far.Write(newer); err != nil {
		t.Fatal(err)
	}
	far.Close()
	<-done
	if !errors.Is(said.Err, errVersion) {
		t.Errorf("the node says %v", said.Err)
	}
}
