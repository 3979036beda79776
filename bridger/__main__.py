"""`python -m bridger`, and so `torchrun -m bridger` and `accelerate launch -m bridger`."""

from __future__ import annotations

import sys

from bridger.cli.main import main


def run() -> int:
    """Run the command line, and take leave of other processes after a run that went well."""
    code = main()
    torch = sys.modules.get("torch")
    if code == 0 and torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code


if __name__ == "__main__":
    sys.exit(run())
