# What the person who runs setup.sh needs, instead of the root token. Whoever holds it decides what the two roles may
# do, so it is given for an hour and not kept:
#
#   vault policy write pdvault-setup setup.hcl
#   vault token create -policy=pdvault-setup -no-default-policy -ttl=1h -field=token
#
# It can make the key, and read what is known of it, but not use, rotate, trim, export or delete it. Secret ids come
# out wrapped only, so that it never sees one.
#
# Other names of mount, key and roles than setup.sh's own must be put in here as well.

# The mounts.
path "sys/mounts" {
  capabilities = ["read"]
}

path "sys/mounts/transit" {
  capabilities = ["create", "update"]
}

path "sys/auth" {
  capabilities = ["read"]
}

path "sys/auth/approle" {
  capabilities = ["create", "update", "sudo"]
}

# The engine of a key store in HashiCorp Vault (STORE): that it keeps one version. What is in it cannot be read.
path "sys/mounts/pdvault-keys" {
  capabilities = ["create", "update"]
}

path "pdvault-keys/config" {
  capabilities = ["create", "update"]
}

# The key.
path "transit/config/keys" {
  capabilities = ["create", "update"]
}

path "transit/keys/pdvault" {
  capabilities = ["create", "read", "update"]
}

path "transit/keys/pdvault/config" {
  capabilities = ["create", "update"]
  allowed_parameters = {
    "deletion_allowed" = ["false", false]
  }
}

# The two roles and their policies.
path "sys/policies/acl/pdvault-sidecar" {
  capabilities = ["create", "read", "update"]
}

path "sys/policies/acl/pdvault-sidecar-store" {
  capabilities = ["create", "read", "update"]
}

path "sys/policies/acl/pdvault-epoch" {
  capabilities = ["create", "read", "update"]
}

path "auth/approle/role/pdvault-sidecar" {
  capabilities = ["create", "read", "update"]
}

path "auth/approle/role/pdvault-epoch" {
  capabilities = ["create", "read", "update"]
}

path "auth/approle/role/pdvault-sidecar/role-id" {
  capabilities = ["read"]
}

path "auth/approle/role/pdvault-epoch/role-id" {
  capabilities = ["read"]
}

path "auth/approle/role/pdvault-sidecar/secret-id" {
  capabilities     = ["create", "update"]
  min_wrapping_ttl = "1s"
  max_wrapping_ttl = "5m"
}

path "auth/approle/role/pdvault-epoch/secret-id" {
  capabilities     = ["create", "update"]
  min_wrapping_ttl = "1s"
  max_wrapping_ttl = "24h"
}
