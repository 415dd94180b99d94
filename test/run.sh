#!/usr/bin/env bash
# Runs every test under the race detector and closes with one honest line: N passed, N failed, N skipped.
# Skipped tests are listed with their reasons; more of them than test/skips.allowed says is a failure.
set -uo pipefail
cd "$(dirname "$0")/.."

./test/prepare.sh || exit 1

# The real HashiCorp Vault: one on PATH or in HCVAULT_BIN, else built once from its Go module.
if ! HCVAULT_BIN=$(./test/hcvault/build.sh); then
	echo 'the real HashiCorp Vault could not be built; the tests need it' >&2
	exit 1
fi
export HCVAULT_BIN

out=$(mktemp)
trap 'rm -f "$out"' EXIT
# First those that take the longest, most of it waiting: else they would run alone at the end.
go test -race -count=1 -timeout 28m -json "$@" ./test/e2e ./test/fault ./vault/kv/badgerkv ./... >"$out"
status=$?
go run ./test/cmd/summary -allowed "$(cat test/skips.allowed)" <"$out" || status=1
exit $status
