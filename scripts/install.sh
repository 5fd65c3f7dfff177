#!/bin/sh
# Creates or updates .venv: the locked dependencies, then this project as an editable install.
#
# The file .venv/.installed is written last. A .venv without it comes from an interrupted install and is
# created again. A .venv with it is updated, which needs no network if the lock has not changed.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "make install: $*" >&2
    exit 1
}

# Prints the path of the first candidate that is a Python >= 3.11. For a venv's Python it prints the Python
# that the venv was made from, because the venv may be the .venv that is about to be removed. Each candidate
# is run rather than only looked up: a pyenv shim, for example, may be on PATH and still fail.
find_python() {
    for candidate in "$@"; do
        "$candidate" -c 'import sys; sys.version_info < (3, 11) and sys.exit(1)
print(sys._base_executable)' 2>/dev/null && return
    done
    return 1
}

# --no-deps, because the lock names every package: if pip resolved "coverage[toml]" itself, it would try a
# newer release than the lock's, and stop because that one has no hash. --no-build-isolation, because
# hatchling, which builds the project, is in the lock, too.
install_with() {
    "$@" --quiet --no-deps --require-hashes -r requirements-dev.lock &&
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
    fail "found no Python >= 3.11; give its path: make install PYTHON=/path/to/python3"

stamp=.venv/.installed
[ -e "$stamp" ] && find_python .venv/bin/python >/dev/null || rm -rf .venv
rm -f "$stamp"
echo "installing requirements-dev.lock into .venv, with $python"
# uv is faster. If it fails, for example over a certificate that only the system trusts, pip may succeed.
with_uv || with_pip || fail "the install failed; see the output above"
touch "$stamp"
