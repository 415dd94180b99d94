#!/bin/sh
# Prepares HashiCorp Vault (or OpenBao) for one instance of pdvault: the transit mount, the derived key, and for each
# of the sidecar's two roles a policy and an AppRole. It may be run again; it changes no key that exists, and stops if
# that key is not derived. The token needs setup.hcl and no more.
#
#   VAULT_ADDR=https://... VAULT_TOKEN=... ./setup.sh
#
# The roles: pdvault-sidecar (sidecar.hcl) wraps and unwraps, all the time. pdvault-epoch (epoch.hcl) rotates, and
# retires old versions, during an epoch only. Afterwards, with the same token or one that may do just this:
#
#   ./setup.sh role-ids                      prints both role ids, for the configuration of pdkeys
#   ./setup.sh secret-id FILE                puts a wrapped secret id of the sidecar's role into FILE
#   ./setup.sh epoch-secret-id FILE          the same of the epoch's role
#
# A secret id serves one login. That of the sidecar lives ten minutes, its wrapping two; a token lives at most
# 24 hours. So an agent on the sidecar's host puts a new one in place at least daily, and at once when the sidecar
# reports that its login was refused. That of the epoch, and its wrapping, live a day, since nobody knows the minute at
# which an epoch begins: the agent puts a new one in place daily.
#
# When the key store is in HashiCorp Vault as well (store.type: hcvault), STORE is its path, such as main, and the script
# makes its KV engine, too, and gives the sidecar's role the policy for it (store.hcl). It is to be said each time: a run
# that would take the key store from the role stops.
#
# Names may be changed: MOUNT (transit), KEY (pdvault), ROLE (pdvault-sidecar), EPOCH_ROLE (pdvault-epoch), STORE_MOUNT
# (pdvault-keys), CIDR (the sidecar's addresses, unset: any), VAULT (vault; "bao" for OpenBao). OWNER: the user whom FILE
# is given to (unset: yours).
set -eu

MOUNT=${MOUNT:-transit}
KEY=${KEY:-pdvault}
ROLE=${ROLE:-pdvault-sidecar}
EPOCH_ROLE=${EPOCH_ROLE:-pdvault-epoch}
STORE=${STORE:-}
STORE_MOUNT=${STORE_MOUNT:-pdvault-keys}
CIDR=${CIDR:-}
OWNER=${OWNER:-}
VAULT=${VAULT:-vault}
here=$(cd "$(dirname "$0")" && pwd)

usage() {
	echo "usage: setup.sh [role-ids | secret-id FILE | epoch-secret-id FILE]" >&2
	exit 2
}

case "$MOUNT$KEY$ROLE$EPOCH_ROLE$STORE$STORE_MOUNT" in
*[!A-Za-z0-9_-]*)
	echo "setup.sh: MOUNT, KEY, ROLE, EPOCH_ROLE, STORE and STORE_MOUNT take letters, digits, _ and - only" >&2
	exit 2
	;;
esac
if [ "$ROLE" = "$EPOCH_ROLE" ]; then
	echo "setup.sh: ROLE and EPOCH_ROLE must differ" >&2
	exit 2
fi

deliver() { # deliver <role> <time to live of the wrapping> <file>: the file is complete or as it was
	umask 077
	rm -f "$3.new" # one that is there already keeps its mode
	"$VAULT" write -f -wrap-ttl="$2" -field=wrapping_token "auth/approle/role/$1/secret-id" >"$3.new"
	[ -z "$OWNER" ] || chown "$OWNER" "$3.new"
	mv "$3.new" "$3"
}

case "${1:-}" in
"") [ $# -eq 0 ] || usage ;;
role-ids)
	[ $# -eq 1 ] || usage
	for role in "$ROLE" "$EPOCH_ROLE"; do
		echo "$role $("$VAULT" read -field=role_id "auth/approle/role/$role/role-id")"
	done
	exit
	;;
secret-id)
	[ $# -eq 2 ] || usage
	deliver "$ROLE" 120s "$2"
	exit
	;;
epoch-secret-id)
	[ $# -eq 2 ] || usage
	deliver "$EPOCH_ROLE" 24h "$2"
	exit
	;;
*) usage ;;
esac

has() { # has <list> <name>: whether the list of mounts knows the name
	"$VAULT" "$1" list -format=json | grep -q "\"$2/\""
}

if [ -z "$STORE" ] && "$VAULT" read -field=token_policies "auth/approle/role/$ROLE" 2>/dev/null | grep -q "$ROLE-store"; then
	echo "setup.sh: the key store of $ROLE is in HashiCorp Vault: say its path in STORE" >&2
	exit 1
fi

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

policy() { # policy <file> <role>
	sed -e "s|\"transit/\([a-z]*\)/pdvault\([/\"]\)|\"$MOUNT/\1/$KEY\2|" \
		-e "s|\"pdvault-keys/\([a-z]*\)/main/|\"$STORE_MOUNT/\1/$STORE/|" "$here/$1" | "$VAULT" policy write "$2" -
}

policy sidecar.hcl "$ROLE"
policy epoch.hcl "$EPOCH_ROLE"

policies=$ROLE
if [ -n "$STORE" ]; then
	has secrets "$STORE_MOUNT" || "$VAULT" secrets enable -path="$STORE_MOUNT" -version=2 kv
	tries=0 # a new engine refuses requests for a moment
	until "$VAULT" write "$STORE_MOUNT/config" max_versions=1 delete_version_after=0s; do
		tries=$((tries + 1))
		[ $tries -lt 10 ] || exit 1
		sleep 1
	done
	policy store.hcl "$ROLE-store"
	policies=$ROLE,$ROLE-store
fi

approle() { # approle <role> <its policies> <time to live of a secret id>
	"$VAULT" write "auth/approle/role/$1" \
		token_policies="$2" token_no_default_policy=true token_type=service \
		token_ttl=20m token_max_ttl=24h token_bound_cidrs="$CIDR" \
		secret_id_num_uses=1 secret_id_ttl="$3" secret_id_bound_cidrs="$CIDR"
}

approle "$ROLE" "$policies" 10m
approle "$EPOCH_ROLE" "$EPOCH_ROLE" 25h
