package replication

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/uuid"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// A replica that cannot store a view, or what it is told of its volume, is poisoned: whatever the view service lets pass has
// to fit.
func TestLargestProtocolStateFitsItsPlace(t *testing.T) {
	id := uuid.NewString()
	long := strings.Repeat("x", 126) // with its quotes the longest that PlanClaim takes
	hard := hardState{
		View: viewsvc.View{Volume: viewsvc.VolumeID(id), Num: math.MaxUint64, Tenure: math.MaxUint64, Primary: viewsvc.ReplicaID(id),
			DataLossGen: math.MaxUint64},
		Volume: viewsvc.Volume{ID: viewsvc.VolumeID(id), Name: strings.Repeat("v", 63), Size: viewsvc.MaxVolumeSize, Sync: viewsvc.SyncAlways,
			Copies: viewsvc.MaxCopies, MinCopies: viewsvc.MaxCopies, Wanted: viewsvc.MaxVolumeSize,
			Claim: viewsvc.Claim{Num: math.MaxUint64, Era: math.MaxUint64, Owner: long, Start: math.MaxUint64, Host: long,
				PID: math.MaxInt32, Since: math.MaxInt64, Held: true}},
		Suspect: true, CopyBase: math.MaxUint64,
	}
	for range 2*viewsvc.MaxCopies - 1 { // the most that a view takes
		hard.View.Backups = append(hard.View.Backups, viewsvc.ReplicaID(id))
	}
	if b, err := json.Marshal(hard); err != nil || len(b) > blockdev.MaxProtocolBytes {
		t.Errorf("%d bytes, there is room for %d: %v", len(b), blockdev.MaxProtocolBytes, err)
	}
}
