package sidecar_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
	"github.com/prototypster/pdvault/keys/sidecar"
)

var rewindTime = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

func (w *rotating) memory() sidecar.Memory {
	w.T.Helper()
	m, err := sidecar.LoadMemory(w.T.Context(), w.Ring)
	if err != nil {
		w.T.Fatal(err)
	}
	return m
}

// The witness goes on from an older checkpoint under the key that signed it, forgets the keys that came after, and
// remembers, in its key store and its status, what it was made to forget.
func TestARewindForgetsTheKeysThatCameAfter(t *testing.T) {
	w := newRotating(t)
	old := w.Log.CheckpointAt(2)
	w.mustRotate(w.second, "", w.first, w.second)
	w.mustRotate(w.third, "", w.second, w.third)
	lost := w.memory().Witnessed

	gone, err := sidecar.Rewind(t.Context(), w.Ring, old, w.second.Text, rewindTime)
	if err != nil || gone.Lost != lost || gone.Size != 2 || !slices.Equal(gone.Keys, []string{w.third.Text}) {
		t.Fatalf("%+v, %v", gone, err)
	}
	if m := w.memory(); m.Witnessed != old || !slices.Equal(m.LedgerKeys, []string{w.second.Text, w.first.Text}) {
		t.Errorf("%+v", m)
	}
	// The next one is vouched for by who runs the command, and takes the place of all.
	older := w.Log.CheckpointAt(1)
	if _, err := sidecar.Rewind(t.Context(), w.Ring, older, w.stranger.Text, rewindTime); err != nil {
		t.Fatal(err)
	}
	if m := w.memory(); m.Witnessed != older || !slices.Equal(m.LedgerKeys, []string{w.stranger.Text}) {
		t.Errorf("%+v", m)
	}
	all, err := sidecar.Rewinds(t.Context(), w.Ring)
	if err != nil || len(all) != 2 || all[0].Lost.Size != lost.Size || all[0].Lost.Root != lost.Root || all[0].Size != 2 || !all[0].At.Equal(rewindTime) ||
		!slices.Equal(all[1].Keys, []string{w.second.Text, w.first.Text}) {
		t.Errorf("%+v, %v", all, err)
	}
	w.Restart()
	status, err := w.Server.Status(t.Context(), &keyspb.StatusRequest{})
	if err != nil || len(status.Rewinds) != 2 || status.Rewinds[0].LostSize != lost.Size || status.Rewinds[0].At != rewindTime.UnixMilli() {
		t.Errorf("%v, %v", status, err)
	}
}

func TestARewindIsRefused(t *testing.T) {
	w := newRotating(t)
	now := w.memory().Witnessed
	other := now
	other.Root[0] ^= 1
	foreign := now
	foreign.Origin, foreign.Size = "other.example.org/ledger", 1
	for name, tt := range map[string]struct {
		cp   verify.Checkpoint
		key  string
		want error
	}{
		"nothing to rewind": {now, w.first.Text, keys.ErrInvalid},
		"contradiction":     {other, w.second.Text, keys.ErrProofRefused},
		"other ledger":      {foreign, w.first.Text, keys.ErrProofRefused},
		"no key":            {w.Log.CheckpointAt(1), "nonsense", keys.ErrInvalid},
	} {
		if _, err := sidecar.Rewind(t.Context(), w.Ring, tt.cp, tt.key, rewindTime); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if m := w.memory(); m.Witnessed != now || !slices.Equal(m.LedgerKeys, []string{w.first.Text}) {
		t.Errorf("%+v", m)
	}
	if all, err := sidecar.Rewinds(t.Context(), w.Ring); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// A restored sidecar is brought up to what the log shows: an older ledger, and one under an older key only, is refused.
func TestARestoredSidecarCatchesUp(t *testing.T) {
	w := newRotating(t)
	w.Log.Grow(5)
	end := w.Log.CheckpointAt(8)
	if err := sidecar.CatchUp(t.Context(), w.Ring, end, w.second.Text); err != nil {
		t.Fatal(err)
	}
	if m := w.memory(); m.Witnessed != end || !slices.Equal(m.LedgerKeys, []string{w.second.Text, w.first.Text}) {
		t.Errorf("%+v", m)
	}
	// It never goes back.
	if err := sidecar.CatchUp(t.Context(), w.Ring, w.Log.CheckpointAt(4), w.first.Text); err != nil {
		t.Fatal(err)
	}
	if m := w.memory(); m.Witnessed != end || m.LedgerKeys[0] != w.second.Text {
		t.Errorf("%+v", m)
	}
	foreign := end
	foreign.Origin = "other.example.org/ledger"
	if err := sidecar.CatchUp(t.Context(), w.Ring, foreign, w.first.Text); !errors.Is(err, keys.ErrProofRefused) {
		t.Errorf("another ledger: %v", err)
	}
}

// What is read of a backup is what the running sidecar of it remembered.
func TestMemoryInABackup(t *testing.T) {
	w := newRotating(t)
	m, err := sidecar.MemoryIn(func(name string) []byte {
		b, err := w.Ring.LoadState(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
	if want := w.memory(); err != nil || m.Origin != want.Origin || m.Witnessed != want.Witnessed || !slices.Equal(m.LedgerKeys, want.LedgerKeys) {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := sidecar.MemoryIn(func(string) []byte { return nil }); err != nil || m.Origin != "" {
		t.Errorf("of a sidecar that is not bound: %+v, %v", m, err)
	}
	if _, err := sidecar.MemoryIn(func(string) []byte { return []byte("x") }); !errors.Is(err, sidecar.ErrState) {
		t.Errorf("damaged: %v", err)
	}
}
