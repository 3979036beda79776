"""What importing the package costs and loads."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torchvision", "transformers", "open_clip", "timm", "peft", "PIL", "torch._dynamo")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_loads_no_library_before_it_is_needed() -> None:
    torch_itself = loaded_after("import torch")
    loaded = loaded_after("import bridger, bridger.heads, bridger.cli.main")
    assert not [name for name in HEAVY if name in loaded - torch_itself]


def test_public_names_are_there() -> None:
    import bridger

    assert all(hasattr(bridger, name) for name in bridger.__all__)
