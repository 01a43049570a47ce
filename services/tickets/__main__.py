"""`python -m tickets` serves gRPC."""

import sys

from tickets.server import main

if __name__ == "__main__":
    sys.exit(main())
