package viewsvc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// checkDB walks all of a database before anything works on it. bbolt trusts its file: where that is cut short or its
// pages are not what they should be it panics, or faults in the memory that the file is mapped to. Here, in one
// goroutine that does nothing else, both become an error. A file that is missing is made.
func checkDB(name string) (err error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil // an empty one was being made
	}
	if err != nil {
		return fmt.Errorf("viewsvc: %w", err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damagedDB(name, fmt.Errorf("%v", p))
		}
	}()
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{Timeout: openStoreTimeout, ReadOnly: true})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("viewsvc: open %s: %w", name, err)
	case errors.Is(err, bolterrors.ErrVersionMismatch):
		return fmt.Errorf("viewsvc: %s is of another release of its library: %w; use the release that wrote it", name, err)
	case err != nil:
		return damagedDB(name, err)
	}
	// After a panic it is not closed: that could wait for the transaction for ever. The process ends anyway.
	err = db.View(func(tx *bbolt.Tx) error {
		if tx.Size() > info.Size() {
			return fmt.Errorf("it is %d bytes long instead of %d", info.Size(), tx.Size())
		}
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				_ = bytes.Clone(v) // its pages have to be there, all of them
				return nil
			})
		})
	})
	if err != nil {
		err = damagedDB(name, err)
	}
	return errors.Join(err, db.Close())
}

func damagedDB(name string, err error) error {
	return fmt.Errorf("viewsvc: %s is damaged: %w; restore the directory, or empty it if other view servers have the state", name, err)
}
