#!/bin/sh
# Every check of the project: format, lints, all tests, documentation tests, examples. Installs what the tests need.
# As root nothing is skipped; as an ordinary user the tests that need root say so.
set -eu
cd "$(dirname "$0")/.."
have() { command -v "$1" >/dev/null 2>&1; }
need=""
have cc || need="$need gcc libc6-dev"
[ -x /bin/busybox ] || have busybox || need="$need busybox-static"
have newuidmap || need="$need uidmap"
have pasta || need="$need passt"
have slirp4netns || need="$need slirp4netns"
have iptables || need="$need iptables"
have unshare || need="$need util-linux"
have xz || need="$need xz-utils"
for tool in git bzip2 sqlite3 skopeo umoci docker-registry; do
    have "$tool" || need="$need $tool"
done
if [ -n "$need" ] && [ "$(id -u)" = 0 ]; then
    apt-get update -q
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $need ca-certificates
elif [ -n "$need" ]; then
    echo "note: these packages are missing, and their tests will say so:$need" >&2
fi
if [ "$(id -u)" = 0 ]; then
    RBUILD_REQUIRE_SANDBOX=1
    export RBUILD_REQUIRE_SANDBOX
    # Distributions let everybody open it; some images do not.
    [ -c /dev/net/tun ] && chmod 666 /dev/net/tun || true
fi
have cargo || PATH="$HOME/.cargo/bin:$PATH"
cargo fmt --all --check
cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
# Builds the examples too; those that are programs run after it.
cargo test --workspace --all-features --locked
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/context"
printf 'FROM scratch\nCOPY Dockerfile /\n' > "$work/context/Dockerfile"
"${CARGO_TARGET_DIR:-target}/debug/examples/build_in_process" "$work/store" "$work/context"
