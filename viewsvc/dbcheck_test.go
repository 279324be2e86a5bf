package viewsvc

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// TestDamagedRaftFileIsAnErrorNotACrash cuts the file short everywhere and overwrites each of its pages.
func TestDamagedRaftFileIsAnErrorNotACrash(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "raft.db")
	if err := checkDB(name); err != nil {
		t.Errorf("a new directory: %v", err)
	}
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, bucket := range []string{"conf", "logs"} {
			b, err := tx.CreateBucket([]byte(bucket))
			if err != nil {
				return err
			}
			for i := range byte(100) {
				if err := b.Put([]byte{i}, make([]byte, 300+100*int(i))); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil || db.Close() != nil {
		t.Fatal(err)
	}
	if err := checkDB(name); err != nil {
		t.Errorf("a sound file: %v", err)
	}
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(dir, "damaged")
	check := func(b []byte) error {
		if err := os.WriteFile(damaged, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return checkDB(damaged)
	}
	for n := 0; n < len(good)/2; n += 5000 { // the file grows ahead of its content
		if err := check(good[:n]); (err == nil) != (n == 0) || n > 0 && (!strings.Contains(err.Error(), "is damaged: ") || strings.Contains(err.Error(), "\n")) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	found := 0
	for page := 0; page+4096 <= len(good); page += 4096 {
		b := append([]byte(nil), good...)
		for i := range 4096 {
			b[page+i] = byte(rng.Uint32())
		}
		if check(b) != nil {
			found++
		}
	}
	// One of the two meta pages may go, the free ones, and what the values are made of, which Raft's decoder looks at.
	if found < 4 {
		t.Errorf("only %d damaged pages were noticed", found)
	}
}
