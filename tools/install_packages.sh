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

# Debian's python3 makes half an environment, without pip, and then says what package is missing.
make_venv() {
  "$python" -m venv "$venv" >/dev/null && return
  rm -rf "$venv"
  return 1
}
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  echo "making $venv"
  rm -rf "$venv"
  if ! make_venv; then
    if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
      echo "the venv module is missing. As root on Debian: apt-get install python3-venv" >&2
      exit 1
    fi
    echo "installing python3-venv with apt"
    DEBIAN_FRONTEND=noninteractive apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-venv >/dev/null
    make_venv
  fi
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
echo "installing packages into $venv (a few minutes the first time)"
pip install -c constraints.txt torch
pip install -c constraints.txt -e '.[hooks,worker,cpu,demo,dev]'
# Its metadata asks for packages that its photographs, which are all we use, do not need.
pip install --no-deps -c constraints.txt foolbox
