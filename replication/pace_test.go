package replication

import (
	"testing"
	"time"
)

// copying lets a pacer send for some time beside clients whose syncs take so long, and tells how fast it sent at last.
func copying(p *pacer, now *time.Time, clients *syncTimes, sync func(rate float64) time.Duration, d time.Duration) (rate float64) {
	const piece = 1 << 20
	last := *now
	sent := 0
	for end := now.Add(d); now.Before(end); {
		if sync != nil {
			clients.add(sync(rate), true)
		}
		wait := p.sent(piece, *now, clientLoad{syncs: *clients})
		*now = now.Add(wait + 100*time.Microsecond) // what sending takes by itself
		if sent += piece; now.Sub(last) >= paceInterval {
			rate = float64(sent) / now.Sub(last).Seconds()
			sent, last = 0, *now
		}
	}
	return rate
}

func calmClients(d time.Duration) syncTimes {
	var t syncTimes
	for range 1000 {
		t.add(d, false)
	}
	return t
}

func TestRecruitingYieldsToClientsWhoseSyncsGetLonger(t *testing.T) {
	now := time.Now()
	p, clients := newPacer(0, now), calmClients(time.Millisecond)
	// A disk on which copying at 100 MB/s makes a sync take 10 ms instead of 1.
	disk := func(rate float64) time.Duration { return time.Millisecond + time.Duration(rate/1e8*9e6) }
	copying(p, &now, &clients, disk, 5*time.Second)
	if clients.recent > 3*time.Millisecond {
		t.Errorf("syncs take %v beside a copy, 1 ms without", clients.recent)
	}
	if rate := copying(p, &now, &clients, disk, time.Second); rate < paceMin/2 {
		t.Errorf("and the copy hardly goes on: %.0f bytes/s", rate)
	}
}

func TestRecruitingTakesWhatNobodyNeeds(t *testing.T) {
	now := time.Now()
	p, clients := newPacer(0, now), calmClients(time.Millisecond)
	if rate := copying(p, &now, &clients, nil, 2*time.Second); rate < 1<<30 {
		t.Errorf("without clients a learner gets %.0f bytes/s", rate)
	}
	undisturbed := func(float64) time.Duration { return time.Millisecond }
	if rate := copying(p, &now, &clients, undisturbed, 2*time.Second); rate < 256<<20 {
		t.Errorf("beside clients that feel nothing a learner gets %.0f bytes/s", rate)
	}
}

func TestRecruitRateOverrideIsKept(t *testing.T) {
	const fixed = 10 << 20
	now := time.Now()
	p, clients := newPacer(fixed, now), calmClients(time.Millisecond)
	slow := func(float64) time.Duration { return time.Second }
	if rate := copying(p, &now, &clients, slow, 10*time.Second); rate < fixed*0.8 || rate > fixed*1.2 {
		t.Errorf("told to send %d bytes/s it sends %.0f", fixed, rate)
	}
}

// A learner that is sent less of the log than clients write never arrives.
func TestLogIsSentFasterThanClientsWrite(t *testing.T) {
	const written = 100 << 20 // bytes a second
	now := time.Now()
	began := now
	p, clients := newPacer(0, now), clientLoad{syncs: calmClients(time.Millisecond), logged: 1}
	sent := 0
	for now.Sub(began) < 10*time.Second {
		clients.syncs.add(time.Second, true) // they suffer badly
		clients.logged = 1 + uint64(now.Sub(began).Seconds()*written)
		now = now.Add(p.sent(1<<20, now, clients) + 100*time.Microsecond)
		sent += 1 << 20
	}
	if rate := float64(sent) / 10; rate < 1.3*written {
		t.Errorf("clients write %d bytes a second, and the learner is sent %.0f", written, rate)
	}
}
