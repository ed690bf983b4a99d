# Sourced by run: the steps that are more than one command.
# shellcheck shell=bash

check_protos() {
    buf lint
    buf format -d --exit-code proto
}

# Every file of values is one configuration of the chart.
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

# Prints the first code block under a heading of a page, so that the documented commands are the ones that run here:
# code_block FILE HEADING.
code_block() {
    local block
    block=$(awk -v heading="$2" '
        /^```/ { if (block) exit; block = under; next }
        block { print }
        !block && /^#+ / { sub(/^#+ /, ""); under = ($0 == heading) }
    ' "$1")
    if [[ -z $block ]]; then
        echo "$1 has no code block under a heading \"$2\"." >&2
        return 1
    fi
    echo "$block"
}

run_readme_tests() {
    local command
    command=$(code_block README.md "Tests")
    echo "\$ $command"
    bash -euo pipefail -c "$command"
}

# Runs a command as this user in new namespaces that root has prepared: in_namespaces OPTIONS CHANGE COMMAND…, with
# unshare's OPTIONS.
in_namespaces() {
    local options=$1 change=$2
    shift 2
    local name kept=(PATH="$PATH" HOME="$HOME")
    for name in CARGO_HOME CARGO_TARGET_DIR IMAGE_ROOT RUSTUP_HOME; do
        [[ -z ${!name-} ]] || kept+=("$name=${!name}")
    done
    # shellcheck disable=SC2086,SC2016 # one word an option; expanded inside
    as_root env "${kept[@]}" unshare $options -- bash -euo pipefail -c "$change"'
        exec setpriv --reuid="$1" --regid="$2" --init-groups -- "${@:3}"
    ' bash "$EUID" "$(id -g)" "$@"
}

# Runs the README's two commands without an installed or fetched Postgres. A mount namespace hides the installed one.
# The tests are those of starting Postgres and those of what differs between its versions: roles, row level security,
# TLS, plans and restarts.
run_without_postgres() {
    if ! as_root unshare --mount -- mount -t tmpfs none /tmp; then
        echo "Mount namespaces are not permitted here. This check is skipped." >&2
        return
    fi
    mkdir "$scratch/fetched"
    in_namespaces --mount '
        if [[ -d /usr/lib/postgresql ]]; then
            mount -t tmpfs -o mode=0755 none /usr/lib/postgresql
        fi
        if command -v postgres || compgen -G "/usr/lib/postgresql/*/bin/postgres"; then
            echo "This Postgres is not hidden." >&2
            exit 1
        fi
    ' env XDG_CACHE_HOME="$scratch/fetched" bash -euo pipefail -c '
        cargo run --locked --quiet -- demo
        cargo test --locked --quiet --lib -- dev::postgres::tests
        cargo test --locked --quiet --test it -- outages:: operator:: query_plans:: tenants:: tls::
    '
    # This proves that the fetched one was used.
    "$scratch"/fetched/paybridge/postgres-*/bin/postgres --version
}

# The namespaces that .ci/operator needs.
own_network="--net --mount --pid --fork --kill-child --mount-proc"

has_own_network() {
    # shellcheck disable=SC2086 # one word an option
    if ! as_root unshare $own_network -- ip link set lo up; then
        echo "Network and PID namespaces are not permitted here. This check is skipped." >&2
        return 1
    fi
}

operator_steps() {
    code_block docs/operations.md "With a real Stripe test key, from a laptop"
}

# The documented commands for backups, in the order in which they run, one array element for each section.
read_recovery_steps() {
    local heading
    recovery=()
    for heading in "Back up" "Restore" "Fail over" "Copy to staging"; do
        recovery+=("$(code_block docs/operations.md "$heading")")
    done
}

# The folder of the Postgres that the tests use.
installed_postgres() {
    local program
    program=$(compgen -G '/usr/lib/postgresql/*/bin/postgres' | sort -V | tail -n 1) || program=$(command -v postgres)
    dirname "$program"
}

# Runs the operator steps on a new Postgres: operate PROGRAMS PATH STEPS…
operate() {
    in_namespaces "$own_network" 'ip link set lo up' env PATH="$2" .ci/operator "$1" "${@:3}"
}

# Runs the steps of docs/operations.md unchanged, on the installed Postgres and on the newest, which was fetched before;
# then with an address that verifies the server's certificate, as that page says under "TLS to Postgres". The installed
# one also has the programs for backups.
run_operator_steps() {
    local steps address verified programs path recovery
    has_own_network || return 0
    steps=$(operator_steps)
    address=$(grep -o 'postgresql://[^ ]*' <<<"$steps")
    verified=${steps/"$address"/"\"$address?sslmode=verify-full&sslrootcert=\$SERVER_CA\""}
    if [[ $verified == "$steps" ]]; then
        echo "The steps contain no database address, or more than one." >&2
        return 1
    fi
    read_recovery_steps
    printf '%s\n' "$steps" "${recovery[@]}"
    cargo build --locked --quiet
    path=${CARGO_TARGET_DIR:-$repo/target}/debug:$PATH
    for programs in "$(installed_postgres)" "$scratch"/fetched/paybridge/postgres-*/bin; do
        operate "$programs" "$path" "$steps"
        operate "$programs" "$path" "$verified"
    done
    programs=$(installed_postgres)
    operate "$programs" "$programs:$path" "$steps" "${recovery[@]}"
}

# A short run, which must find no violation. It prints its seed for replay.
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

# Runs Stripe's own SDK or CLI against our sandbox: .ci/NAME/run.
run_against_sandbox() {
    local port attempts
    port=$(free_port)
    cargo build --locked --quiet
    # On Unix cargo execs the program, so this is the sandbox's process id.
    cargo run --locked --quiet -- sandbox --listen "127.0.0.1:$port" &
    sandbox_pid=$!
    for ((attempts = 0; ; attempts++)); do
        if (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            break
        fi
        if ((attempts == 300)) || ! kill -0 "$sandbox_pid" 2>/dev/null; then
            echo "The sandbox does not respond." >&2
            return 1
        fi
        sleep 0.1
    done
    PAYBRIDGE_CI_CACHE=$cache ".ci/$1/run" "http://127.0.0.1:$port"
    stop_sandbox
}
