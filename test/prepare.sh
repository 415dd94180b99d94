#!/usr/bin/env bash
# Installs what the tests use and a bare machine may lack, where that can be done: as root, with apt-get.
# Elsewhere it says what is missing; the tests that need it are then skipped, and counted.
set -euo pipefail

declare -A packages=([strace]=strace [curl]=curl [mkfs.ext4]=e2fsprogs [losetup]=mount)
missing=()
for command in "${!packages[@]}"; do
	command -v "$command" >/dev/null || missing+=("${packages[$command]}")
done
compgen -G '/usr/lib/postgresql/*/bin/pg_ctl' >/dev/null || command -v pg_ctl >/dev/null || missing+=(postgresql)
((${#missing[@]})) || exit 0
if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
else
	echo "not installed, and needed by some tests: ${missing[*]}" >&2
fi
