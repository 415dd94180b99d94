# What an epoch's token may do, and nothing else: tell the versions of the key, make a new one, raise the minimum
# versions, destroy those below. It cannot encrypt, decrypt or rewrap, so who holds it reads nothing; and of the key's
# configuration it may set the two minimum versions alone, not that the key can be exported or deleted. Who holds it
# can still destroy what was not wrapped again: its secret id is as precious as the key store.
#
# The token exists only during an epoch: the sidecar logs in when one begins, and revokes it when it ends.
#
# setup.sh replaces the names "transit" (mount) and "pdvault" (key) when it is told others.

path "transit/keys/pdvault" {
  capabilities = ["read"]
}

path "transit/keys/pdvault/rotate" {
  capabilities = ["update"]
}

path "transit/keys/pdvault/config" {
  capabilities = ["update"]
  allowed_parameters = {
    "min_decryption_version" = []
    "min_encryption_version" = []
  }
}

path "transit/keys/pdvault/trim" {
  capabilities = ["update"]
  allowed_parameters = {
    "min_available_version" = []
  }
}

# Its own token: the role has no default policy, which would allow these.
path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
