# What the sidecar's token may do, and nothing else. It does not hold "create" on encrypt, so that a deleted
# or mistyped key is refused and not made anew; it cannot read, rotate, configure, export or delete the key.
# Rotation, configuration and trimming at an epoch run under a role of their own.
#
# setup.sh replaces the names "transit" (mount) and "pdvault" (key) when it is told others.

path "transit/encrypt/pdvault" {
  capabilities = ["update"]
}

path "transit/decrypt/pdvault" {
  capabilities = ["update"]
}

path "transit/rewrap/pdvault" {
  capabilities = ["update"]
}

# Its own token: the role has no default policy, which would allow these.
path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
