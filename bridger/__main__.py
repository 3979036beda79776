"""`python -m bridger`, and so `torchrun -m bridger` and `accelerate launch -m bridger`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

from bridger.cli.main import main


def run(command: Callable[[], int] = main) -> int:
    """Run a command, and take leave of other processes that it was connected with.

    After a failure nobody waits for them: they may never come, and the launcher ends them.

    Args:
        command: returns its exit code; by default the command line.

    Returns:
        The exit code.
    """
    code = command()
    torch = sys.modules.get("torch")
    if code == 0 and torch is not None and torch.distributed.is_initialized():
        gc.collect()  # what still holds the group would keep its threads until the very end
        torch.distributed.destroy_process_group()
    return code


if __name__ == "__main__":
    sys.exit(run())
