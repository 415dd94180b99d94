package sidecar

import (
	"fmt"
	"slices"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// Limits of a message. What is beyond them gets keys.ErrInvalid. The keyring's own limits hold too.
const (
	MaxMessage     = 32 << 20  // bytes in a message
	MaxItems       = 4096      // subjects, items or values in a message
	MaxFields      = 1000      // fields of one item
	MaxName        = 128       // bytes in the name of a collection, a field, a label
	MaxPlaintext   = 64 << 10  // bytes in a field's value
	MaxCiphertext  = 128 << 10 // bytes in a field's ciphertext
	MaxDetail      = 64 << 10  // bytes in a detail of an access record
	MaxIndexValue  = 4 << 10   // bytes in a value to be indexed
	MaxProtected   = 64 << 10  // bytes in a secret to be protected
	MaxResealItems = 10_000    // ciphertexts to seal again, or index values to make tokens of, in a message
	MaxCheckpoint  = 16 << 10  // bytes in a signed checkpoint
	MaxProof       = 64        // hashes in a proof
	MaxBinding     = 1024      // bytes in an origin or a ledger key
)

func invalid(what string) error {
	return refuse(fmt.Errorf("%s: %w", what, keys.ErrInvalid), whyMessage)
}

func isName(s string) bool { return s != "" && len(s) <= MaxName }

func subjectID(b []byte) (uuid.UUID, error) {
	if len(b) != 16 {
		return uuid.Nil, invalid("subject")
	}
	id := uuid.UUID(b)
	if id == uuid.Nil {
		return uuid.Nil, invalid("subject")
	}
	return id, nil
}

func sealSubject(p *keyspb.SealSubject) (keyring.SealSubject, error) {
	id, err := subjectID(p.GetSubject())
	if err != nil {
		return keyring.SealSubject{}, err
	}
	if len(p.Fields) > MaxFields {
		return keyring.SealSubject{}, invalid("fields")
	}
	s := keyring.SealSubject{Subject: id, Create: p.Create, Fields: make([]keyring.SealField, len(p.Fields))}
	for i, f := range p.Fields {
		if s.Fields[i], err = sealField(f); err != nil {
			return keyring.SealSubject{}, err
		}
	}
	return s, nil
}

func sealField(p *keyspb.SealField) (keyring.SealField, error) {
	switch {
	case !isName(p.GetCollection()), !isName(p.GetField()):
		return keyring.SealField{}, invalid("name")
	case (len(p.Plaintext) == 0) == (len(p.Carry) == 0), len(p.Plaintext) > MaxPlaintext, len(p.Carry) > MaxCiphertext:
		return keyring.SealField{}, invalid("content")
	}
	f := keyring.SealField{Collection: p.Collection, Field: p.Field, Version: p.Version, CarryVersion: p.CarryVersion}
	if len(p.Plaintext) > 0 {
		f.Plaintext = p.Plaintext
	} else {
		f.Carry = p.Carry
	}
	if len(p.Index) > keyring.MaxIndexValues {
		return keyring.SealField{}, invalid("index values")
	}
	for _, x := range p.Index {
		v := keyring.IndexValue{Collection: p.Collection, Field: p.Field, Normaliser: x.GetNormaliser(), Value: x.GetValue(), Sealed: x.GetSealed()}
		if (v.Value == "") == (len(v.Sealed) == 0) || len(v.Value) > MaxIndexValue || len(v.Sealed) > 2*MaxIndexValue {
			return keyring.SealField{}, invalid("index value")
		}
		f.Index = append(f.Index, v)
	}
	return f, nil
}

func indexValue(p *keyspb.IndexValue) (keyring.IndexValue, error) {
	if !isName(p.GetCollection()) || !isName(p.GetField()) || p.Value == "" || len(p.Value) > MaxIndexValue {
		return keyring.IndexValue{}, invalid("index value")
	}
	return keyring.IndexValue{Collection: p.Collection, Field: p.Field, Normaliser: p.Normaliser, Value: p.Value}, nil
}

func prepareItem(p *keyspb.PrepareItem) (keyring.PrepareItem, error) {
	id, err := subjectID(p.GetSubject())
	if err != nil {
		return keyring.PrepareItem{}, err
	}
	if len(p.Detail) > MaxDetail {
		return keyring.PrepareItem{}, invalid("detail")
	}
	return keyring.PrepareItem{Subject: id, Detail: p.Detail}, nil
}

// openItem checks the form of p alone. compare is true when every field is only compared.
func openItem(p *keyspb.OpenItem) (q keyring.OpenSubject, compare bool, err error) {
	id, err := subjectID(p.GetSubject())
	if err != nil {
		return q, false, err
	}
	switch {
	case p.Index < 0, len(p.Entry) == 0, len(p.Entry) > verify.MaxEntrySize, len(p.Inclusion) > MaxProof:
		return q, false, invalid("proof")
	case !isName(p.Collection):
		return q, false, invalid("name")
	case len(p.Fields) == 0, len(p.Fields) > MaxFields:
		return q, false, invalid("fields")
	}
	q = keyring.OpenSubject{Subject: id, Collection: p.Collection, Version: p.Version, Fields: make([]keyring.OpenField, len(p.Fields))}
	compare = true
	for i, f := range p.Fields {
		if !isName(f.GetField()) || len(f.Ciphertext) == 0 || len(f.Ciphertext) > MaxCiphertext || len(f.Expect) > MaxPlaintext {
			return keyring.OpenSubject{}, false, invalid("field")
		}
		// One record must not buy a thousand guesses at one field.
		if slices.ContainsFunc(q.Fields[:i], func(before keyring.OpenField) bool { return before.Field == f.Field }) {
			return keyring.OpenSubject{}, false, invalid("repeated field")
		}
		q.Fields[i] = keyring.OpenField{Field: f.Field, Ciphertext: f.Ciphertext}
		if len(f.Expect) > 0 {
			q.Fields[i].Expect = f.Expect
		} else {
			compare = false
		}
	}
	return q, compare, nil
}

// hashes decodes a proof.
func hashes(p [][]byte) ([]tlog.Hash, error) {
	if len(p) > MaxProof {
		return nil, invalid("proof")
	}
	out := make([]tlog.Hash, len(p))
	for i, b := range p {
		if len(b) != tlog.HashSize {
			return nil, invalid("proof")
		}
		out[i] = tlog.Hash(b)
	}
	return out, nil
}
