package policy

func (b *Bundle) gate() error { return nil }
