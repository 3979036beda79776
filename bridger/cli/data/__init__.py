"""`bridger data`: each verb in a module of its own."""

from bridger.cli.data import check, convert, picture, scenes
from bridger.cli.data.scenes import DEFAULTS, describe_data, make_missing_scenes

__all__ = ["DEFAULTS", "EXAMPLES", "HELP", "VERBS", "describe_data", "make_missing_scenes"]

HELP = "look data sets through, convert them, or make one"
EXAMPLES = """\
  bridger data check my-data --sheet sheet.png           what is there, what is wrong
  bridger data convert refcoco lines                     to JSON Lines
  bridger data scenes scenes                             make a data set to try things on
  bridger data picture picture.png                       make one picture to try
"""
VERBS = {"check": check, "convert": convert, "scenes": scenes, "picture": picture}
