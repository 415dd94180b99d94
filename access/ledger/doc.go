// Package ledger is the append-only Merkle log on a kv.Store, and the one way in which pdvault's state
// changes: an entry, its effects on state, the tree and the signed checkpoint commit in one transaction.
//
// It must never return an index before the entry under it is durable, never sign a checkpoint that does not
// extend the one before, never publish a checkpoint before it is durable, and never create a log when asked
// to open one. It never interprets an entry beyond what ordering and finding need, and never sees a key or
// a plaintext. The formats, and everything an outsider needs to check the log, are in package verify.
//
// One goroutine, the committer, writes. Whatever was queued while its last commit was on its way to disk
// is the next batch, so that one synced transaction carries as many entries as there is load; no timer
// holds an entry back when the log is idle. Readers work on a snapshot that the committer replaces after
// each commit and are never blocked by it.
package ledger
