package client

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/internal/coalesce"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// Limits of single calls, the same as the sidecar's: a call beyond them is refused here, so that it cannot
// spoil the batch it would travel in.
const (
	maxFields     = 1000      // fields of a call
	maxName       = 128       // bytes in the name of a collection, a field, a label
	maxPlaintext  = 64 << 10  // bytes in a field's value
	maxCiphertext = 128 << 10 // bytes in a field's ciphertext, padding included
	maxDetail     = 64 << 10
	maxIndexValue = 4 << 10
	maxEntry      = 65535
	maxProtected  = 64 << 10
	maxCall       = 24 << 20 // bytes of a call in all
)

const (
	refSize   = 32 // bytes of a subject's reference
	tokenSize = 16 // bytes of a blind-index token
)

type sealCall struct{ subject *keyspb.SealSubject }

type sealed struct {
	ref    []byte
	fields []SealedField
}

func newSealCall(subject uuid.UUID, create bool, fields []SealField) (sealCall, error) {
	if len(fields) > maxFields {
		return sealCall{}, fmt.Errorf("%d fields: %w", len(fields), keys.ErrInvalid)
	}
	s := &keyspb.SealSubject{Subject: subject[:], Create: create, Fields: make([]*keyspb.SealField, len(fields))}
	for i, f := range fields {
		switch {
		case !isName(f.Collection), !isName(f.Field):
			return sealCall{}, fmt.Errorf("field %d has no proper name: %w", i, keys.ErrInvalid)
		case (len(f.Plaintext) == 0) == (len(f.Carry) == 0), len(f.Plaintext) > maxPlaintext, len(f.Carry) > maxCiphertext:
			return sealCall{}, fmt.Errorf("field %d has no proper content: %w", i, keys.ErrInvalid)
		}
		p := &keyspb.SealField{
			Collection: f.Collection, Field: f.Field, Version: f.Version,
			Plaintext: f.Plaintext, Carry: f.Carry, CarryVersion: f.CarryVersion,
		}
		for _, v := range f.Index {
			x := &keyspb.IndexValue{Collection: f.Collection, Field: f.Field, Normaliser: v.Normaliser, Value: v.Value, Sealed: v.Sealed}
			if len(x.Sealed) == 0 {
				if err := checkIndex(x); err != nil {
					return sealCall{}, fmt.Errorf("field %d: %w", i, err)
				}
			} else if x.Value != "" || len(x.Sealed) > 2*maxIndexValue {
				return sealCall{}, fmt.Errorf("field %d: index value: %w", i, keys.ErrInvalid)
			}
			p.Index = append(p.Index, x)
		}
		s.Fields[i] = p
	}
	q := sealCall{s}
	if q.size() > maxCall {
		return sealCall{}, fmt.Errorf("call of %d bytes: %w", q.size(), keys.ErrInvalid)
	}
	return q, nil
}

func (q sealCall) size() int {
	n := 24
	for _, f := range q.subject.Fields {
		n += 32 + len(f.Collection) + len(f.Field) + len(f.Plaintext) + len(f.Carry)
		for _, v := range f.Index {
			n += indexSize(v)
		}
	}
	return n
}

func (c *Client) sendSeal(ctx context.Context, batch []sealCall) ([]coalesce.Outcome[sealed], error) {
	req := &keyspb.SealRequest{Subjects: make([]*keyspb.SealSubject, len(batch))}
	for i, q := range batch {
		req.Subjects[i] = q.subject
	}
	mark := c.generation.Load()
	resp, err := c.rpc.Seal(ctx, req)
	if err != nil {
		return nil, sidecarError(err)
	}
	if err := c.checkGeneration(mark, resp.Generation); err != nil {
		return nil, err
	}
	if len(resp.Subjects) != len(batch) {
		return nil, malformed("sidecar")
	}
	out := make([]coalesce.Outcome[sealed], len(batch))
	for i, s := range resp.Subjects {
		out[i].Value, out[i].Err = sealedOf(batch[i].subject, s)
	}
	return out, nil
}

func sealedOf(asked *keyspb.SealSubject, s *keyspb.SealedSubject) (sealed, error) {
	if s.Code != keyspb.Code_OK {
		return sealed{}, keys.ErrorOf(s.Code)
	}
	if len(s.Ref) != refSize || len(s.Fields) != len(asked.Fields) {
		return sealed{}, malformed("sidecar")
	}
	r := sealed{ref: s.Ref, fields: make([]SealedField, len(s.Fields))}
	for i, f := range s.Fields {
		if len(f.Ciphertext) == 0 || len(f.Index) != len(asked.Fields[i].Index) {
			return sealed{}, malformed("sidecar")
		}
		r.fields[i].Ciphertext = f.Ciphertext
		for _, x := range f.Index {
			tokens, err := tokensOf(x.GetTokens())
			if err != nil || len(x.GetSealed()) == 0 {
				return sealed{}, malformed("sidecar")
			}
			r.fields[i].Index = append(r.fields[i].Index, IndexedValue{Sealed: x.Sealed, Tokens: tokens})
		}
	}
	return r, nil
}

type prepareCall struct {
	subject uuid.UUID
	detail  []byte
}

type prepared struct{ ref, detail []byte }

func (q prepareCall) size() int { return 24 + len(q.detail) }

func (c *Client) sendPrepare(ctx context.Context, batch []prepareCall) ([]coalesce.Outcome[prepared], error) {
	req := &keyspb.PrepareRequest{Items: make([]*keyspb.PrepareItem, len(batch))}
	for i := range batch {
		req.Items[i] = &keyspb.PrepareItem{Subject: batch[i].subject[:], Detail: batch[i].detail}
	}
	mark := c.generation.Load()
	resp, err := c.rpc.Prepare(ctx, req)
	if err != nil {
		return nil, sidecarError(err)
	}
	if err := c.checkGeneration(mark, resp.Generation); err != nil {
		return nil, err
	}
	if len(resp.Items) != len(batch) {
		return nil, malformed("sidecar")
	}
	out := make([]coalesce.Outcome[prepared], len(batch))
	for i, p := range resp.Items {
		switch {
		case p.Code != keyspb.Code_OK:
			out[i].Err = keys.ErrorOf(p.Code)
		case len(p.Ref) != refSize || (len(p.SealedDetail) == 0) != (len(batch[i].detail) == 0):
			out[i].Err = malformed("sidecar")
		default:
			out[i].Value = prepared{p.Ref, p.SealedDetail}
		}
	}
	return out, nil
}

func indexSize(v *keyspb.IndexValue) int {
	return 16 + len(v.Collection) + len(v.Field) + len(v.Value) + len(v.Sealed)
}

// tokensOf takes tokens as the sidecar gives them: at least one, ascending by the version of the key.
func tokensOf(p []*keyspb.IndexToken) ([]IndexToken, error) {
	if len(p) == 0 {
		return nil, malformed("sidecar")
	}
	tokens := make([]IndexToken, len(p))
	for i, t := range p {
		if len(t.GetToken()) != tokenSize || t.Key == 0 || i > 0 && t.Key <= tokens[i-1].Key {
			return nil, malformed("sidecar")
		}
		tokens[i] = IndexToken{Key: t.Key, Token: t.Token}
	}
	return tokens, nil
}

func checkIndex(v *keyspb.IndexValue) error {
	if !isName(v.Collection) || !isName(v.Field) || v.Value == "" || len(v.Value) > maxIndexValue || !isText(v.Value) {
		return fmt.Errorf("index value: %w", keys.ErrInvalid)
	}
	return nil
}

func (c *Client) sendIndex(ctx context.Context, batch []*keyspb.IndexValue) ([]coalesce.Outcome[[]IndexToken], error) {
	mark := c.generation.Load()
	resp, err := c.rpc.Index(ctx, &keyspb.IndexRequest{Values: batch})
	if err != nil {
		return nil, sidecarError(err)
	}
	if err := c.checkGeneration(mark, resp.Generation); err != nil {
		return nil, err
	}
	if len(resp.Values) != len(batch) {
		return nil, malformed("sidecar")
	}
	out := make([]coalesce.Outcome[[]IndexToken], len(batch))
	for i, v := range resp.Values {
		out[i].Value, out[i].Err = tokensOf(v.GetTokens())
	}
	return out, nil
}
