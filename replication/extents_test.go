package replication

import (
	"slices"
	"testing"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// What a volume says of its holes is what was written, trimmed and zeroed, acknowledged a moment ago or applied long since, cut
// to the range that was asked for.
func TestExtentsTellWhatWasWritten(t *testing.T) {
	c := startCluster(t, 2)
	c.create(viewsvc.Volume{Name: "vol0", Size: 16 << 20, Copies: 2, MinCopies: 1, Sync: viewsvc.SyncAlways})
	d := c.dial(c.safe("vol0", 2))
	defer d.Close()
	const block, end = blockdev.BlockSize, 16 << 20
	hole := blockdev.ExtentHole | blockdev.ExtentZero
	if _, err := d.WriteAt(make([]byte, 3*block), 5*block); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt([]byte("x"), 100*block+17); err != nil {
		t.Fatal(err)
	}
	if err := d.Trim(6*block, block); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteZeroes(200*block-5, 3*block+10, blockdev.FlagNoHole); err != nil {
		t.Fatal(err)
	}
	list := func(parts ...uint32) (l []blockdev.Extent) { // data and holes in turn, beginning with a hole
		for i, n := range parts {
			if n > 0 {
				l = append(l, blockdev.Extent{Length: n, State: hole * blockdev.ExtentState(1-i%2)})
			}
		}
		return l
	}
	for _, q := range []struct {
		off  uint64
		n    uint32
		want []blockdev.Extent
	}{
		{0, 199 * block, list(5*block, block, block, block, 92*block, block, 98*block)},
		{199 * block, end - 199*block, []blockdev.Extent{
			{Length: block}, {Length: 3 * block, State: blockdev.ExtentZero}, {Length: block}, {Length: end - 204*block, State: hole}}},
		{5*block - 1, 2, list(1, 1)},
		{100*block + 20, 5, list(0, 5)},
		{end - 1, 1, list(1)},
	} {
		if got, err := d.Extents(q.off, q.n); err != nil || !slices.Equal(got, q.want) {
			t.Errorf("%d bytes at %d: %v, %v, want %v", q.n, q.off, got, err, q.want)
		}
	}
}
