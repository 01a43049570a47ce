"""`python -m routing`: a router."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    """Returns the process's exit status."""
    # A region that was lost waits for this. Of what is imported nothing is garbage, and to look through it
    # again and again took a fifth of the time.
    gc.disable()
    from routing import server

    gc.enable()
    return server.main()


if __name__ == "__main__":
    sys.exit(main())
