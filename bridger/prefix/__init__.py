"""The prefix cache: what frozen towers make of a picture or a sentence before they first meet.

Up to its first stage a tower sees its own input alone, so the output of that stage's block can be
kept by row. `cache` is its face, `skipping` runs towers without the blocks before it, `stores`
keep rows, `keys` name them, `rules` say where all this would be wrong.
"""

from bridger.prefix.cache import LIMIT_BYTES, PrefixCache

__all__ = ["LIMIT_BYTES", "PrefixCache"]
