#!/usr/bin/env bash
# Every test, on a fresh Debian machine with Go: ./test.sh
# What it needs beyond Go it finds, installs (as root, from Debian's packages; the TypeScript client's from npm), or says how to get.
# ./test.sh --fast leaves out the linters, the race detector and the histories.
set -euo pipefail
cd "$(dirname "$0")"

fast=no
case "${1-}" in
"") ;;
--fast) fast=yes ;;
*) echo "usage: ./test.sh [--fast]" >&2; exit 2 ;;
esac

say() { printf '\n== %s\n' "$*"; }

# need PROGRAM PACKAGE: install what is missing, or say how and stop. Nothing is skipped in silence.
missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
need curl curl
need git git
need gcc gcc
need spin spin
[ -x /usr/sbin/nginx ] || need nginx nginx-light # not in everybody's path; the tests start one of their own
[ -x /usr/sbin/pgbouncer ] || need pgbouncer pgbouncer
need node nodejs
need npm npm
if [ -z "${KEYWARD_TEST_POSTGRES_URL-}" ] && ! command -v initdb >/dev/null 2>&1 && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
	missing+=(postgresql)
fi
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
		say "installing ${missing[*]}"
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" libc6-dev >/dev/null
	else
		echo "The tests need more than Go. Install it and run again: sudo apt-get install ${missing[*]}" >&2
		exit 1
	fi
fi

# What comes over the network is fetched while the processors check and compile. A failure shows where it is needed.
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT
(
	go mod download -modfile=tools/caddy/go.mod
	[ "$fast" = yes ] || go mod download -modfile=tools/go.mod
	cp clients/typescript/package*.json clients/typescript/.npmrc "$fetched"
	cd "$fetched" && npm ci --ignore-scripts --no-audit --no-fund --prefer-offline # fills npm's cache
) >/dev/null 2>&1 &
fetching=$!

# Everything but the race detector is built without cgo, as the program is: what is compiled once serves every step.
export CGO_ENABLED=0

say "formatting"
unformatted=$(gofmt -l $(git ls-files '*.go'))
[ -z "$unformatted" ] || { echo "gofmt would change: $unformatted" >&2; exit 1; }

say "go vet"
go vet ./...
go vet -tags failpoints ./...
go vet -tags defects ./internal/defect

say "one static binary (R6)"
go build -o "$fetched/keyward" ./cmd/keyward

say "Caddy, for the tests of the doors: minutes the first time, then from Go's build cache"
go tool -modfile=tools/caddy/go.mod -n caddy >/dev/null

# The histories run by themselves: they put real processes under faults and say how long things may take.
histories=github.com/syncgram/keyward/internal/histories
# Those that take longest begin first, so that no processor waits for them at the end.
longest="./internal/verify ./internal/doors ./internal/modelcheck ./internal/faults ./cmd/keyward"
others=$(go list $longest ./... | awk '!seen[$0]++' | grep -vx "$histories")

if [ "$fast" = yes ]; then
	wait "$fetching" || true
	say "tests, without the histories"
	go test -shuffle=on $others
	exit
fi

say "staticcheck"
go tool -modfile=tools/go.mod staticcheck ./...

say "govulncheck"
if ! report=$(go tool -modfile=tools/go.mod govulncheck ./... 2>&1); then
	case "$report" in
	*"fetching vulnerabilities"* | *"dial tcp"* | *"no such host"*) echo "not run: its database cannot be reached from here" ;;
	*) printf '%s\n' "$report" >&2; exit 1 ;;
	esac
fi

wait "$fetching" || true
say "tests, with the race detector"
CGO_ENABLED=1 go test -race -shuffle=on -timeout 20m $others

say "histories: many nodes under faults"
CGO_ENABLED=1 go test -race -shuffle=on -timeout 20m -v "$histories"
