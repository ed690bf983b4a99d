# Sourced by run: the image, without a container engine.
# shellcheck shell=bash

# Builds the image's root and runs the operator steps with it. The profile differs from the Dockerfile's: this one
# reuses the tests' build, and a release build takes 16 minutes of a processor.
check_image() {
    local root=$scratch/image/root
    PROFILE=dev CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repo/target} .ci/build-image "$scratch/image" 2>&1 |
        tee "$scratch/image.log"
    if grep -q '^warning' "$scratch/image.log"; then
        echo "A build without the sandbox warns." >&2
        return 1
    fi
    find "$root" -type f -printf '%10s /%P\n'
    has_own_network || return 0
    IMAGE_ROOT=$root .ci/image/paybridge --version
    if IMAGE_ROOT=$root .ci/image/paybridge sandbox --help 2>/dev/null; then
        echo "The image holds the sandbox." >&2
        return 1
    fi
    IMAGE_ROOT=$root operate "$(installed_postgres)" "$repo/.ci/image:$PATH" "$(operator_steps)"
}
