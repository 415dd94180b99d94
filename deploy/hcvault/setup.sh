#!/bin/sh
# Prepares HashiCorp Vault (or OpenBao) for one instance of pdvault: the transit mount, the derived key, the
# sidecar's policy and its AppRole. It may be run again; it changes no key that exists, and stops if that key
# is not derived.
#
#   VAULT_ADDR=https://... VAULT_TOKEN=... ./setup.sh
#
# Afterwards deliver to the sidecar's host, each time it starts or needs a new login:
#
#   vault read -field=role_id auth/approle/role/pdvault-sidecar/role-id
#   vault write -f -wrap-ttl=120s -field=wrapping_token auth/approle/role/pdvault-sidecar/secret-id > secret-id
#
# A secret id serves one login and lives ten minutes; a token lives at most 24 hours. So an agent on that host
# puts a new one in place at least daily, and at once when the sidecar reports that its login was refused.
#
# Names may be changed: MOUNT (transit), KEY (pdvault), ROLE (pdvault-sidecar), CIDR (the sidecar's addresses,
# unset: any), VAULT (vault; "bao" for OpenBao).
set -eu

MOUNT=${MOUNT:-transit}
KEY=${KEY:-pdvault}
ROLE=${ROLE:-pdvault-sidecar}
CIDR=${CIDR:-}
VAULT=${VAULT:-vault}
here=$(cd "$(dirname "$0")" && pwd)

case "$MOUNT$KEY$ROLE" in
*[!A-Za-z0-9_-]*)
	echo "setup.sh: MOUNT, KEY and ROLE take letters, digits, _ and - only" >&2
	exit 2
	;;
esac

has() { # has <list> <name>: whether the list of mounts knows the name
	"$VAULT" "$1" list -format=json | grep -q "\"$2/\""
}

has secrets "$MOUNT" || "$VAULT" secrets enable -path="$MOUNT" transit
has auth approle || "$VAULT" auth enable approle

# Encrypting under a name that does not exist must fail, not make a key.
"$VAULT" write "$MOUNT/config/keys" disable_upsert=true

if ! "$VAULT" read "$MOUNT/keys/$KEY" >/dev/null 2>&1; then
	"$VAULT" write -f "$MOUNT/keys/$KEY" type=aes256-gcm96 derived=true exportable=false \
		allow_plaintext_backup=false auto_rotate_period=0
fi
if [ "$("$VAULT" read -field=derived "$MOUNT/keys/$KEY")" != true ]; then
	echo "setup.sh: $MOUNT/keys/$KEY is not derived: a wrapped bundle would not be bound to its subject" >&2
	exit 1
fi
"$VAULT" write "$MOUNT/keys/$KEY/config" deletion_allowed=false

sed -e "s|\"transit/\([a-z]*\)/pdvault\"|\"$MOUNT/\1/$KEY\"|" "$here/sidecar.hcl" | "$VAULT" policy write "$ROLE" -

"$VAULT" write "auth/approle/role/$ROLE" \
	token_policies="$ROLE" token_no_default_policy=true token_type=service \
	token_ttl=20m token_max_ttl=24h token_bound_cidrs="$CIDR" \
	secret_id_num_uses=1 secret_id_ttl=10m secret_id_bound_cidrs="$CIDR"
