#!/bin/sh
# From a fresh clone to a built image: installs what is missing, builds rbuild, makes a base image from Debian packages
# (no registry needed), builds a multi-stage example that compiles C, runs the result, and builds it again from the cache.
# Works as root and as an ordinary user (who needs subordinate ids, as `adduser` gives them, and sudo for missing packages).
set -eu
cd "$(dirname "$0")/.."
work=${QUICKSTART_DIR:-$PWD/target/quickstart}
mkdir -p "$work"

say() { printf '\n==> %s\n' "$*"; }

need=""
have() { command -v "$1" >/dev/null 2>&1; }
have cc || need="$need gcc libc6-dev"
have mmdebstrap || need="$need mmdebstrap"
have newuidmap || need="$need uidmap"
have pasta || have slirp4netns || need="$need passt"
have iptables || have nft || need="$need iptables"
if [ -n "$need" ]; then
    say "installing$need"
    root=""
    [ "$(id -u)" = 0 ] || root=sudo
    if [ -n "$root" ] && ! have sudo; then
        echo "these packages are missing, and there is no sudo to install them:$need" >&2
        exit 1
    fi
    $root apt-get update -q
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $root apt-get install -q -y --no-install-recommends $need ca-certificates
fi
have cargo || PATH="$HOME/.cargo/bin:$PATH"
have cargo || { echo "cargo is missing: install Rust first (https://rustup.rs)" >&2; exit 1; }

say "building rbuild"
cargo build --release --locked -p rbuild-cli
rbuild=${CARGO_TARGET_DIR:-target}/release/rbuild
RBUILD_ROOT=${RBUILD_ROOT:-$work/store}
export RBUILD_ROOT

if [ ! -s "$work/base/rootfs.tar" ]; then
    say "making a Debian root file system with a C compiler"
    mkdir -p "$work/base"
    mmdebstrap --variant=minbase --include=gcc,libc6-dev bookworm "$work/base/rootfs.tmp.tar"
    mv "$work/base/rootfs.tmp.tar" "$work/base/rootfs.tar"
fi
cat > "$work/base/Dockerfile" <<'END'
FROM scratch
ADD rootfs.tar /
CMD ["/bin/bash"]
END
say "making the base image localhost/debian:bookworm of it"
"$rbuild" build -t localhost/debian:bookworm "$work/base"

say "building the example: two stages compile at the same time, a third puts them together"
"$rbuild" build -t hello -o "type=local,dest=$work/out" examples/app

say "running what was built"
"$work/out/hello"

say "building again: everything is in the cache"
"$rbuild" build --progress=plain -t hello -o "type=local,dest=$work/out" examples/app 2>"$work/second.log" || { cat "$work/second.log" >&2; exit 1; }
cat "$work/second.log"
steps=$(grep -c '^#[0-9]* CACHED$' "$work/second.log")
if grep -Eq '^#[0-9]+ \[[a-z]+ +[0-9]+/[0-9]+\] RUN' "$work/second.log" && [ "$steps" -ge 7 ]; then
    say "done: $steps steps CACHED; the store is in $RBUILD_ROOT"
else
    echo "the second build was not answered from the cache" >&2
    exit 1
fi
