"""Towers by name: `load_towers("open_clip:ViT-B-16-quickgelu:openai@416")`.

A name is what recipes, the command line and adapters keep of where a pair of towers comes from.
`names` reads names, `load` makes towers of them, `loading` sees to it that this is quiet and safe,
`open_clip_pair` knows open_clip's files and sizes, `downloads` how much a name would download,
`of_adapter` which name an adapter has, `origins` what of it others can have.
"""

from bridger.named_towers.load import KNOWN, load_towers

__all__ = ["KNOWN", "load_towers"]
