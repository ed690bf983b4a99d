# Sourced by run: the image, without a container engine.
# shellcheck shell=bash

# Builds it, and plays the operator with what it holds.
check_image() {
    local root=$scratch/image/root
    .ci/build-image "$scratch/image"
    find "$root" -type f -printf '%10s /%P\n'
    if (($(du -sm --apparent-size "$root" | cut -f 1) >= 40)); then
        echo "The image is to stay below 40 MB." >&2
        return 1
    fi
    has_own_network || return 0
    IMAGE_ROOT=$root .ci/image/paybridge --version
    if IMAGE_ROOT=$root .ci/image/paybridge sandbox --help 2>/dev/null; then
        echo "The image holds the sandbox." >&2
        return 1
    fi
    operate "$(installed_postgres)" "$(operator_steps)" PATH="$repo/.ci/image:$PATH" IMAGE_ROOT="$root"
}
