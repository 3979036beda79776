"""Labels that stand for no class, in every label map of the library."""

from __future__ import annotations

BACKGROUND = -1
"""Of a pixel that belongs to none of the classes."""

IGNORE = -100
"""Of a pixel that does not count, in losses and in metrics; torch's usual value."""
