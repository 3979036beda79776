"""Towers by name: `load_towers("open_clip:ViT-B-16-quickgelu:openai@416")`.

A name is what recipes, the command line and adapters keep of where a pair of towers comes from.
`load` reads names, `open_clip_pair` knows open_clip's files and sizes, `downloads` how much a name
would download.
"""

from bridger.named_towers.load import KNOWN, load_towers

__all__ = ["KNOWN", "load_towers"]
