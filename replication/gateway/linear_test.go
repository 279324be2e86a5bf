package gateway

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"lockstep/blockdev"
)

// TestBlocksStayLinearizableOverFailovers lets several clients write and read the same few blocks while primaries
// carry writes out without answering them, show them to readers, and are replaced. With overlapping writes in flight
// together, a replay would bring back what had been read, overwritten, and read again.
func TestBlocksStayLinearizableOverFailovers(t *testing.T) {
	const clients, workers, rounds, blocks = 3, 3, 60, 4
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := startCluster(t, 2, nil)

	stop := make(chan struct{})
	var moving sync.WaitGroup
	moving.Go(func() {
		for i := 1; ; i++ {
			old := c.nodes[(i-1)%2]
			for _, step := range []func(){
				func() { old.set(func() { old.halfway = true }) },
				func() { old.depose(); c.moveTo(i % 2); old.set(func() { old.halfway = false }) },
			} {
				select {
				case <-stop:
					return
				case <-time.After(4 * time.Millisecond):
				}
				step()
			}
		}
	})

	type input struct {
		block int
		write uint64 // 0: a read
	}
	var (
		mu      sync.Mutex
		history []porcupine.Operation
		load    sync.WaitGroup
		start   = time.Now()
	)
	for k := range clients {
		d := c.dial()
		for w := range workers {
			load.Go(func() {
				id := k*workers + w
				rnd := rand.New(rand.NewPCG(seed, uint64(id)))
				buf := make([]byte, blockdev.BlockSize)
				for i := range rounds {
					in := input{block: rnd.IntN(blocks)}
					if rnd.IntN(2) == 0 {
						in.write = uint64(id+1)<<32 | uint64(i)
						binary.LittleEndian.PutUint64(buf, in.write)
					}
					var err error
					call := time.Since(start)
					if off := int64(in.block) * blockdev.BlockSize; in.write != 0 {
						_, err = d.WriteAt(buf, off)
					} else {
						_, err = d.ReadAt(buf, off)
					}
					end := time.Since(start)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					history = append(history, porcupine.Operation{
						ClientId: id, Input: in, Output: binary.LittleEndian.Uint64(buf), Call: int64(call), Return: int64(end),
					})
					mu.Unlock()
				}
			})
		}
	}
	load.Wait()
	close(stop)
	moving.Wait()

	register := porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			parts := make([][]porcupine.Operation, blocks)
			for _, o := range history {
				b := o.Input.(input).block
				parts[b] = append(parts[b], o)
			}
			return parts
		},
		Init: func() any { return uint64(0) },
		Step: func(state, in, out any) (bool, any) {
			if w := in.(input).write; w != 0 {
				return true, w
			}
			return state == out, state
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v → %#x", in, out) },
	}
	switch r := porcupine.CheckOperationsTimeout(register, history, 30*time.Second); r {
	case porcupine.Ok:
	default:
		t.Errorf("the history of %d operations is not linearizable: %v", len(history), r)
	}
}
