#!/usr/bin/env bash
# One worker by hand. Sets itself up on a fresh machine, then hands its arguments on:
#   ./start_worker.sh --worker-id worker1 --manager-url http://localhost:5000 --command "python train.py --epochs 100"
#                     [--working-dir DIR] [--env K=V …] [--token T] [--replace]
#   WORKER_ID, MANAGER_URL, COMMAND and WORKING_DIR from the environment do as well.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
. "$root/scripts/setup_venv.sh" runtime
# -I: neither the working directory nor PYTHONPATH, both the job's own, may change what the launcher imports.
exec "$procguard_python" -I -m procguard.worker_launcher "$@"
