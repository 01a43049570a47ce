"""`python -m crm` serves the gRPC API."""

import sys

from crm.server import main

if __name__ == "__main__":
    sys.exit(main())
