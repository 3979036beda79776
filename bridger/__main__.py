"""`python -m bridger`, and so `torchrun -m bridger` and `accelerate launch -m bridger`."""

from __future__ import annotations

import sys

from bridger.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
