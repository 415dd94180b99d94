# What the sidecar's token may do besides sidecar.hcl when its key store is in HashiCorp Vault as well
# (store.type: hcvault), and nothing else. It can remove rows and pieces of commits with their metadata, so
# that no version stays; it cannot remove the log, the owner and the marker, whose versions must only grow,
# and it can neither configure the engine nor reach what lies beside the store.
#
# The engine is one of KV version 2 that keeps one version of a secret and is used for nothing else. setup.sh makes it
# and puts this policy onto the sidecar's role when it is told the path of the store (STORE); it replaces the names
# "pdvault-keys" (mount) and "main" (path).

path "pdvault-keys/data/main/*" {
  capabilities = ["create", "read", "update"]
}

path "pdvault-keys/metadata/main/" {
  capabilities = ["list"]
}

path "pdvault-keys/metadata/main/owner" {
  capabilities = ["read"]
}

path "pdvault-keys/metadata/main/log/" {
  capabilities = ["list"]
}

path "pdvault-keys/metadata/main/parts/*" {
  capabilities = ["list", "delete"]
}

path "pdvault-keys/metadata/main/rows/*" {
  capabilities = ["list", "delete"]
}
