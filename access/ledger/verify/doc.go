// Package verify holds the formats of the ledger (entries, checkpoints, proofs, tiles) and the checks on
// them that need nothing but public keys and bytes. The sidecar uses it to decide whether it may open a
// ciphertext; pdaudit uses it to check an exported log offline.
//
// It must never touch storage, the network, a clock of its own or another package of pdvault, so that an
// auditor can read it whole and trust nothing else.
//
// Formats: RFC 6962 tree hashing (golang.org/x/mod/sumdb/tlog), C2SP signed-note, tlog-checkpoint,
// tlog-cosignature, tlog-proof and tlog-tiles.
package verify
