package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"
)

const (
	blockBytes = 4096
	// blocksEach is how many blocks one overwriter has: few, so that each is overwritten soon.
	blocksEach = 4
	// readEvery is after how many writes an overwriter reads one of its blocks.
	readEvery = 3
)

// alignedBlock is memory for O_DIRECT.
func alignedBlock() []byte {
	b := make([]byte, 2*blockBytes)
	off := blockBytes - int(uintptr(unsafe.Pointer(&b[0]))%blockBytes)
	return b[off : off+blockBytes : off+blockBytes]
}

// stamp fills a block so that each word of it tells the version, and where it belongs.
func stamp(b []byte, block int, version uint64) {
	for i := 0; i < blockBytes; i += 16 {
		binary.LittleEndian.PutUint64(b[i:], version)
		binary.LittleEndian.PutUint64(b[i+8:], uint64(block)<<32|uint64(i))
	}
}

// verify wants one version in the whole block.
func verify(b []byte, block int, version uint64) error {
	for i := 0; i < blockBytes; i += 16 {
		got, where := binary.LittleEndian.Uint64(b[i:]), binary.LittleEndian.Uint64(b[i+8:])
		if got != version || where != uint64(block)<<32|uint64(i) {
			return fmt.Errorf("block %d holds version %d at byte %d (place %#x), but version %d was acknowledged last", block, got, i, where, version)
		}
	}
	return nil
}

func (s *scribe) blockFile() string { return filepath.Join(s.dir, "blocks") }

// createBlocks makes the overwriters' file, each block at version 1.
func (s *scribe) createBlocks() (*os.File, error) {
	f, err := os.OpenFile(s.blockFile(), os.O_RDWR|os.O_CREATE|syscall.O_DIRECT|syscall.O_DSYNC, 0o644)
	if err != nil {
		return nil, err
	}
	b := alignedBlock()
	for i := range overwriters * blocksEach {
		stamp(b, i, 1)
		if _, err := f.WriteAt(b, int64(i)*blockBytes); err != nil {
			f.Close()
			return nil, err
		}
		s.notes.Blocks[i/blocksEach][i%blocksEach] = 1
	}
	return f, nil
}

// overwrite is one overwriter. Nobody else touches its blocks.
func (s *scribe) overwrite(f *os.File, who int, stop <-chan struct{}) error {
	rng := rand.New(rand.NewPCG(s.notes.Seed, uint64(100+who)))
	mine := &s.notes.Blocks[who]
	b := alignedBlock()
	for n := 1; ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		i := rng.IntN(blocksEach)
		block := who*blocksEach + i
		stamp(b, block, mine[i]+1)
		if _, err := f.WriteAt(b, int64(block)*blockBytes); err != nil {
			return err
		}
		mine[i]++
		s.written.Add(1)
		if n%readEvery == 0 {
			i = rng.IntN(blocksEach)
			block = who*blocksEach + i
			if _, err := f.ReadAt(b, int64(block)*blockBytes); err != nil {
				return err
			}
			if err := verify(b, block, mine[i]); err != nil {
				return err
			}
		}
	}
}

// checkBlocks compares all blocks with the notes.
func (s *scribe) checkBlocks() error {
	f, err := os.OpenFile(s.blockFile(), os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := alignedBlock()
	for who := range s.notes.Blocks {
		for i, version := range s.notes.Blocks[who] {
			block := who*blocksEach + i
			if _, err := f.ReadAt(b, int64(block)*blockBytes); err != nil {
				return err
			}
			if err := verify(b, block, version); err != nil {
				return err
			}
		}
	}
	return nil
}
