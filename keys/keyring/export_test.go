package keyring

// Cached is how many bundles are unwrapped now.
func (k *Keyring) Cached() int { return k.cache.len() }

// KeyBundle is where a subject's row lies, for tests that move rows.
var KeyBundle = keyBundle

// KeyKeyset is where a keyset of the instance lies.
var KeyKeyset = keyKeyset

// KeyGeneration is where the counter lies.
var KeyGeneration = keyGeneration
