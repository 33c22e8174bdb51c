#!/usr/bin/env bash
# Makes the virtual environment named by the first argument. torch comes first and pinned: with it in
# place no other package pulls a CUDA build of several gigabytes.
set -euo pipefail
venv=$1
python=${PYTHON:-python3}

"$python" - <<'CHECK' || { echo "Python 3.11 or later is needed; name it with: make PYTHON=python3.11 setup" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
CHECK

if [ ! -x "$venv/bin/python" ]; then
  echo "making $venv"
  "$python" -m venv "$venv" || { echo "the venv module is missing: apt-get install python3-venv" >&2; exit 1; }
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
echo "installing packages into $venv (a few minutes the first time)"
pip install -c constraints.txt torch
pip install -c constraints.txt -e '.[hooks,worker,cpu,demo,dev]'
# Its metadata asks for packages that its photographs, which are all we use, do not need.
pip install --no-deps -c constraints.txt foolbox
