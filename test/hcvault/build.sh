#!/bin/sh
# Prints the path of a HashiCorp Vault binary for tests: $HCVAULT_BIN, else vault on the PATH, else one built
# from this module into the cache directory, which takes some minutes the first time.
set -eu

version=1.21.2

if [ -n "${HCVAULT_BIN:-}" ]; then
	if [ ! -x "$HCVAULT_BIN" ]; then
		echo "build.sh: HCVAULT_BIN=$HCVAULT_BIN is not an executable file" >&2
		exit 1
	fi
	echo "$HCVAULT_BIN"
	exit
fi
if command -v vault >/dev/null 2>&1; then
	command -v vault
	exit
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/pdvault
binary=$cache/hcvault-$version
if [ ! -x "$binary" ]; then
	mkdir -p "$cache"
	# Built under another name first, so that a build that was stopped leaves nothing that looks complete.
	tmp=$binary.$$
	trap 'rm -f "$tmp"' EXIT
	(cd "$(dirname "$0")" && go build -tags minimal -o "$tmp" github.com/hashicorp/vault) >&2
	mv "$tmp" "$binary"
fi
echo "$binary"
