# Sourced by run: the steps that are more than one command.
# shellcheck shell=bash

check_protos() {
    buf lint
    buf format -d --exit-code proto
}

# Every set of values is one way to use the chart.
check_chart() {
    local values manifests
    manifests=$(mktemp)
    for values in helm/paybridge/ci/*-values.yaml; do
        echo "$values"
        helm lint --strict --quiet helm/paybridge --values "$values"
        helm template paybridge helm/paybridge --namespace billing --values "$values" >"$manifests"
        kubernetes-validate --strict --quiet "$manifests"
    done
    rm "$manifests"
}

# The first line of the first code block under the heading "Tests" of the README, so that what people are told to run is
# what is run here.
readme_test_command() {
    awk '
        /^#+ / { under = ($0 ~ /^#+ Tests$/) }
        under && /^```/ { if (block) exit; block = 1; next }
        under && block && NF { sub(/^\$ /, ""); print; exit }
    ' README.md
}

run_readme_tests() {
    local command
    command=$(readme_test_command)
    if [[ -z $command ]]; then
        echo 'README.md has no code block under a heading "Tests".' >&2
        return 1
    fi
    echo "\$ $command"
    bash -euo pipefail -c "$command"
}

# The README's two commands where Postgres is not installed and was never fetched. A mount namespace hides the installed
# one. Of the tests run those of Postgres' own start, and a few that need its roles, row level security and restarts.
run_without_postgres() {
    local folder
    if ! as_root unshare --mount -- mount -t tmpfs none /tmp; then
        echo "Nothing can be hidden here: mount namespaces are not permitted. This is not proved." >&2
        return
    fi
    folder=$(mktemp -d)
    # Root's Postgres runs as another account, which must be able to enter.
    chmod 0755 "$folder"
    as_root env PATH="$PATH" HOME="$HOME" XDG_CACHE_HOME="$folder" unshare --mount -- bash -euo pipefail -c '
        if [[ -d /usr/lib/postgresql ]]; then
            mount -t tmpfs -o mode=0755 none /usr/lib/postgresql
        fi
        if command -v postgres || compgen -G "/usr/lib/postgresql/*/bin/postgres"; then
            echo "This Postgres is not hidden." >&2
            exit 1
        fi
        exec setpriv --reuid="$1" --regid="$2" --init-groups -- bash -euo pipefail -c "
            cargo run --locked --quiet -- demo
            cargo test --locked --quiet --lib -- dev::postgres::tests
            cargo test --locked --quiet --test it -- away:: tenants::
        "
    ' bash "$EUID" "$(id -g)"
    # What was used is what was fetched.
    "$folder"/paybridge/postgres-*/bin/postgres --version
    rm -rf "$folder"
}

# A short one: it must show no breach. It prints its seed, by which it can be played again.
run_chaos() {
    cargo run --locked --quiet -- chaos --payments 200 --replicas 3 --faults 10% --kill-every 2s --minutes 5 "$@"
}

sandbox_pid=

stop_sandbox() {
    if [[ -n $sandbox_pid ]]; then
        kill "$sandbox_pid" 2>/dev/null || true
        wait "$sandbox_pid" 2>/dev/null || true
        sandbox_pid=
    fi
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Stripe's own SDK and CLI, witnesses that we did not write, play against our sandbox: .ci/NAME/run is one of them.
run_against_sandbox() {
    local port tries
    port=$(free_port)
    cargo build --locked --quiet
    # On Unix cargo becomes the program it runs, so this is the sandbox's own process id.
    cargo run --locked --quiet -- sandbox --listen "127.0.0.1:$port" &
    sandbox_pid=$!
    for ((tries = 0; ; tries++)); do
        if (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            break
        fi
        if ((tries == 300)) || ! kill -0 "$sandbox_pid" 2>/dev/null; then
            echo "The sandbox does not answer." >&2
            return 1
        fi
        sleep 0.1
    done
    PAYBRIDGE_CI_CACHE=$cache ".ci/$1/run" "http://127.0.0.1:$port"
    stop_sandbox
}
