package gateway

import (
	"bytes"
	"context"
	"testing"
)

// G12: a gateway that is started again under its session's name knows nothing of the numbers that its former process gave
// to requests. Each of its writes is carried out all the same, and that of the next client too.
func TestSessionOfTheSameNameCarriesOutItsWrites(t *testing.T) {
	c := startReal(t, 1)
	block := func(version int) []byte { return bytes.Repeat([]byte{byte(version)}, 4096) }
	version := 0
	for process := uint64(1); process <= 3; process++ {
		addr, g := c.gateway(AttachOptions{Session: "the-same", Generation: process, Exclusive: true, Keep: true})
		for client := range 2 {
			d := mustDial(t, addr)
			for range 3 {
				version++
				if _, err := d.WriteAt(block(version), 8192); err != nil {
					t.Fatalf("process %d, client %d: %v", process, client, err)
				}
				got := make([]byte, 4096)
				if _, err := d.ReadAt(got, 8192); err != nil || !bytes.Equal(got, block(version)) {
					t.Fatalf("process %d, client %d: version %d was acknowledged, %d is there (%v)", process, client, version, got[0], err)
				}
			}
			d.Close()
		}
		if err := g.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// A session that had its volume for itself shares it from its next process on. The view service has counted more claims than
// the session has had processes, and its exclusive generations came with these.
func TestSessionThatWasExclusiveComesBackShared(t *testing.T) {
	c := startReal(t, 1)
	for process := uint64(1); process <= 4; process++ {
		_, g := c.gateway(AttachOptions{})
		for range 3 {
			conn, err := agentOf(t, g, AttachOptions{Session: "the-same", Generation: process, Exclusive: process%2 == 1})
			if err != nil {
				t.Fatalf("process %d: %v", process, err)
			}
			conn.Close()
		}
		if err := g.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// G12: a named session has its numbers in one space for as long as it lasts, over reconnects and failovers, and the next
// client of the name in another.
func TestNamedSessionNumbersInASpaceOfItsOwn(t *testing.T) {
	c := startCluster(t, 2, func(o *Options) {
		o.Attach = AttachOptions{Session: "the-same", Generation: 1, Exclusive: true, Keep: true}
	})
	spaces := map[string]bool{}
	for client := range 2 {
		c.moveTo(0)
		d := c.dial()
		writeByte(t, d, 'a')
		c.nodes[0].depose()
		c.moveTo(1)
		writeByte(t, d, 'b')
		d.Close()
		var numbers string
		for _, n := range c.nodes {
			ids := n.sessions()
			id := ids[len(ids)-1]
			if id.Name != "the-same" || id.Numbers == "" || id.Numbers == id.Name {
				t.Errorf("client %d attaches to %s as %+v", client, n.name, id)
			}
			if numbers != "" && id.Numbers != numbers {
				t.Errorf("client %d: another space of numbers after the failover", client)
			}
			numbers = id.Numbers
		}
		spaces[numbers] = true
		c.nodes[1].depose()
	}
	if len(spaces) != 2 {
		t.Errorf("two clients have %d spaces of numbers", len(spaces))
	}
}
