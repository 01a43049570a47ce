"""Becomes the given command after asking the kernel to kill it when its parent goes: `python launcher.py
PARENT SIGNAL CMD...`.

A program of its own, run with `python -S -E`, because code between fork and exec is unsafe in a parent with
threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, number, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        sys.exit(f"prctl failed with errno {ctypes.get_errno()}")
    if os.getppid() != parent:
        # The parent died before the request was in place, so no signal will come.
        os.kill(os.getpid(), signal.SIGKILL)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
