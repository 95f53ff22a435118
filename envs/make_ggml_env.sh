#!/usr/bin/env bash
# An environment of its own for ggml-ot, which needs anndata < 0.12: for tests/e2e and benchmarks/pipeline.py.
#
#   envs/make_ggml_env.sh [DIR]    DIR: .venv-ggml beside the Snakefile; PYTHON: the interpreter to start from (python3)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
directory=${1:-$root/.venv-ggml}
constraints=$root/envs/constraints-ggml.txt
base=${PYTHON:-python3}
stamp=$directory/.constraints.sha256

say() { echo "make_ggml_env: $*"; }

fingerprint=$("$base" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$constraints")
if [[ -x $directory/bin/python && -f $stamp && $(<"$stamp") == "$fingerprint" ]]; then
    say "$directory is up to date"
    exit
fi

if [[ -e $directory && ! -f $directory/pyvenv.cfg && -n $(ls -A "$directory") ]]; then
    say "$directory is no virtual environment: not touching it" >&2
    exit 1
fi
say "creating $directory with $("$base" --version)"
"$base" -m venv --clear "$directory"

install() {
    say "installing $*"
    "$directory/bin/python" -m pip install -qq --disable-pip-version-check --constraint "$constraints" "$@"
}
# torch by itself: where a CPU build is offered this takes it, some gigabytes less than the others.
install torch==2.13.0
# pydantic is all that cohortgmm, run there from src/, needs beyond what ggml-ot brings.
install ggml-ot==0.9.94 pydantic

PYTHONPATH=$root/src "$directory/bin/python" -c 'import ggml_ot; from cohortgmm import fit_gmm, read_gmm'
echo "$fingerprint" >"$stamp"
say "$directory is ready"
