"""Parameter-efficient tuning of two frozen towers that inform each other at several depths.

from bridger import BridgedModel, attach_bridgers
from bridger.heads import ReferringSegmentationHead
"""

from bridger import etris
from bridger.attach import attach_bridgers
from bridger.bridgers import BridgerConfig
from bridger.encoder import BridgedEncoder
from bridger.features import BridgedFeatures, EncoderSpec
from bridger.model import BridgedModel
from bridger.named_towers import load_towers
from bridger.output import BridgedOutput
from bridger.processing import Prediction, Processor
from bridger.tiny_clip import load_tiny_clip
from bridger.towers import generic_text, generic_vision, register_tower

__version__ = "0.1.0"

__all__ = [
    "BridgedEncoder",
    "BridgedFeatures",
    "BridgedModel",
    "BridgedOutput",
    "BridgerConfig",
    "EncoderSpec",
    "Prediction",
    "Processor",
    "attach_bridgers",
    "etris",
    "generic_text",
    "generic_vision",
    "load_tiny_clip",
    "load_towers",
    "register_tower",
]
