package main

import (
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// growingSeeds: in one of so many runs the volume grows.
const growingSeeds = 4

// enlarge has an operator wish for a larger volume, a few times.
func (c *cluster) enlarge() {
	rng := c.enlarges
	for range 1 + rng.IntN(3) {
		c.w.after(time.Duration(rng.Int64N(int64(c.stormTime))), func() {
			if c.views.lead == nil {
				return
			}
			cmd, err := c.views.lead.mon.PlanResize(volumeName, (c.blocks()+1+rng.Uint64N(3*blockdev.RegionBlocks))*blockdev.BlockSize)
			if err != nil {
				return
			}
			c.w.tr("the volume is to have %d bytes", cmd.Size)
			c.views.commit(cmd, func(viewsvc.Result, error) {})
		})
	}
}

// grown tells that the view service says so: clients use the last blocks from now on.
func (c *cluster) grown(size uint64) {
	c.runs = append(c.runs, [2]uint64{size/blockdev.BlockSize - 1, 1})
	c.w.stats.note(grown)
}

// blocks is how large the volume is, as clients may know.
func (c *cluster) blocks() uint64 {
	if last := c.runs[len(c.runs)-1]; len(c.runs) > len(hotRuns) {
		return last[0] + last[1]
	}
	return volumeSize / blockdev.BlockSize
}

// growing tells whether the volume is to become larger yet, or that nobody knows.
func (c *cluster) growing() bool {
	if c.enlarges == nil {
		return false
	}
	if c.views.lead == nil {
		return true
	}
	st, err := c.views.lead.mon.VolumeStatus(volumeName)
	return err != nil || st.Volume.Wanted != 0
}
