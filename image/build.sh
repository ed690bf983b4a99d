#!/bin/sh
# Builds the image's binary and root. The Dockerfile and .ci/run use it.
#
#   image/build.sh dependencies   builds the dependencies, from Cargo.toml and Cargo.lock alone
#   image/build.sh root FOLDER    builds the binary and the image's root in FOLDER
#
# PROFILE overrides cargo's profile `release`, CARGO_TARGET_DIR the build folder `target`.
set -eu

profile=${PROFILE:-release}
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}"

build() {
    cargo build --profile "$profile" --locked --no-default-features
}

# Cargo requires the files that Cargo.toml names; these are empty.
dependencies() {
    mkdir src benches
    echo '//! Empty: only the dependencies are built.' | tee src/lib.rs src/main.rs build.rs >benches/figures.rs
    echo 'fn main() {}' | tee -a src/main.rs >>build.rs
    build
    rm -r src benches build.rs
}

# What the binary needs: itself, its C libraries, root certificates, and an account that is not root.
root() {
    # Cargo rebuilds what is newer than its last build, which was of the empty files.
    touch build.rs src/lib.rs src/main.rs
    build
    # Cargo's folder for the profile `dev` is `debug`.
    binary=$CARGO_TARGET_DIR/$(echo "$profile" | sed 's/^dev$/debug/')/paybridge
    mkdir -p "$1/etc/ssl/certs"
    cp "$binary" "$1/paybridge"
    ldd "$binary" | grep -o '/[^ ]*' | xargs -I{} cp --parents -L {} "$1"
    cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
    echo 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$1/etc/passwd"
    echo 'nonroot:x:65532:' >"$1/etc/group"
}

"$@"
