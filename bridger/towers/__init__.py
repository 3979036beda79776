"""Towers: what each family of encoders looks like from inside, behind one face per side."""

from bridger.towers.base import Block, Tower
from bridger.towers.dense import DenseProjection
from bridger.towers.registry import (
    find_text_tower,
    find_vision_tower,
    register_tower,
    registered_towers,
)
from bridger.towers.text import TextTower
from bridger.towers.unknown_text import generic_text
from bridger.towers.unknown_vision import generic_vision
from bridger.towers.vision import MapVisionTower, TokenVisionTower, VisionTower

__all__ = [
    "Block",
    "DenseProjection",
    "MapVisionTower",
    "TextTower",
    "TokenVisionTower",
    "Tower",
    "VisionTower",
    "find_text_tower",
    "find_vision_tower",
    "generic_text",
    "generic_vision",
    "register_tower",
    "registered_towers",
]
