#!/usr/bin/env bash
# The manager: API, portal, monitor and failure handler. Sets itself up on a fresh machine, then hands its arguments on:
#   ./start_manager.sh --config configs/procguard_config.yaml [--host H] [--port P] [--set KEY=VALUE …]
#   ./start_manager.sh --daemon | --status | --stop        in the background, on the same state
#   ./start_manager.sh --demo                              manager, this machine as a host, three example workers
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
. "$root/scripts/setup_venv.sh" runtime
# -P: the working directory is the user's own; a queue.py in it must not replace the standard library's.
exec "$procguard_python" -P -m procguard.main "$@"
