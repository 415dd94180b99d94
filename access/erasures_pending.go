package access

import "context"

// PendingErasures counts the erasures that are on record and not finished.
func (b *Broker) PendingErasures(ctx context.Context) (int, error) {
	pending, err := b.pendingErasures(ctx)
	return len(pending), err
}
