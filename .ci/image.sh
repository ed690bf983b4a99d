# Sourced by run: the image, without a container engine.
# shellcheck shell=bash

# Builds what the image holds, and plays the operator with it. The profile is not the Dockerfile's: this one shares what the
# tests have built, and a release takes 16 minutes of a processor.
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
    operate "$(installed_postgres)" "$(operator_steps)" PATH="$repo/.ci/image:$PATH" IMAGE_ROOT="$root"
}
