package ledger

// Queued returns how many items wait in the queue, given up ones included.
func Queued(l *Ledger) int {
	l.queue.mu.Lock()
	defer l.queue.mu.Unlock()
	return len(l.queue.items)
}
