"""The command that becomes a worker's runner: a small daemon that is the child's parent and outlives the agent.

    python3 -I -S remote_agent/runner/__main__.py --worker-dir D --runtime-dir R [--lease EPOCH:UNTIL_NS]
        [--stop GENERATION:EPOCH] [--seen PID:START,…] [--foreground]

Everything else is in start.py: this file is compiled at each start. It forks before anything is imported, when there is
little to copy; the original process exits with what the daemon reports.
"""

import gc
import os
import sys


def detach() -> int:
    """Return in a daemon that leads no session, with the descriptor on which it reports its exit code as one byte."""
    readable, writable = os.pipe()
    alone = os.getsid(0) == os.getpid()  # as an agent starts it
    if os.fork() != 0:
        os.close(writable)
        code = os.read(readable, 1)
        os._exit(code[0] if code else 71)  # EXIT_CANNOT_START: it was killed
    os.close(readable)
    if not alone:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
    return writable


if __name__ == "__main__":
    gc.disable()  # importing modules creates almost no garbage; Runner.run enables collections again
    report_to = -1 if "--foreground" in sys.argv else detach()
    # -I leaves the script's directory out of the path; this is the release's.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from remote_agent.system import lean_import

    lean_import.install()
    from remote_agent.runner import start

    sys.exit(start.main(sys.argv[1:], report_to))
