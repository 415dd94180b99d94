package keyring_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"reflect"
	"testing"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// wantWitness fails the test unless exactly the keys given sign, in their order.
func (r *ring) wantWitness(want ...ed25519.PublicKey) {
	r.t.Helper()
	got := r.WitnessKeys()
	if !reflect.DeepEqual(got, want) {
		r.t.Fatalf("%d keys sign, want %d, or others", len(got), len(want))
	}
	if !bytes.Equal(r.WitnessPublic(), want[0]) {
		r.t.Error("WitnessPublic is not the newest")
	}
	for i, public := range want {
		signature, err := r.WitnessSignWith(i, []byte("checkpoint"))
		if err != nil || !ed25519.Verify(public, []byte("checkpoint"), signature) {
			r.t.Errorf("key %d does not sign: %v", i, err)
		}
	}
	signature, err := r.WitnessSign([]byte("checkpoint"))
	if err != nil || !ed25519.Verify(want[0], []byte("checkpoint"), signature) {
		r.t.Errorf("WitnessSign is not the newest key's: %v", err)
	}
	for _, i := range []int{-1, len(want)} {
		_, err := r.WitnessSignWith(i, []byte("checkpoint"))
		wantErr(r.t, err, keys.ErrInvalid)
	}
}

// Witness keys overlap for 14 days, then the older one is silent at once, and gone from the key store as well.
func TestWitnessRotation(t *testing.T) {
	ctx := context.Background()
	clk := newClock()
	r := newRing(t, func(c *keyring.Config) { c.Now = clk.Now })
	id, one := r.SidecarID(), r.WitnessPublic()
	r.wantWitness(one)
	if version, err := r.RotateWitness(ctx); err != nil || version != 2 {
		t.Fatalf("version %d, %v", version, err)
	}
	two := r.WitnessPublic()
	r.wantWitness(two, one)
	clk.add(24 * time.Hour)
	if version, err := r.RotateWitness(ctx); err != nil || version != 3 {
		t.Fatalf("version %d, %v", version, err)
	}
	three := r.WitnessPublic()
	second := r.reopen()
	for _, k := range []*ring{r, second} {
		k.wantWitness(three, two, one)
		if k.SidecarID() != id {
			t.Error("the sidecar's id changed with its key")
		}
	}
	number := func() int {
		t.Helper()
		_, number, err := keyring.RowOf(r.rawGet(keyring.KeyKeyset("identity")))
		if err != nil {
			t.Fatal(err)
		}
		return number
	}
	clk.add(13*24*time.Hour - time.Second)
	wantErr(t, r.Refresh(ctx), nil)
	r.wantWitness(three, two, one)
	clk.add(time.Second)
	r.wantWitness(three, two)
	if number() != 3 {
		t.Error("the key is gone before the sweeper ran")
	}
	wantErr(t, r.Refresh(ctx), nil)
	if r.wantWitness(three, two); number() != 2 {
		t.Error("the key is still in the key store")
	}
	second.wantWitness(three, two) // has the older row
	wantErr(t, second.Refresh(ctx), nil)
	second.wantWitness(three, two)
	clk.add(24 * time.Hour)
	r.reopen().wantWitness(three)
	if number() != 1 {
		t.Error("Open left a key whose time is over")
	}
}

// That a key cannot be dropped now does not keep the keyring from opening; the key does not sign in any case.
func TestWitnessIsDroppedLater(t *testing.T) {
	ctx := context.Background()
	clk := newClock()
	r := newRing(t, func(c *keyring.Config) { c.Now, c.WitnessOverlap = clk.Now, time.Hour })
	if _, err := r.RotateWitness(ctx); err != nil {
		t.Fatal(err)
	}
	clk.add(2 * time.Hour)
	r.store.mu.Lock()
	r.store.before = func(op string) error {
		if op == "update" {
			return errInjected
		}
		return nil
	}
	r.store.mu.Unlock()
	again := r.reopen()
	again.wantWitness(r.WitnessPublic())
	wantErr(t, again.Refresh(ctx), keys.ErrUnavailable)
	r.store.mu.Lock()
	r.store.before = nil
	r.store.mu.Unlock()
	wantErr(t, again.Refresh(ctx), nil)
	if _, number, err := keyring.RowOf(r.rawGet(keyring.KeyKeyset("identity"))); err != nil || number != 1 {
		t.Errorf("%d keys are in the key store, %v", number, err)
	}
}

// Only so many keys sign side by side.
func TestWitnessKeysAreBounded(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	var err error
	n := 1
	for ; err == nil && n < 100; n++ {
		_, err = r.RotateWitness(ctx)
	}
	wantErr(t, err, keys.ErrTooManyKeys)
	if got := len(r.WitnessKeys()); got != 16 {
		t.Errorf("%d keys sign", got)
	}
	r.reopen().wantWitness(r.WitnessKeys()...)
}

// Another node on the same key store takes a rotation over by itself.
func TestSweeperRefreshes(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, func(c *keyring.Config) { c.CacheTTL = time.Second })
	other := r.reopen()
	if _, err := r.RotateWitness(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := r.BeginIndex(ctx); err != nil {
		t.Fatal(err)
	}
	value := keyring.IndexValue{Collection: "a", Field: "b", Value: "c"}
	for end := time.Now().Add(20 * time.Second); len(other.WitnessKeys()) < 2 || len(other.tokensOf(value)) < 2; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the other node goes on with the older keys")
		}
	}
	other.wantWitness(r.WitnessKeys()...)
	if !reflect.DeepEqual(other.tokensOf(value), r.tokensOf(value)) {
		t.Error("the nodes give different tokens")
	}
}

// Close ends changes of the keysets and leaves no seed behind.
func TestCloseDuringKeysetChange(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	gate := make(chan struct{})
	r.kek.set(func() { r.kek.gate = gate })
	before := r.kek.calls.Load()
	ended := make(chan error)
	go func() { _, err := r.RotateWitness(ctx); ended <- err }()
	for r.kek.calls.Load() == before {
		time.Sleep(time.Millisecond)
	}
	waiting, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err := r.AddKeyset(waiting, "token") // behind the other
	wantErr(t, err, context.DeadlineExceeded)
	wantErr(t, err, keys.ErrUnavailable)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, <-ended, keys.ErrUnavailable)
	close(gate)
}

// Private keys are overwritten when others take their place, and at the end.
func TestWitnessKeysAreWiped(t *testing.T) {
	ctx := context.Background()
	r := newRing(t, nil)
	private := r.WitnessPrivate()
	for range 2 {
		if _, err := r.RotateWitness(ctx); err != nil {
			t.Fatal(err)
		}
		private = append(private, r.WitnessPrivate()...)
	}
	r.wantWitness(r.WitnessKeys()...)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if len(private) != 1+2+3 {
		t.Fatalf("%d keys were seen", len(private))
	}
	for i, b := range private {
		if !bytes.Equal(b, make([]byte, ed25519.PrivateKeySize)) {
			t.Errorf("key %d was not wiped", i)
		}
	}
}
