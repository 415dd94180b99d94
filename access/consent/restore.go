package consent

import "github.com/prototypster/pdvault/vault/kv"

// Purge returns the change that removes every consent of a subject whose key was destroyed.
func (l *List) Purge() kv.Change {
	var change kv.Change
	if l.raw == nil {
		return change
	}
	l.Expect(&change)
	change.Delete(listKey(l.Subject))
	for i := range l.Consents {
		change.Delete(ownerKey(l.Consents[i].ID))
		change.Delete(captureKey(l.Consents[i].ID))
	}
	return change
}
