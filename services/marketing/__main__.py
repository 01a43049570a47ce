"""`python -m marketing` serves gRPC."""

import sys

from marketing.server import start

if __name__ == "__main__":
    sys.exit(start())
