"""`python -m routing`: a router."""

from __future__ import annotations

import sys

from routing.server import main

if __name__ == "__main__":
    sys.exit(main())
