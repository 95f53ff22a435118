#!/usr/bin/env bash
# Make a virtual environment, unless it is there and up to date.
#
#   envs/make_env.sh DIR CONSTRAINTS REQUIREMENT...
#
# The requirements are installed one after another under the constraints file. PYTHON names the interpreter (python3).
set -euo pipefail

directory=$1 constraints=$2
shift 2
python=${PYTHON:-python3}

say() { echo "make_env: $*"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "$("$python" --version) is too old: Python 3.11 or newer is needed; name one with PYTHON=..." >&2
    exit 1
}
if [[ ! -f $constraints ]]; then
    say "no tested set of versions for $("$python" --version) ($constraints): installing the newest ones that fit"
    constraints=/dev/null
fi
stamp=$directory/.stamp
fingerprint=$({ "$python" --version; pwd; cat "$constraints" pyproject.toml; echo "$@"; } | sha256sum)
if [[ -x $directory/bin/python && -f $stamp && $(<"$stamp") == "$fingerprint" ]]; then
    exit
fi
if [[ -e $directory && ! -f $directory/pyvenv.cfg ]]; then
    say "$directory is no virtual environment: not touching it" >&2
    exit 1
fi

say "making $directory with $("$python" --version)"
if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv --clear "$directory"
else
    # Debian keeps ensurepip in a package of its own (python3-venv); pip itself can fill the environment.
    "$python" -m venv --clear --without-pip "$directory"
    "$python" -m pip --python "$directory/bin/python" install --quiet pip
fi
for requirement in "$@"; do
    say "installing $requirement"
    "$directory/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" "$requirement"
done
echo "$fingerprint" >"$stamp"
say "$directory is ready"
