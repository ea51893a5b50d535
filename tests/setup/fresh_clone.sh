#!/usr/bin/env bash
# What a newcomer does: clones HEAD into an empty folder (here with a space in its path) and runs the
# README's two commands. Nothing of this checkout is used but the compiler's download caches.
set -uo pipefail
source_folder=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
clone="$place/a fresh clone"
passed=0 failed=0

check() { # check NAME COMMAND...: passes when the command does
  local name=$1
  shift
  if "$@" >"$place/output" 2>&1; then
    passed=$((passed + 1))
    echo "ok      $name"
  else
    failed=$((failed + 1))
    cat "$place/output"
    echo "not ok  $name"
  fi
}
fails_with() { # fails_with WORDS COMMAND...: passes when the command fails with these words on one line
  local words=$1 output
  shift
  output=$("$@" 2>&1) && { echo "expected a failure but it succeeded"; return 1; }
  echo "$output"
  [ "$(wc -l <<<"$output")" -eq 1 ] && [[ $output == *"$words"* ]]
}

git clone --quiet "$source_folder" "$clone" || exit 1
cd -- "$clone" || exit 1
unset BAMBA_LIBRARY BAMBA_DEV_ROOT BAMBA_DEV_BUN BAMBA_DEV_DENO BAMBA_DEV_ZIG
export ZIG_GLOBAL_CACHE_DIR=${ZIG_GLOBAL_CACHE_DIR:-$source_folder/.tools/zig-cache/global}

# A missing prerequisite is named in one sentence. These tools are what a bare Debian has anyway.
bare=$place/bin
mkdir "$bare"
for tool in bash dirname uname mkdir flock find head tail rm mv cp cat; do
  ln -s "$(command -v "$tool")" "$bare/$tool" 2>/dev/null
done
without() { env PATH="$bare" "$bare/bash" ./dev "$@"; }
check "missing python3 is named" fails_with "python3 is missing" without zig version
printf '#!/bin/sh\nexit 1\n' >"$bare/python3"
chmod +x "$bare/python3"
check "missing pip is named" fails_with "pip is missing" without zig version
check "missing node is named" fails_with "node is missing" without bun --version
ln -s "$(command -v node)" "$bare/node"
check "missing npm is named" fails_with "npm is missing" without bun --version
check "an unknown subcommand is named" fails_with "generat" ./dev generat

# The first command does all set-up it needs; a second set-up at the same time waits for it.
started=$SECONDS
./dev deno --version >"$place/second" 2>&1 &
second=$!
prints_text() { ./dev generate "a small dog is" >"$place/text" && [ "$(wc -c <"$place/text")" -gt 20 ]; }
check "./dev generate prints text" prints_text
echo "        set-up and text took $((SECONDS - started)) s; it printed:"
head -c 400 "$place/text"
check "a second set-up at once works" wait "$second"
same_text() { ./dev generate --runtime deno "a small dog is" | cmp - "$place/text"; }
check "Deno prints the same text" same_text

started=$(date +%s%N)
check "a second start is quick" ./dev bun --version
milliseconds=$((($(date +%s%N) - started) / 1000000))
echo "        it took $milliseconds ms"
check "it took less than 300 ms" [ "$milliseconds" -lt 300 ]

# The second command, on the tests that need neither goldens nor minutes.
closing_line() { ./dev test setup/ | tail -n 1 | grep -E '^[0-9]+ passed, 0 failed'; }
check "./dev test runs tests" closing_line
no_test() { ! ./dev test no-such-test; }
check "./dev test fails where nothing matches" no_test
clean() { [ -z "$(git status --porcelain)" ]; }
check "set-up leaves the work tree clean" clean

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
