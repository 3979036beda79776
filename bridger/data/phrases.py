"""The ways people say where, how large, which colour and which one.

Both the expressions of the scenes and the captions that Tiny CLIP is pretrained with are made of
these phrases, so the tower has met every word that an expression may use. "{}" stands for a noun.
"""

from __future__ import annotations

PLACES: dict[str, tuple[str, ...]] = {
    "left": (
        "{} on the left",
        "left {}",
        "{} on the left side",
        "leftmost {}",
        "{} at the far left",
        "{} to the left",
        "{} left",
    ),
    "right": (
        "{} on the right",
        "right {}",
        "{} on the right side",
        "rightmost {}",
        "{} at the far right",
        "{} to the right",
        "{} right",
    ),
    "top": ("{} at the top", "top {}", "upper {}", "{} on top", "highest {}", "topmost {}"),
    "bottom": (
        "{} at the bottom",
        "bottom {}",
        "lower {}",
        "{} on the bottom",
        "lowest {}",
        "{} down at the bottom",
    ),
    "middle": (
        "{} in the middle",
        "middle {}",
        "center {}",
        "{} in the center",
        "central {}",
        "{} in the centre",
    ),
    "top left": (
        "{} in the top left corner",
        "upper left {}",
        "top left {}",
        "{} at the top left",
        "{} in the upper left",
    ),
    "top right": (
        "{} in the top right corner",
        "upper right {}",
        "top right {}",
        "{} at the top right",
        "{} in the upper right",
    ),
    "bottom left": (
        "{} in the bottom left corner",
        "lower left {}",
        "bottom left {}",
        "{} at the bottom left",
        "{} in the lower left",
    ),
    "bottom right": (
        "{} in the bottom right corner",
        "lower right {}",
        "bottom right {}",
        "{} at the bottom right",
        "{} in the lower right",
    ),
}

SIZES: dict[str, tuple[str, ...]] = {
    "big": ("big {}", "large {}", "bigger {}", "larger {}", "biggest {}", "largest {}", "huge {}"),
    "small": (
        "small {}",
        "little {}",
        "smaller {}",
        "smallest {}",
        "tiny {}",
        "littlest {}",
        "tiniest {}",
    ),
}

COLOURS: tuple[str, ...] = ("{colour} {noun}", "{noun} in {colour}", "{noun} that is {colour}")

RELATIONS: dict[str, tuple[str, ...]] = {
    "left of": ("{} left of {}", "{} to the left of {}", "{} on the left of {}"),
    "right of": ("{} right of {}", "{} to the right of {}", "{} on the right of {}"),
    "above": ("{} above {}", "{} over {}", "{} higher than {}"),
    "below": ("{} below {}", "{} under {}", "{} beneath {}", "{} underneath {}"),
    "next to": ("{} next to {}", "{} beside {}", "{} close to {}", "{} near {}", "{} by {}"),
    "behind": ("{} behind {}", "{} partly hidden by {}"),
    "in front of": ("{} in front of {}", "{} covering {}"),
}

BETWEEN: tuple[str, ...] = ("{} between {} and {}", "{} in between {} and {}")

ORDINALS: tuple[str, ...] = ("first", "second", "third", "fourth")

ROWS: dict[str, tuple[str, ...]] = {
    "left": ("{ordinal} {noun} from the left", "{noun} {ordinal} from the left"),
    "right": ("{ordinal} {noun} from the right", "{noun} {ordinal} from the right"),
    "top": ("{ordinal} {noun} from the top", "{noun} {ordinal} from the top"),
    "bottom": ("{ordinal} {noun} from the bottom", "{noun} {ordinal} from the bottom"),
}

# Words that no phrase above holds but that people may type all the same.
OTHER_WORDS = (
    "a an the this that these those it its is are was be in on at of to for by with without from "
    "and or not no but than as who which whose what where there here one ones two three four five "
    "six thing things object objects item items stuff other another only all both each same "
    "picture photo image scene side edge hand row line column group pair single fifth sixth last "
    "final most more less very far near close closest nearest nearer farthest furthest away next "
    "beside besides adjacent around across opposite against inside outside over under up down "
    "high higher low lower tall short long wide narrow thin thick round square old new half "
    "left right top bottom middle center centre front back behind above below between among upper "
    "highest lowest corner left-hand colored coloured color colour bright light dark pale "
    "red orange yellow green blue purple pink violet brown gray grey black white golden gold "
    "silver beige cyan turquoise magenta medium medium-sized sized size giant enormous mini "
    "hidden covered covering partly partially visible touching overlapping standing sitting lying "
    "looking facing turned tilted upside animals birds fruits vegetables vehicles tools clothes "
    "toys instruments plants flowers trees shoes hats balls boats insects dinosaurs creature "
    "beast machine wild cute shiny my your his her please find show me select see can you i"
)


def with_article(noun: str, article: str) -> str:
    """Puts an article before a noun phrase; "a" becomes "an" where it has to.

    Example:
        >>> with_article("owl", "a"), with_article("red owl", "the"), with_article("owl", "")
        ('an owl', 'the red owl', 'owl')
    """
    if article == "a" and noun[0] in "aeiou" and not noun.startswith("unicorn"):
        article = "an"
    return f"{article} {noun}".strip()
