#!/usr/bin/env bash
# Make the virtual environment and install the locked, hashed packages and the project itself (editable) into it.
# Usage: make_venv.sh <python> <venv>
set -euo pipefail
python=$1 venv=$2

if ! command -v "$python" >/dev/null; then
  echo "setup: no '$python' on the PATH; give one with PYTHON=/path/to/python3.11 (or newer)" >&2
  exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "setup: callmesh needs Python 3.11 or newer, '$python' is $("$python" -V 2>&1); give another with PYTHON=" >&2
  exit 2
fi
if [ ! -x "$venv/bin/pip" ]; then
  echo "setup: making $venv with $("$python" -V)"
  if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
    rm -rf "$venv"
    echo "setup: '$python -m venv' failed; on Debian and Ubuntu install the package python3-venv" >&2
    exit 2
  fi
fi
echo "setup: installing the locked packages (a minute or two the first time)"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input --require-hashes -r requirements-dev.txt
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input --no-deps --no-build-isolation --editable .
