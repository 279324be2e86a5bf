package blockdev

import (
	"errors"
	"path"
	"testing"
	"testing/synctest"
	"time"

	"lockstep/wal/vfs/memfs"
)

// A disk that hangs in one operation holds up who needs that, and nobody else: clients read on, frames are taken, synced and
// committed as far as they do not need it themselves, and views are stored. In a bubble, so that a call that waits for
// the disk ends the test at once. When the disk comes back everything is as if nothing had been.
func TestFaultOfADiskThatHangsHoldsUpOnlyWhoNeedsIt(t *testing.T) {
	type store = *survivor
	var (
		appends = func(w store) { w.append(write(40, 1)) }
		syncs   = func(w store) { w.sync() }
		commits = func(w store) { w.commit() }
		saves   = func(w store) { w.view(9) }
		reads   = func(w store) { w.do(func() error { return w.s.Read(0, make([]byte, BlockSize)) }) } // in the image
		readLog = func(w store) { w.do(func() error { return w.s.Read(20, make([]byte, BlockSize)) }) }
		ships   = func(w store) {
			w.do(func() error { _, err := w.s.ReadFrames(w.s.Marks().First, make([]byte, crashLog)); return err })
		}
		applies = func(w store) { w.apply() }
		checks  = func(w store) { w.do(func() error { return w.s.Checkpoint() }) }
	)
	for name, c := range map[string]struct {
		kind, file string
		needs      func(store)   // hangs
		others     []func(store) // do not
		log        bool          // OldestIO tells
	}{
		"sync of the log":   {"sync", "00.seg", syncs, []func(store){appends, commits, saves, reads, readLog, ships}, true},
		"write to the log":  {"write", "00.seg", appends, []func(store){syncs, commits, saves, reads, readLog, ships, applies}, true},
		"read of the log":   {"read", "00.seg", readLog, []func(store){appends, syncs, commits, saves, reads}, false},
		"write to an image": {"write", imageName, checks, []func(store){appends, syncs, commits, saves, reads, readLog, ships}, false},
		"sync of an image":  {"sync", imageName, checks, []func(store){appends, syncs, commits, saves, reads, readLog, ships}, false},
		"read of an image":  {"read", imageName, reads, []func(store){appends, syncs, commits, saves, readLog, ships, applies}, false},
		"write of sums":     {"write", sumsName, checks, []func(store){appends, syncs, commits, saves, readLog, ships}, false},
		"read of sums":      {"read", sumsName, reads, []func(store){appends, syncs, commits, saves, readLog, ships}, false},
		"write to meta":     {"write", metaName, saves, []func(store){appends, syncs, commits, reads, readLog, ships}, false},
		"sync of meta":      {"sync", metaName, saves, []func(store){appends, syncs, commits, reads, readLog, ships}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := memfs.New()
				w := newSurvivor(t, m, 0)
				w.format()
				w.open()
				w.put(write(0, 2))
				w.close()
				w.open() // nothing of the sums is in memory
				w.put(write(20, 2))
				w.append(write(21, 1))
				if w.err != nil {
					t.Fatal(w.err)
				}
				release := make(chan struct{})
				hung := false
				m.Inject(func(op memfs.Op) (e memfs.Effect) {
					if !hung && op.Kind == c.kind && path.Base(op.Name) == c.file {
						hung, e.Hang = true, release
					}
					return e
				})
				stuck := *w // shares the store; its history is not looked at
				done := make(chan struct{})
				go func() { // until released
					defer close(done)
					c.needs(&stuck)
				}()
				synctest.Wait()
				if !hung {
					t.Fatal("nothing hangs")
				}
				if name == "write to the log" {
					w.forget(w.end()) // the frame that hangs is its last
				}
				for _, f := range c.others {
					f(w)
				}
				time.Sleep(time.Minute)
				if age := w.s.OldestIO(); c.log && age < time.Minute || !c.log && age != 0 {
					t.Errorf("the log's oldest write or sync is %v old", age)
				}
				select {
				case <-done:
					t.Error("it came back by itself")
				default:
				}
				close(release)
				<-done
				if w.err != nil || stuck.err != nil {
					t.Fatal(w.err, stuck.err)
				}
				w.sync()
				w.commit()
				if err := holds(w.rig, w.end()); err != nil {
					t.Fatal(err)
				}
				if w.close(); w.err != nil {
					t.Fatal(w.err)
				}
			})
		})
	}
}

// Close has work for the disk, and waits for it; Abandon has none, but may not close files under an operation either. Both
// come back with the disk, or after a while without it; what they leave is right, and nobody else gets the replica before.
func TestFaultOfADiskThatHangsIsWaitedForByCloseForAWhile(t *testing.T) {
	for _, c := range []struct {
		name    string
		end     func(*Store) error
		forever bool
	}{
		{"close", (*Store).Close, false}, {"abandon", (*Store).Abandon, false},
		{"close in vain", (*Store).Close, true}, {"abandon in vain", (*Store).Abandon, true},
	} {
		name, end, forever := c.name, c.end, c.forever
		synctest.Test(t, func(t *testing.T) {
			m := memfs.New()
			w := newSurvivor(t, m, 0)
			w.o.Manual = false // the applier is at work
			w.o.ScrubRate = -1
			w.format()
			w.open()
			release := make(chan struct{})
			m.Inject(func(op memfs.Op) (e memfs.Effect) {
				if path.Base(op.Name) == imageName && op.Kind != "read" {
					e.Hang = release
				}
				return e
			})
			w.put(write(0, 2))
			time.Sleep(time.Minute) // the applier has begun
			if w.err != nil {
				t.Fatal(w.err)
			}
			began := time.Now()
			if forever {
				if err := end(w.s); !errors.Is(err, ErrDiskHangs) || time.Since(began) != closePatience {
					t.Errorf("%s: %v after %v", name, err, time.Since(began))
				}
				if _, err := OpenStore(w.o); !errors.Is(err, ErrInUse) {
					t.Errorf("%s, then open: %v", name, err)
				}
				close(release)
				synctest.Wait()
			} else {
				time.AfterFunc(closePatience-time.Second, func() { close(release) })
				if err := end(w.s); err != nil || time.Since(began) != closePatience-time.Second {
					t.Errorf("%s: %v after %v", name, err, time.Since(began))
				}
			}
			if err := w.survives(m.Crash(memfs.None)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}
