#!/bin/sh
# Makes or updates .venv: the locked dependencies, then this project, editable; changes nothing else.
#
# The stamp .venv/.installed is written last. A .venv without it is a broken-off install and is made
# anew; one with it is brought up to date, which needs no network when the lock has not changed.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "make install: $*" >&2
    exit 1
}

# Prints the path of a Python >= 3.11; of the one beneath it, where the command is a venv's (ours,
# perhaps, which is about to be removed). Each candidate is run, not looked up: a pyenv shim, say,
# may be on PATH and still fail.
find_python() {
    for candidate in "$@"; do
        "$candidate" -c 'import sys; sys.version_info < (3, 11) and sys.exit(1)
print(sys._base_executable)' 2>/dev/null && return
    done
    return 1
}

# The lock names every package, so --no-deps: left to resolve "coverage[toml]", pip tries a release
# newer than the lock's, and stops because that one has no hash. hatchling, which builds the project,
# is in the lock too: --no-build-isolation fetches no other.
install_with() {
    "$@" --quiet --no-deps --require-hashes -r requirements.lock &&
        "$@" --quiet --no-deps --no-build-isolation --editable .
}

with_uv() {
    command -v uv >/dev/null || return 1
    [ -d .venv ] || uv venv --quiet --python "$python" .venv || return 1
    install_with uv pip install --python .venv/bin/python
}

with_pip() {
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        rm -rf .venv # made by uv, without pip
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python has no ensurepip; install its venv package (Debian: python3-venv), or uv"
        "$python" -m venv .venv
    fi
    install_with .venv/bin/python -m pip install --disable-pip-version-check
}

# shellcheck disable=SC2086 # PYTHON may name several
python=$(find_python ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}) ||
    fail "found no Python >= 3.11; name one: make install PYTHON=/path/to/python3"

stamp=.venv/.installed
[ -e "$stamp" ] && find_python .venv/bin/python >/dev/null || rm -rf .venv
rm -f "$stamp"
echo "installing requirements.lock into .venv, with $python"
# uv is quicker; where it fails (a certificate that only the system trusts, say) pip may not.
with_uv || with_pip || fail "the install failed; the reason stands above"
touch "$stamp"
