#!/bin/sh
# Builds the binary of the image, and gathers all that the image holds. The Dockerfile runs it, and so does .ci/run.
#
#   image/build.sh dependencies   builds what Cargo.lock names, from Cargo.toml and Cargo.lock alone
#   image/build.sh root FOLDER    builds the binary, and makes FOLDER the root of the image
#
# PROFILE names another profile of cargo's than `release`, and CARGO_TARGET_DIR another folder to build in than `target`.
set -eu

profile=${PROFILE:-release}
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}"

build() {
    cargo build --profile "$profile" --locked --no-default-features
}

# Cargo insists on the files that Cargo.toml names: these hold nothing.
dependencies() {
    mkdir src benches
    echo '//! Nothing but what it depends on.' | tee src/lib.rs src/main.rs build.rs >benches/figures.rs
    echo 'fn main() {}' | tee -a src/main.rs >>build.rs
    build
    rm -r src benches build.rs
}

# Everything that the binary needs and nothing else: itself, its C libraries, the certificates by which it knows Stripe,
# and an account that is not root.
root() {
    # Cargo builds again what is newer than its last build, which was of the empty files.
    touch build.rs src/lib.rs src/main.rs
    build
    # Cargo's folder of the profile `dev` is `debug`.
    binary=$CARGO_TARGET_DIR/$(echo "$profile" | sed 's/^dev$/debug/')/paybridge
    mkdir -p "$1/etc/ssl/certs"
    cp "$binary" "$1/paybridge"
    ldd "$binary" | grep -o '/[^ ]*' | xargs -I{} cp --parents -L {} "$1"
    cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
    echo 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$1/etc/passwd"
    echo 'nonroot:x:65532:' >"$1/etc/group"
}

"$@"
