package vault

import (
	"fmt"

	"github.com/prototypster/pdvault/vault/kv"
)

// Erase returns the change that erases a subject: every record and every row of the index that it has is
// deleted, and its head becomes a tombstone that says nothing but that there was one. s must have been loaded
// with all its records.
func (s *Subject) Erase() (kv.Change, error) {
	var change kv.Change
	if !s.Exists() {
		return kv.Change{}, ErrNoSubject
	}
	s.Expect(&change)
	for _, name := range s.collections() {
		row := s.Rows[name]
		if row == nil {
			return kv.Change{}, fmt.Errorf("%w: erasing a subject of which a record is not loaded", ErrIntegrity)
		}
		change.Delete(recordKey(s.ID, name))
		for _, f := range row.Fields {
			for _, x := range f.Index {
				for _, key := range x.keys(s.ID, name, f.Name) {
					change.Delete(key)
				}
			}
		}
	}
	change.Set(headKey(s.ID), encodeHead(Head{Format: headFormat, Version: s.Head.Version + 1, Erased: true}))
	return change, nil
}
