package hcvault

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	hcapi "github.com/hashicorp/vault/api"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
)

// answer is what transit gives back for a batch, and what it says when it refuses.
type answer struct {
	Data struct {
		BatchResults []struct {
			Ciphertext string `json:"ciphertext"`
			Plaintext  []byte `json:"plaintext"` // base64
			Error      string `json:"error"`
		} `json:"batch_results"`
	} `json:"data"`
}

// Wrap implements keyring.KEK. What it returns is transit's own text, such as "vault:v3:8SDd3WHDOjf7...",
// so that the version of the key can be read off it.
func (k *KEK) Wrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	return k.batch(ctx, items, "encrypt")
}

// Unwrap implements keyring.KEK.
func (k *KEK) Unwrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	return k.batch(ctx, items, "decrypt")
}

// Rewrap implements keyring.KEK.
func (k *KEK) Rewrap(ctx context.Context, items []keyring.KEKItem) ([]keyring.KEKResult, error) {
	return k.batch(ctx, items, "rewrap")
}

// Version implements keyring.KEK: it is written in transit's text.
func (k *KEK) Version(wrapped []byte) (uint64, error) {
	if !isCiphertext(wrapped) {
		return 0, fmt.Errorf("wrapped data of an unknown format: %w", keys.ErrTampered)
	}
	version, _, _ := bytes.Cut(wrapped[len("vault:v"):], []byte(":"))
	return strconv.ParseUint(string(version), 10, 64)
}

// Ready implements keyring.KEK. sys/health says 200 while a failing audit device blocks all requests, so
// it is not asked.
func (k *KEK) Ready(ctx context.Context) error {
	probe := keyring.KEKItem{Context: keys.Tuple([]byte("pdv1"), []byte("ready")), Data: []byte("ready")}
	wrapped, err := k.Wrap(ctx, []keyring.KEKItem{probe})
	if err != nil {
		return err
	}
	if wrapped[0].Err != nil {
		return wrapped[0].Err
	}
	back, err := k.Unwrap(ctx, []keyring.KEKItem{{Context: probe.Context, Data: wrapped[0].Data}})
	if err != nil {
		return err
	}
	if back[0].Err == nil && string(back[0].Data) != "ready" {
		return fmt.Errorf("HashiCorp Vault gave back something else: %w", keys.ErrUnavailable)
	}
	return back[0].Err
}

// probe asks for anything at all, and returns nil when there was an answer.
func (k *KEK) probe(ctx context.Context) error {
	resp, err := k.client.Logical().WriteRawWithContext(ctx, k.path("encrypt"), []byte(`{"batch_input":[]}`))
	if resp != nil {
		defer resp.Body.Close()
	}
	if isOutage(err) {
		return err
	}
	return nil
}

func (k *KEK) path(op string) string { return k.cfg.Mount + "/" + op + "/" + k.cfg.Key }

// batch runs items through transit, and decides those that need no asking itself.
func (k *KEK) batch(ctx context.Context, items []keyring.KEKItem, op string) ([]keyring.KEKResult, error) {
	results := make([]keyring.KEKResult, len(items))
	asked := make([]int, 0, len(items))
	for i, item := range items {
		switch {
		case len(item.Context) == 0 || op == "encrypt" && len(item.Data) == 0:
			results[i].Err = fmt.Errorf("nothing to wrap, or no context: %w", keys.ErrInvalid)
		case op != "encrypt" && !isCiphertext(item.Data):
			results[i].Err = fmt.Errorf("wrapped data of an unknown format: %w", keys.ErrTampered)
		default:
			asked = append(asked, i)
		}
	}
	if len(asked) == 0 && ctx.Err() != nil {
		return nil, callError(ctx.Err())
	}
	for len(asked) > 0 {
		part := asked[:min(len(asked), maxItems)]
		asked = asked[len(part):]
		if err := k.part(ctx, items, part, op, results); err != nil {
			for _, r := range results {
				r.Data.Wipe()
			}
			return nil, err
		}
	}
	return results, nil
}

// part runs items[which...] through transit in one request, with one new login if the token has died.
func (k *KEK) part(ctx context.Context, items []keyring.KEKItem, which []int, op string, results []keyring.KEKResult) error {
	if !k.breaker.allows() {
		return fmt.Errorf("HashiCorp Vault gives no answer: %w", keys.ErrUnavailable)
	}
	token, err := k.session.token(ctx, 0)
	if err != nil {
		return err
	}
	err = k.request(ctx, items, which, op, results)
	if !errors.Is(err, errDeadToken) {
		return err
	}
	if _, err = k.session.token(ctx, token); err != nil {
		return err
	}
	return k.request(ctx, items, which, op, results)
}

func (k *KEK) request(ctx context.Context, items []keyring.KEKItem, which []int, op string, results []keyring.KEKResult) error {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	select {
	case k.slots <- struct{}{}:
		defer func() { <-k.slots }()
	case <-ctx.Done():
		return callError(ctx.Err())
	}
	body := encode(items, which, op)
	resp, err := k.client.Logical().WriteRawWithContext(ctx, k.path(op), body)
	var text []byte
	if resp != nil {
		defer resp.Body.Close()
		var e error
		if text, e = io.ReadAll(io.LimitReader(resp.Body, maxBody)); err == nil {
			err = e
		}
		defer clear(text)
	}
	// A caller that gave up early says nothing about HashiCorp Vault.
	if caller.Err() == nil || !isOutage(err) {
		k.breaker.record(isOutage(err))
	}
	var refusal *hcapi.ResponseError
	if err != nil && !errors.As(err, &refusal) {
		return callError(err)
	}
	if err == nil {
		// The answer was read to its end, so the transport is done with the request.
		clear(body)
	}
	// A batch in which every item failed comes with an error status and the results all the same.
	var a answer
	defer func() {
		for i := range a.Data.BatchResults {
			if err != nil {
				clear(a.Data.BatchResults[i].Plaintext)
			}
		}
	}()
	if e := json.Unmarshal(text, &a); e != nil || len(a.Data.BatchResults) != len(which) {
		if err != nil {
			return callError(err)
		}
		err = fmt.Errorf("HashiCorp Vault gave no or another number of results: %w", keys.ErrUnavailable)
		return err
	}
	err = nil
	for n, i := range which {
		switch r := &a.Data.BatchResults[n]; {
		case r.Error != "":
			results[i].Err = meaning(r.Error)
		case op != "decrypt" && isCiphertext([]byte(r.Ciphertext)):
			results[i].Data = []byte(r.Ciphertext)
		case op == "decrypt" && len(r.Plaintext) > 0:
			results[i].Data = r.Plaintext
		default:
			results[i].Err = fmt.Errorf("HashiCorp Vault gave an empty result: %w", keys.ErrUnavailable)
		}
	}
	return nil
}

// encode makes the body of a request. It is built by hand so that plaintext lies in one buffer, which can
// be wiped, and not in strings.
func encode(items []keyring.KEKItem, which []int, op string) []byte {
	member, size := `{"plaintext":"`, 64
	if op != "encrypt" {
		member = `{"ciphertext":"`
	}
	for _, i := range which {
		size += 40 + base64.StdEncoding.EncodedLen(len(items[i].Context)) + base64.StdEncoding.EncodedLen(len(items[i].Data))
	}
	b := append(make([]byte, 0, size), `{"partial_failure_response_code":200,"batch_input":[`...)
	for n, i := range which {
		if n > 0 {
			b = append(b, ',')
		}
		b = append(b, member...)
		if op != "encrypt" {
			b = append(b, items[i].Data...) // of isCiphertext's alphabet
		} else {
			b = base64.StdEncoding.AppendEncode(b, items[i].Data)
		}
		b = append(b, `","context":"`...)
		b = base64.StdEncoding.AppendEncode(b, items[i].Context)
		b = append(b, `"}`...)
	}
	return append(b, `]}`...)
}

// isCiphertext reports whether b has the form of transit's text: "vault:v", a version, ":", base64. A version
// has one form only; "v0" is refused, since transit would take it for "v1".
func isCiphertext(b []byte) bool {
	b, ok := bytes.CutPrefix(b, []byte("vault:v"))
	if !ok {
		return false
	}
	version, text, ok := bytes.Cut(b, []byte(":"))
	if !ok || len(version) == 0 || len(version) > 9 || version[0] == '0' || len(text) == 0 {
		return false
	}
	for _, c := range version {
		if c < '0' || c > '9' {
			return false
		}
	}
	if bytes.ContainsAny(text, "\r\n") { // which base64 lets pass
		return false
	}
	_, err := base64.StdEncoding.Strict().Decode(make([]byte, base64.StdEncoding.DecodedLen(len(text))), text)
	return err == nil
}
