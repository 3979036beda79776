"""Parameter-efficient tuning of two frozen towers that inform each other at several depths.

from bridger import BridgedModel, attach_bridgers
from bridger.heads import ReferringSegmentationHead
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridger import etris as etris
    from bridger.attach import attach_bridgers as attach_bridgers
    from bridger.bridgers import BridgerConfig as BridgerConfig
    from bridger.encoder import BridgedEncoder as BridgedEncoder
    from bridger.exporting import export as export
    from bridger.features import BridgedFeatures as BridgedFeatures
    from bridger.features import EncoderSpec as EncoderSpec
    from bridger.model import BridgedModel as BridgedModel
    from bridger.named_towers import load_towers as load_towers
    from bridger.output import BridgedOutput as BridgedOutput
    from bridger.processing import Prediction as Prediction
    from bridger.processing import Processor as Processor
    from bridger.tiny_clip import load_tiny_clip as load_tiny_clip
    from bridger.towers import generic_text as generic_text
    from bridger.towers import generic_vision as generic_vision
    from bridger.towers import register_tower as register_tower

__version__ = "0.1.0"

# Where the public names are. They are imported when they are asked for, so that what needs none of
# them, such as `bridger --help`, does not wait for torch.
_HOMES = {
    "BridgedEncoder": "encoder",
    "BridgedFeatures": "features",
    "BridgedModel": "model",
    "BridgedOutput": "output",
    "BridgerConfig": "bridgers",
    "EncoderSpec": "features",
    "Prediction": "processing",
    "Processor": "processing",
    "attach_bridgers": "attach",
    "export": "exporting",
    "etris": "",  # a module itself
    "generic_text": "towers",
    "generic_vision": "towers",
    "load_tiny_clip": "tiny_clip",
    "load_towers": "named_towers",
    "register_tower": "towers",
}
__all__ = list(_HOMES)

if not TYPE_CHECKING:  # else every name would be there for type checkers

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOMES[name]
        if not home:
            return import_module(f"{__name__}.{name}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
