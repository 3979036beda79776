"""Bridgers: the trainable modules between two towers. They know maps and tokens, no towers."""

import importlib
import pkgutil

from bridger.bridgers.bridger import Bridger, BridgerStack, Carry
from bridger.bridgers.config import BridgerConfig
from bridger.bridgers.interactor import Interactor, MultiheadAttention, register_interactor
from bridger.bridgers.zoom import Zoom

__all__ = [
    "Bridger",
    "BridgerConfig",
    "BridgerStack",
    "Carry",
    "Interactor",
    "MultiheadAttention",
    "Zoom",
    "register_interactor",
]

# A file put into this folder registers its interactor without being named anywhere.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
