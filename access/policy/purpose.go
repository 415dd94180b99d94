package policy

// Ground returns the ground of a purpose, empty for an unknown one. Unlike Purpose it copies nothing.
func (b *Bundle) Ground(purposeID string) string {
	p, ok := b.purposes[purposeID]
	if !ok {
		return ""
	}
	return p.Ground
}

// PurposeFields returns the fields of a collection that a purpose names, as registered. The slice is shared
// and must not be changed.
func (b *Bundle) PurposeFields(purposeID, collection string) []string {
	p, ok := b.purposes[purposeID]
	if !ok {
		return nil
	}
	return p.Fields[collection]
}
