package policy_test

import (
	"testing"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
)

// BenchmarkDecide measures the warm path. The target is 10 µs.
func BenchmarkDecide(b *testing.B) {
	bundle := mustDefault(b)
	fields := []string{"name", "email", "phone", "address"}
	cases := map[string]policy.Request{
		"service":   read("shop", "order-fulfilment", fields...),
		"agreement": read("courier", "partner-delivery", "name", "phone", "address"),
		"consent":   consented(read("shop", "newsletter", "email", "name")),
		"denied":    read("shop", "newsletter", "email"),
		"write":     {Action: policy.ActionWrite, Caller: "shop", Collection: "profile", Fields: fields, Now: now},
	}
	for name, r := range cases {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				bundle.Decide(r)
			}
		})
	}
}

// BenchmarkParse measures loading the default bundle with its gate.
func BenchmarkParse(b *testing.B) {
	raw := mustLoad(b)
	for b.Loop() {
		if _, err := policy.Parse(raw); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCovers measures the replay of one entry.
func BenchmarkCovers(b *testing.B) {
	bundle := mustDefault(b)
	e := entryOf(b, bundle, read("shop", "account", "email", "name"))
	for b.Loop() {
		if err := bundle.Covers(e, verify.Given{Published: policyEntry}); err != nil {
			b.Fatal(err)
		}
	}
}
