package viewsvc

import "fmt"

// A volume grows in two commands. OpResize is an operator's wish: it goes to the nodes with everything else about the
// volume (Volume.Wanted), each makes room by itself and says so in its reports (Room), and the primary hears from the orders
// of who has room (Peer.Room). When every member has, the primary makes the volume larger; how is replication's business.
// What it then serves it reports (Serves), and OpGrown makes that the volume's size, which clients are told. So a size
// that clients have heard of is one that every member has.

// applyResize takes an operator's wish. One for the present size takes an earlier wish back: nodes that have made room
// keep it.
func (s *State) applyResize(c Command) (Result, error) {
	v, err := s.live(c.Volume)
	if err != nil {
		return Result{}, err
	}
	switch was := v.Volume.Size; {
	case !validSize(c.Size):
		return Result{}, fmt.Errorf("%w: size %d is not a multiple of %d between 1 MiB and 1 PiB", ErrInvalid, c.Size, BlockSize)
	case c.Size < was:
		return Result{}, ruleErrorf("V11", "volume %s has %d bytes and cannot be made smaller, to %d", v.Volume.Name, was, c.Size)
	case c.Size == was:
		v.Volume.Wanted = 0
	default:
		v.Volume.Wanted = c.Size
	}
	return Result{Volume: c.Volume, Size: v.Volume.Size}, nil
}

// applyGrown takes in what a primary serves. It never goes back.
func (s *State) applyGrown(c Command) (Result, error) {
	v, err := s.live(c.Volume)
	if err != nil {
		return Result{}, err
	}
	was := v.Volume.Size
	if !validSize(c.Size) || c.Size < was {
		return Result{}, ruleErrorf("V11", "volume %s has %d bytes, a primary serves %d", v.Volume.Name, was, c.Size)
	}
	v.Volume.Size = c.Size
	if v.Volume.Wanted <= c.Size {
		v.Volume.Wanted = 0
	}
	return Result{Volume: c.Volume, Size: was}, nil
}

func validSize(n uint64) bool { return n%BlockSize == 0 && n >= MinVolumeSize && n <= MaxVolumeSize }

// PlanResize wishes for a larger volume.
func (m *Monitor) PlanResize(name string, size uint64) (Command, error) {
	v, _, err := m.named(name)
	if err != nil {
		return Command{}, err
	}
	return Command{Op: OpResize, Volume: v.Volume.ID, Size: size}, nil
}

// planSize makes known that the primary serves more than the volume's size. No primary ever serves less than one before
// it, so that the word of any is good.
func (m *Monitor) planSize(v *volumeState) {
	if rep, ok := m.report(v, v.View.Primary); ok && rep.Serves > v.Volume.Size {
		m.command("grown/"+string(v.Volume.ID), Command{Op: OpGrown, Volume: v.Volume.ID, Size: rep.Serves})
	}
}
