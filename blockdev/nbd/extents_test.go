package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
)

const (
	holeZero = 3 // STATE_HOLE | STATE_ZERO
	kept     = 2 // STATE_ZERO
)

// Contexts are selected by exact names; what is not known is ignored, what is malformed refused.
func TestMetadataContexts(t *testing.T) {
	addr := serveRefusing(t)
	context := func(option, id uint32) func(r *raw) {
		return func(r *raw) { r.wantReply(option, repMeta, id, "base:allocation"); r.wantReply(option, repAck) }
	}
	none := func(option uint32) func(r *raw) { return func(r *raw) { r.wantReply(option, repAck) } }
	refused := func(option, kind uint32) func(r *raw) { return func(r *raw) { r.wantReply(option, kind) } }
	for _, c := range []struct {
		name   string
		option uint32
		data   []byte
		want   func(r *raw)
	}{
		{"list all", optListMeta, metaData("a"), context(optListMeta, 0)},
		{"list by name", optListMeta, metaData("a", "base:allocation"), context(optListMeta, 0)},
		{"list by namespace", optListMeta, metaData("a", "base:"), context(optListMeta, 0)},
		{"list names it once", optListMeta, metaData("a", "base:", "base:allocation", "base:"), context(optListMeta, 0)},
		{"list another namespace", optListMeta, metaData("a", "qemu:"), none(optListMeta)},
		{"list another leaf", optListMeta, metaData("a", "base:other"), none(optListMeta)},
		{"list no name at all", optListMeta, metaData("a", ""), none(optListMeta)},
		{"list of an unknown export", optListMeta, metaData("nope"), refused(optListMeta, errUnknown)},
		{"list of a forbidden export", optListMeta, metaData("forbidden"), refused(optListMeta, errPolicy)},
		{"set", optSetMeta, metaData("a", "base:allocation"), context(optSetMeta, allocation)},
		{"set among others", optSetMeta, metaData("a", "x-y:z", "base:allocation", "qemu:dirty-bitmap:b"), context(optSetMeta, allocation)},
		{"set nothing", optSetMeta, metaData("a"), none(optSetMeta)},
		{"set a whole namespace", optSetMeta, metaData("a", "base:"), none(optSetMeta)},
		{"set something longer", optSetMeta, metaData("a", "base:allocation-depth"), none(optSetMeta)},
		{"set no name at all", optSetMeta, metaData("a", ""), none(optSetMeta)},
		{"set of an unknown export", optSetMeta, metaData("nope", "base:allocation"), refused(optSetMeta, errUnknown)},
		{"no data", optSetMeta, nil, refused(optSetMeta, errInvalid)},
		{"a name beyond the option", optSetMeta, wire(uint32(9), "a", uint32(0)), refused(optSetMeta, errInvalid)},
		{"no count", optListMeta, wire(uint32(1), "a"), refused(optListMeta, errInvalid)},
		{"more queries than there are", optListMeta, wire(uint32(1), "a", uint32(2), uint32(1), "x"), refused(optListMeta, errInvalid)},
		{"four billion queries", optListMeta, wire(uint32(1), "a", uint32(1<<32-1)), refused(optListMeta, errInvalid)},
		{"a query beyond the option", optListMeta, wire(uint32(1), "a", uint32(1), uint32(1<<32-1), "x"), refused(optListMeta, errInvalid)},
		{"bytes left over", optListMeta, append(metaData("a", "base:"), 0), refused(optListMeta, errInvalid)},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := dialRaw(t, addr)
			r.hello(3)
			r.option(c.option, c.data)
			r.wantReply(c.option, errInvalid) // not before structured replies
			r.option(optStructured, nil)
			r.wantReply(optStructured, repAck)
			r.option(c.option, c.data)
			c.want(r)
			r.option(optAbort, nil)
			r.wantReply(optAbort, repAck)
		})
	}
}

// Block status is for the connection whose last SET_META_CONTEXT selected the context for the export that it has.
func TestBlockStatusNeedsItsContext(t *testing.T) {
	dev := newSparse(testSize)
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}, {Name: "b", Device: dev}}})
	for name, set := range map[string][][]byte{
		"not selected":        {metaData("a")},
		"another export's":    {metaData("b", "base:allocation")},
		"selected and undone": {metaData("a", "base:allocation"), metaData("a")},
		"undone by a failure": {metaData("a", "base:allocation"), {1}},
	} {
		t.Run(name, func(t *testing.T) {
			r := dialRaw(t, addr)
			r.hello(3)
			r.option(optStructured, nil)
			r.wantReply(optStructured, repAck)
			for _, data := range set {
				r.option(optSetMeta, data)
				for kind := uint32(repMeta); kind == repMeta; {
					kind, _ = r.reply(optSetMeta)
				}
			}
			r.option(optGo, goData("a"))
			r.reply(optGo)
			r.wantReply(optGo, repAck)
			r.request(0, cmdStatus, 1, 0, 4096)
			r.wantErrorChunk(einval, 1)
		})
	}
}

// holey is a disk of data in blocks 1, 2 and 5, a hole that keeps its space in block 3, and holes.
func holey(t *testing.T) (dev *sparse, content []byte) {
	t.Helper()
	dev = newSparse(16 * 4096)
	content = make([]byte, dev.size)
	for _, block := range []int{1, 2, 5} {
		p := bytes.Repeat([]byte{byte(block)}, 4096)
		copy(content[block*4096:], p)
		dev.do(&blockdev.Request{Op: blockdev.OpWrite, Offset: uint64(block) * 4096, Length: 4096, Data: p})
	}
	dev.do(&blockdev.Request{Op: blockdev.OpWriteZeroes, Flags: blockdev.FlagNoHole, Offset: 3 * 4096, Length: 4096})
	return dev, content
}

// Block status tells of each part of the range, joined, and of nothing beyond it.
func TestBlockStatus(t *testing.T) {
	dev, _ := holey(t)
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	r := dialRaw(t, addr)
	r.attachWith("a")
	for i, c := range []struct {
		flags          uint16
		offset, length uint32
		want           []uint32
	}{
		{0, 0, 16 * 4096, []uint32{4096, holeZero, 8192, 0, 4096, kept, 4096, holeZero, 4096, 0, 10 * 4096, holeZero}},
		{flagReqOne, 0, 16 * 4096, []uint32{4096, holeZero}},
		{flagReqOne, 4096, 16, []uint32{16, 0}},
		{0, 4095, 2, []uint32{1, holeZero, 1, 0}},
		{0, 4096, 4096, []uint32{4096, 0}},
		{flagFUA, 15 * 4096, 4096, []uint32{4096, holeZero}},
		{0, 16*4096 - 1, 1, []uint32{1, holeZero}},
	} {
		r.request(c.flags, cmdStatus, uint64(i), uint64(c.offset), c.length)
		r.wantChunk(done, chunkStatus, uint64(i), uint32(allocation), c.want)
	}
	for i, c := range []struct {
		flags          uint16
		offset, length uint32
	}{{0, 16 * 4096, 1}, {0, 0, 16*4096 + 1}, {0, 0, 0}, {0, 0, 1<<32 - 1}, {flagDF, 0, 4096}, {flagNoHole, 0, 4096}} {
		r.request(c.flags, cmdStatus, uint64(i), uint64(c.offset), c.length)
		r.wantErrorChunk(einval, uint64(i))
	}
}

// A reply has a limit of extents; the client asks on from there.
func TestManyExtents(t *testing.T) {
	const blocks = 1 << 15
	dev := newSparse(blocks * 4096)
	for b := uint64(0); b < blocks; b += 2 {
		dev.do(&blockdev.Request{Op: blockdev.OpWrite, Offset: b * 4096, Length: 1, Data: []byte{1}})
	}
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	r := dialRaw(t, addr)
	r.attachWith("a")
	r.request(0, cmdStatus, 1, 0, blocks*4096)
	const n = 8 << 10
	var want []uint32
	for i := range uint32(n) {
		want = append(want, 4096, i%2*holeZero)
	}
	r.wantChunk(done, chunkStatus, 1, uint32(allocation), want)

	d := openDisk(t, addr, "a")
	for at := uint64(0); at < dev.size; {
		list, err := d.Extents(at, uint32(dev.size-at))
		if err != nil || len(list) == 0 {
			t.Fatal(list, err)
		}
		for _, e := range list {
			if e.Length != 4096 || (e.State == 0) != (at/4096%2 == 0) {
				t.Fatalf("at %d: %v", at, e)
			}
			at += 4096
		}
	}
}

// A structured read sends no zeroes, unless it must not be fragmented.
func TestReadsSendHolesAsHoles(t *testing.T) {
	dev, content := holey(t)
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	r := dialRaw(t, addr)
	r.attachWith("a")
	hole := func(flags uint16, offset uint64, n uint32) { r.t.Helper(); r.wantChunk(flags, chunkHole, 1, offset, n) }
	data := func(flags uint16, offset, n uint64) {
		r.t.Helper()
		r.wantChunk(flags, chunkData, 1, offset, content[offset:offset+n])
	}
	r.request(0, cmdRead, 1, 0, 16*4096)
	hole(0, 0, 4096)
	data(0, 4096, 8192)
	hole(0, 3*4096, 2*4096)
	data(0, 5*4096, 4096)
	hole(done, 6*4096, 10*4096)
	r.request(0, cmdRead, 1, 4000, 8192)
	hole(0, 4000, 96)
	data(done, 4096, 8192-96)
	r.request(0, cmdRead, 1, 6*4096+5, 7)
	hole(done, 6*4096+5, 7)
	r.request(flagDF, cmdRead, 1, 0, 16*4096)
	data(done, 0, 16*4096)
	r.request(flagDF, cmdRead, 1, 8*4096, 4096)
	hole(done, 8*4096, 4096)

	// However scattered: the number of chunks is limited, and all of it arrives.
	const n = 1000
	for i := range n {
		dev.do(&blockdev.Request{Op: blockdev.OpWrite, Offset: uint64(i%16) * 4096, Length: 1, Data: []byte{byte(i % 2)}})
	}
	d := openDisk(t, addr, "a")
	got := make([]byte, dev.size)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	q := blockdev.Request{Op: blockdev.OpRead, Length: uint32(dev.size), Data: make([]byte, dev.size)}
	if dev.do(&q); !bytes.Equal(got, q.Data) {
		t.Fatal("the client put the parts together differently")
	}
}

// The reply to a read of a chequered disk has a limit of chunks.
func TestChunksOfAReadAreLimited(t *testing.T) {
	const blocks = 1000
	dev := newSparse(blocks * 4096)
	for b := uint64(0); b < blocks; b += 2 {
		dev.do(&blockdev.Request{Op: blockdev.OpWrite, Offset: b * 4096, Length: 1, Data: []byte{1}})
	}
	_, addr := serve(t, nbd.ServerOptions{Exporter: exports{{Name: "a", Device: dev}}})
	r := dialRaw(t, addr)
	r.attachWith("a")
	r.request(0, cmdRead, 1, 0, blocks*4096)
	block := append([]byte{1}, make([]byte, 4095)...)
	for i := range uint64(63) {
		if i%2 == 0 {
			r.wantChunk(0, chunkData, 1, i*4096, block)
		} else {
			r.wantChunk(0, chunkHole, 1, i*4096, uint32(4096))
		}
	}
	rest := bytes.Repeat(append(make([]byte, 4096), block...), (blocks-63)/2+1)[:(blocks-63)*4096]
	r.wantChunk(done, chunkData, 1, uint64(63*4096), rest)
}

// The client takes a read in any parts, in any order, but each byte once and all of them; and knows a part that is an error.
func TestClientTakesChunks(t *testing.T) {
	const at, n = 1000, 4096
	fill := bytes.Repeat([]byte{7}, n)
	data := func(r *raw, flags uint16, cookie uint64, from, to int) {
		r.send(uint32(magicStructured), flags, uint16(chunkData), cookie, uint32(8+to-from), uint64(at+from), fill[from:to])
	}
	hole := func(r *raw, flags uint16, cookie uint64, from, to int) {
		r.send(uint32(magicStructured), flags, uint16(chunkHole), cookie, uint32(12), uint64(at+from), uint32(to-from))
	}
	none := func(r *raw, cookie uint64) {
		r.send(uint32(magicStructured), uint16(done), uint16(chunkNone), cookie, uint32(0))
	}
	fails := func(r *raw, flags uint16, cookie uint64, errno uint32) {
		r.send(uint32(magicStructured), flags, uint16(chunkError), cookie, uint32(6+5), errno, uint16(5), "sorry")
	}
	for name, c := range map[string]struct {
		answer func(r *raw, cookie uint64)
		zero   [2]int // what reads as zeroes
		want   error
	}{
		"whole":           {func(r *raw, c uint64) { data(r, done, c, 0, n) }, [2]int{}, nil},
		"whole, and none": {func(r *raw, c uint64) { data(r, 0, c, 0, n); none(r, c) }, [2]int{}, nil},
		"a hole":          {func(r *raw, c uint64) { hole(r, done, c, 0, n) }, [2]int{0, n}, nil},
		"in disorder": {func(r *raw, c uint64) {
			data(r, 0, c, 3000, n)
			hole(r, 0, c, 1000, 2000)
			data(r, 0, c, 0, 1000)
			data(r, done, c, 2000, 3000)
		}, [2]int{1000, 2000}, nil},
		"an error":               {func(r *raw, c uint64) { fails(r, done, c, eio) }, [2]int{}, blockdev.ErrIO},
		"an error in the middle": {func(r *raw, c uint64) { data(r, 0, c, 0, 10); fails(r, 0, c, eio); none(r, c) }, [2]int{}, blockdev.ErrIO},
		"an unknown error": {func(r *raw, c uint64) {
			r.send(uint32(magicStructured), uint16(done), uint16(1<<15|999), c, uint32(14), uint32(eio), uint16(0), uint64(0))
		}, [2]int{}, blockdev.ErrIO},
		"shutdown":              {func(r *raw, c uint64) { fails(r, done, c, 108) }, [2]int{}, nbd.ErrHungUp},
		"a byte twice":          {func(r *raw, c uint64) { data(r, 0, c, 0, 100); data(r, done, c, 99, n) }, [2]int{}, nbd.ErrProtocol},
		"a hole over data":      {func(r *raw, c uint64) { data(r, 0, c, 0, n); hole(r, done, c, 5, 6) }, [2]int{}, nbd.ErrProtocol},
		"a byte missing":        {func(r *raw, c uint64) { data(r, 0, c, 0, 100); data(r, done, c, 101, n) }, [2]int{}, nbd.ErrProtocol},
		"nothing":               {func(r *raw, c uint64) { none(r, c) }, [2]int{}, nbd.ErrProtocol},
		"before the request":    {func(r *raw, c uint64) { hole(r, done, c, -1, n-1) }, [2]int{}, nbd.ErrProtocol},
		"beyond the request":    {func(r *raw, c uint64) { hole(r, done, c, 1, n+1) }, [2]int{}, nbd.ErrProtocol},
		"an empty hole":         {func(r *raw, c uint64) { hole(r, 0, c, 1, 1) }, [2]int{}, nbd.ErrProtocol},
		"a simple reply":        {func(r *raw, c uint64) { r.send(uint32(magicSimple), uint32(0), c, fill) }, [2]int{}, nbd.ErrProtocol},
		"an unknown type":       {func(r *raw, c uint64) { r.send(uint32(magicStructured), uint16(done), uint16(99), c, uint32(0)) }, [2]int{}, nbd.ErrProtocol},
		"none with data":        {func(r *raw, c uint64) { r.send(uint32(magicStructured), uint16(done), uint16(0), c, uint32(1), "x") }, [2]int{}, nbd.ErrProtocol},
		"none that is not last": {func(r *raw, c uint64) { r.send(uint32(magicStructured), uint16(0), uint16(0), c, uint32(0)) }, [2]int{}, nbd.ErrProtocol},
		"an error that is none": {func(r *raw, c uint64) { fails(r, done, c, 0) }, [2]int{}, nbd.ErrProtocol},
		"a text beyond its chunk": {func(r *raw, c uint64) {
			r.send(uint32(magicStructured), uint16(done), uint16(chunkError), c, uint32(6), uint32(5), uint16(1))
		}, [2]int{}, nbd.ErrProtocol},
		"an error of 4 GiB": {func(r *raw, c uint64) {
			r.send(uint32(magicStructured), uint16(done), uint16(chunkError), c, uint32(1<<32-1))
		}, [2]int{}, nbd.ErrProtocol},
		"a block status": {func(r *raw, c uint64) {
			r.send(uint32(magicStructured), uint16(done), uint16(chunkStatus), c, uint32(12), uint32(7), uint32(n), uint32(0))
		}, [2]int{}, nbd.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			addr := fakeServer(t, func(r *raw) {
				r.letInStructured()
				_, cookie, _ := r.takeRequest()
				c.answer(r, cookie)
			})
			d := openDisk(t, addr, "a")
			got := bytes.Repeat([]byte{0xaa}, n)
			_, err := d.ReadAt(got, at)
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			want := slices.Clone(fill)
			clear(want[c.zero[0]:c.zero[1]])
			if err == nil && !bytes.Equal(got, want) {
				t.Fatal("the parts were put together wrongly")
			}
		})
	}
}

// The client takes what a server tells of extents as far as it was asked for, and nothing that makes no sense.
func TestClientTakesExtents(t *testing.T) {
	const n = 1 << 20
	many := make([]uint32, 0, 1<<17)
	for len(many) < cap(many) { // 512 KiB: more than the client's buffer
		many = append(many, 16, uint32(len(many)/2%2))
	}
	for name, c := range map[string]struct {
		length, id uint32
		list       []uint32
		want       []blockdev.Extent
		err        error
	}{
		"one":                {12, 7, []uint32{n, 3}, []blockdev.Extent{{Length: n, State: 3}}, nil},
		"less than asked":    {12, 7, []uint32{5, 0}, []blockdev.Extent{{Length: 5}}, nil},
		"more than asked":    {20, 7, []uint32{512, 0, 1 << 31, 1}, []blockdev.Extent{{Length: 512}, {Length: n - 512, State: 1}}, nil},
		"not joined":         {20, 7, []uint32{512, 0, 512, 0}, []blockdev.Extent{{Length: 1024}}, nil},
		"bits of the future": {12, 7, []uint32{512, 1<<20 | 2}, []blockdev.Extent{{Length: 512, State: 2}}, nil},
		"very many":          {4 + 4<<17, 7, many, nil, nil},
		"none":               {4, 7, nil, nil, nbd.ErrProtocol},
		"half a descriptor":  {8, 7, []uint32{1}, nil, nbd.ErrProtocol},
		"of nothing":         {12, 7, []uint32{0, 0}, nil, nbd.ErrProtocol},
		"another context":    {12, 8, []uint32{n, 0}, nil, nbd.ErrProtocol},
		"of 4 GiB":           {1<<32 - 4, 7, nil, nil, nbd.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			addr := fakeServer(t, func(r *raw) {
				r.letInStructured()
				_, cookie, _ := r.takeRequest()
				r.nc.Write(wire(uint32(magicStructured), uint16(done), uint16(chunkStatus), cookie, c.length, c.id, c.list))
			})
			got, err := openDisk(t, addr, "a").Extents(0, n)
			if !errors.Is(err, c.err) || c.want != nil && !slices.Equal(got, c.want) {
				t.Fatalf("%v, %v", got, err)
			}
			if name == "very many" && len(got) != 1024 {
				t.Fatalf("%d extents", len(got))
			}
		})
	}
}

// A block status that succeeds with nothing told is no answer.
func TestBlockStatusWithoutExtentsIsAProtocolError(t *testing.T) {
	addr := fakeServer(t, func(r *raw) {
		r.letInStructured()
		_, cookie, _ := r.takeRequest()
		r.send(uint32(magicStructured), uint16(done), uint16(chunkNone), cookie, uint32(0))
	})
	if _, err := openDisk(t, addr, "a").Extents(0, 4096); !errors.Is(err, nbd.ErrProtocol) {
		t.Fatal(err)
	}
}

// A server that does not tell of extents is not asked; the client's caller learns why.
func TestExtentsOfAServerWithout(t *testing.T) {
	addr := fakeServer(t, func(r *raw) { r.letIn(); r.nc.Read(make([]byte, 1)) })
	c, err := nbd.Dial(context.Background(), addr, nbd.ClientOptions{})
	if err != nil || c.Info().Extents {
		t.Fatal(err)
	}
	d := nbd.NewDisk(c)
	defer d.Close()
	if _, err := d.Extents(0, 4096); !errors.Is(err, nbd.ErrNotSupported) {
		t.Fatal(err)
	}
}
