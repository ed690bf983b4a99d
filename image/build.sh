#!/bin/sh
# Builds the binary of the image, and gathers all that the image holds. The Dockerfile runs it, and so does .ci/run.
#
#   image/build.sh dependencies   builds what Cargo.lock names, from Cargo.toml and Cargo.lock alone
#   image/build.sh root FOLDER    builds the binary, and makes FOLDER the root of the image
set -eu

export CARGO_TARGET_DIR=target

build() {
    cargo build --release --locked --no-default-features
}

# Cargo insists on the files that Cargo.toml names. What it builds from these empty ones is forgotten, so that it builds
# again from the real ones, whichever file is newer.
dependencies() {
    mkdir src benches
    touch src/lib.rs benches/figures.rs
    echo 'fn main() {}' | tee src/main.rs >build.rs
    build
    rm -r src benches build.rs target/release/.fingerprint/paybridge-*
}

# Everything that the binary needs and nothing else: itself, its C libraries, the certificates by which it knows Stripe,
# and an account that is not root.
root() {
    build
    mkdir -p "$1/etc/ssl/certs"
    cp target/release/paybridge "$1/paybridge"
    ldd target/release/paybridge | grep -o '/[^ ]*' | xargs -I{} cp --parents -L {} "$1"
    cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
    echo 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$1/etc/passwd"
    echo 'nonroot:x:65532:' >"$1/etc/group"
}

"$@"
