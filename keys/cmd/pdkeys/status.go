package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/prototypster/pdvault/keys/client"
	"github.com/prototypster/pdvault/keys/keyring"
)

// status asks the sidecar behind the configured socket. The sidecar runs as the user whose key store it is,
// so that is whom the socket must belong to.
func status(ctx context.Context, c Config, stdout io.Writer) error {
	owner, err := storeOwner(c)
	if err != nil {
		return err
	}
	cl, err := client.Dial(ctx, client.Config{Socket: c.Socket.Path, ServerUID: &owner})
	if err != nil {
		return fmt.Errorf("asking the sidecar (is it running, and may this user connect?): %v", err)
	}
	defer cl.Close()
	s, err := cl.Status(ctx)
	if err != nil {
		return fmt.Errorf("asking the sidecar: %v", err)
	}
	kek := "usable"
	if s.KEKState != nil {
		kek = s.KEKState.Error()
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"instance", s.Instance},
		{"sidecar", s.Sidecar},
		{"kek", s.KEK},
		{"kek state", kek},
		{"key store generation", fmt.Sprint(s.Generation)},
		{"ledger", orNone(s.Origin)},
		{"ledger key", orNone(strings.Join(s.LedgerKeys, " "))},
		{"witness key", orNone(strings.Join(s.WitnessKeys, " "))},
		{"witnessed size", fmt.Sprint(s.WitnessedSize)},
		{"witnessed root", orNone(base64.StdEncoding.EncodeToString(s.WitnessedRoot))},
	} {
		fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
	}
	for _, r := range s.Rewinds {
		fmt.Fprintf(w, "rewound\t%s, from %d entries to %d; forgotten root %s\n",
			r.At.Format(time.RFC3339), r.LostSize, r.Size, base64.StdEncoding.EncodeToString(r.LostRoot))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := statusOfKeys(ctx, cl, stdout); err != nil {
		return err
	}
	if s.KEKState != nil {
		return fmt.Errorf("the key-encryption key cannot be used: %v", s.KEKState)
	}
	return nil
}

// storeOwner is the user whose key store it is.
func storeOwner(c Config) (uint32, error) {
	info, err := os.Stat(c.ownedPath())
	if err != nil {
		return 0, storeError(c, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("%w: its owner is not known", errStore)
	}
	return st.Uid, nil
}

// statusOfKeys shows the versions in use, their age, the next epoch and the rotation under way. What the sidecar
// cannot tell now is said to be unknown.
func statusOfKeys(ctx context.Context, cl *client.Client, stdout io.Writer) error {
	now := time.Now()
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	in, err := cl.Inventory(ctx)
	if err != nil {
		fmt.Fprintf(w, "keys\tnot known: %v\n", err)
	} else {
		for _, row := range [][2]string{
			{"subjects with a key", fmt.Sprint(in.Subjects)},
			{"subjects destroyed", fmt.Sprint(in.Destroyed)},
			{"next epoch", nextEpoch(in, now)},
			{"age of the kek", kekAge(in, now)},
		} {
			fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
		}
	}
	jobs, err := cl.Jobs(ctx)
	running := "none"
	if err != nil {
		running = fmt.Sprintf("not known: %v", err)
	}
	for _, j := range jobs {
		if j.State == keyring.JobRunning {
			running = fmt.Sprintf("%s %s, %s", j.Scope, j.ID, progressOf(j))
		}
	}
	fmt.Fprintf(w, "rotation under way\t%s\n", running)
	if len(in.Versions) > 0 {
		fmt.Fprint(w, "\nkey\tversion\tin use by\tage\n")
	}
	for _, v := range in.Versions {
		version := fmt.Sprint(v.Version)
		if v.Newest {
			version += " (newest)"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", v.Kind, version, v.Count, ageOf(v.Made, now))
	}
	return w.Flush()
}

func nextEpoch(in client.Inventory, now time.Time) string {
	switch left := in.NextEpoch.Sub(now); {
	case in.NextEpoch.IsZero():
		return "none is planned"
	case left < 0:
		return fmt.Sprintf("%s, OVERDUE by %s", in.NextEpoch.Format(time.RFC3339), span(-left))
	default:
		return fmt.Sprintf("%s, in %s", in.NextEpoch.Format(time.RFC3339), span(left))
	}
}

// kekAge is the age of the newest version of the KEK against what the plan allows.
func kekAge(in client.Inventory, now time.Time) string {
	for _, v := range in.Versions {
		if v.Kind != keyring.ScopeKEK || !v.Newest || v.Made.IsZero() {
			continue
		}
		age := now.Sub(v.Made)
		switch {
		case in.EpochInterval == 0:
			return span(age)
		case age > in.EpochInterval:
			return fmt.Sprintf("%s, OLDER than the %s of the plan", span(age), span(in.EpochInterval))
		default:
			return fmt.Sprintf("%s of %s", span(age), span(in.EpochInterval))
		}
	}
	return "not known"
}

func ageOf(made, now time.Time) string {
	if made.IsZero() {
		return "not known"
	}
	return span(now.Sub(made))
}

// span is a duration as people say it.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	default:
		return fmt.Sprintf("%ds", max(d, 0)/time.Second)
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
