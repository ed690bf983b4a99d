# Sourced by run: the image, without a container engine.
# shellcheck shell=bash

image_build=

# Builds it in the background, in the time that other steps leave idle, and in a process group of its own.
start_image_build() {
    setsid nice -n 19 .ci/build-image "$scratch/image" >"$scratch/image.log" 2>&1 &
    image_build=$!
}

stop_image_build() {
    if [[ -n $image_build ]]; then
        kill -- "-$image_build" 2>/dev/null || true
        wait "$image_build" 2>/dev/null || true
        image_build=
    fi
}

# Waits for the build, and plays the operator with what it made.
check_image() {
    local root=$scratch/image/root status=0
    wait "$image_build" || status=$?
    image_build=
    if ((status != 0)); then
        cat "$scratch/image.log" >&2
        return 1
    fi
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
