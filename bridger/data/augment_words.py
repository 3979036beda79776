"""Which changes of a picture leave an English expression true, and left and right exchanged.

The rules would rather refuse a change that is safe than let one pass that makes an expression
wrong: what is refused costs an augmentation, what is wrong teaches a mistake. What is not written
in Latin letters is not judged, and refuses everything; other languages than English are not
noticed.
"""

from __future__ import annotations

import re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _pattern(*, anywhere: str = "", stems: str = "", words: str = "") -> re.Pattern[str]:
    """Match words that hold one of `anywhere`, begin with one of `stems`, or are one of `words`."""
    parts = [
        "|".join(anywhere.split()),
        rf"(?<!\w)(?:{'|'.join(stems.split())})" if stems else "",
        rf"(?<!\w)(?:{'|'.join(words.split())})(?!\w)" if words else "",
    ]
    return re.compile("|".join(filter(None, parts)), re.IGNORECASE)


_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_NOT_LATIN = re.compile(r"[^\x00-\u024f\u1e00-\u1eff\u2000-\u206f]")


def _words(sentence: str) -> list[str]:
    return [word[0].lower().replace("’", "'") for word in _WORD.finditer(sentence)]


# Left and right.

_OTHER = {"left": "right", "right": "left"}
_SIDE = re.compile(
    r"(?:top|bottom|upper|lower|far|back|front|mid|middle|center|centre|outer)?(left|right)"
    r"(?:most|hand|handed|side|y|er|est|wards?)?"
)
_NO_SIDE = re.compile(r"leftovers?|cleft\w*|(?:up|b|f|al|out|down|copy|playw|cartw)right\w*")
# After these "left" and "right" are sides whatever follows, but for what comes next.
_BEFORE_SIDES = _set("on at from to toward towards far upper lower extreme")
_DETERMINERS = _set("the our your my his her its their")
_PREPOSITIONS = _set("on at from to toward towards in by near of")
_AFTER_SIDES = _set("of most side hand corner")
# Before these they never are: right now, left over.
_NEVER_BEFORE = _set("now away over overs angle angles angled way up alone uneaten")
# Before these "right" may be a stress ("right behind") and "left" a verb ("left on the plate").
_DOUBTFUL_BEFORE = _set(
    "behind beside besides next in inside within into on onto at by near nearest above below under "
    "underneath beneath after before against between among amongst here there down through out "
    "outside off around across along alongside where when to from with without for past open "
    "empty opposite standing sitting lying hanging untouched unattended"
)
# After these they may be adjectives and verbs of another sense: all right, is left.
_DOUBTFUL_AFTER = _set(
    "all is are was were be been being am has have had who that which he she they it just get "
    "gets got still nothing anything something quite not no that's what's whats thats it's who's "
    "whos exactly already yes ok okay"
)
_REMAINING = _set("only last nothing still remaining any anything")
_ABBREVIATIONS = _set("l r lt rt lf rh lh lhs rhs lft rgt rht rite")
# One slip away from a side, but words of their own.
_NEAR_SIDES = _set(
    "lift loft lent lest let felt heft deft weft cleft light bright night fight sight might tight "
    "eight wight fright aright lefty righty"
)
# Counted from the left, where no side is named.
_ORDINAL = _pattern(
    words=r"\d+(?:st|nd|rd|th) first second third fou?rth fifth sixth seventh eighth nine?th "
    "tenth eleventh twelfth last final frist secon secnd thrid"
)
# What is read off a picture, or turns round with it in another way.
_READ = re.compile(
    r"[\"“”„«»#]|(?<!\w)['‘][^'’]+['’](?!\w)"  # quoted
    r"|\d(?!\d*(?:st|nd|rd|th)\b)"  # a number other than 1st, 2nd
    r"|(?<!\w)o\s?['’]?\s?clock(?!\w)"
    r"|(?<!\w)(?:driver|passenger)['’]?s?['’]?\s+side(?!\w)|"
    + _pattern(
        stems="spell number letter word initial",
        words="says? said saying reads written text (?:counter|anti)?-?clockwise portside "
        "starboard (?:north|south)?-?(?:east|west)(?:ern)?",
    ).pattern,
    re.IGNORECASE,
)


def mirror_words(sentence: str) -> str | None:
    """Exchange left and right, for a picture that is mirrored.

    Applied twice it gives the sentence back.

    Args:
        sentence: an English expression.

    Returns:
        What means the same in the mirrored picture; None where that is not certain: "right" or
        "left" in another sense (right behind, left over), misspelt or cut short, positions on a
        clock face, numbers and letters to be read, compass points; a rank without a side, such
        as "third elephant", which is counted from the left.
    """
    if _NOT_LATIN.search(sentence) or _READ.search(sentence):
        return None
    words = _words(sentence)
    for at, word in enumerate(words):
        if "left" not in word and "right" not in word:
            if _is_misspelt(word):
                return None
        elif _NO_SIDE.fullmatch(word):
            continue
        elif not _SIDE.fullmatch(word) or (word in _OTHER and not _is_side(words, at)):
            return None
    mirrored = _WORD.sub(_exchange, sentence)
    return None if mirrored == sentence and _ORDINAL.search(sentence) else mirrored


def _is_side(words: list[str], at: int) -> bool:
    """Whether a "left" or "right" is a side beyond doubt; the same for both, in any sentence."""
    before = words[:at]
    last, next_to_last = ["", "", *before][:-3:-1]
    following, second = [*words[at + 1 : at + 3], "", ""][:2]
    if following in _NEVER_BEFORE or (following, second) == ("of", "way"):
        return False
    if last in _BEFORE_SIDES or (last in _DETERMINERS and next_to_last in _PREPOSITIONS):
        return True
    if following in _AFTER_SIDES:
        return not {"what", "what's", "whats", "all"}.intersection(before)
    doubtful = last in _DOUBTFUL_AFTER or following in _DOUBTFUL_BEFORE
    return not doubtful and not _REMAINING.intersection(before)


def _exchange(match: re.Match[str]) -> str:
    word = match[0]
    found = None if _NO_SIDE.fullmatch(word.lower()) else _SIDE.fullmatch(word.lower())
    if found is None:
        return word
    start, end = found.span(1)
    old, new = word[start:end], _OTHER[found[1]]
    if old.isupper():
        new = new.upper()
    elif old[0].isupper():
        new = new.capitalize()
    return word[:start] + new + word[end:]


def _is_misspelt(word: str) -> bool:
    """Whether a word seems to be a side cut short, or with one letter too many, few or wrong."""
    if word in _NEAR_SIDES:
        return False
    sides = ("left", "right", "leftmost", "rightmost")
    return word in _ABBREVIATIONS or any(_one_slip(word, side) for side in sides)


def _one_slip(word: str, meant: str) -> bool:
    """Whether one letter was added, left out or changed, or two neighbours exchanged."""
    if word == meant:
        return False
    same = 0
    while word[: same + 1] == meant[: same + 1] and same < len(meant):
        same += 1
    found, due = word[same:], meant[same:]
    exchanged = found[:2] == due[:2][::-1] and found[2:] == due[2:]
    return exchanged or found == due[1:] or found[1:] == due or found[1:] == due[1:]


# Colours and shades.

_COLOUR = _pattern(
    anywhere="black whit(?:e|ish) blu(?:e|ish) green yellow brown purpl orang(?:e|ish) pink violet "
    "turquoise magenta maroon silver golden colou?r gr[ae]y beige blond brunette",
    stems="red dark bright pale teal navy crimson scarlet burgundy khaki bronze copper brass "
    "chrome ivory charcoal lavender lilac indigo shad[eo] sunn sunlit monochrom neon fluorescent "
    "rainbow tint rust camo ginger metallic glow",
    words="tan(?:ned|n?ish|ner)? gold(?:s|ish)? light(?:s|er|est|ed|ish)? "
    "lit blk wht blu grn brn ylw yllw orng prpl pnk cyan aqua cream lime mint coral plum "
    r"peach rose salmon olive mustard hues? sepia ripe unripe burnt faded bw b\s?(?:&|and|n|/)\s?w",
)
_COLOURS = _set("black white blue green yellow brown purple orange pink grey gray dark")
# One slip away from a colour, but words of their own.
_NEAR_COLOURS = _set(
    "back block slack lack flack blank while whine write glue clue greed greet preen crown grown "
    "frown drown blown brow mellow bellow fellow range grange pin pine ping pint pick sink wink "
    "link rink mink oink punk they prey trey grew tray pray fray grab gram ray park bark mark"
)


def holds_under_colour(sentence: str) -> bool:
    """Whether an expression stays true when colours and brightness change: it names none."""
    if _NOT_LATIN.search(sentence) or _COLOUR.search(sentence):
        return False
    return not any(
        word not in _NEAR_COLOURS and any(_one_slip(word, colour) for colour in _COLOURS)
        for word in _words(sentence)
    )


# Places, ranks and extents.

_PLACE = _pattern(
    stems="left right top upper lower bottom middle mid cent(?:er|re|ral) corner edge front back "
    "rear behind near close furth farth next beside between among opposite adjacent surround "
    "across above below beneath under around toward along nearby distan foreground diagonal "
    "outside inside inner outer north south east west lowest high ahead lead follow",
    words="up(?:wards?)? down(?:wards?)? bg fg bck bkg bkgd bkgrd frnt btm botm ctr cntr crnr "
    "far sides? ends? by past over there here away low rows? lines? columns? stacks? piles? "
    r"others? order o\s?['’]?\s?clock clockwise",
)
_PLACES = _set("background foreground corner middle center bottom behind")
_RANK = _pattern(
    anywhere=r"\d",
    stems="first second third fourth fifth sixth seventh eighth ninth tenth",
    words="last final two three four five six seven eight nine ten dozen both all every each "
    "pairs? couple groups? crowd bunch most several few many only alone",
)
_EXTENT = _pattern(
    stems="big larg small tiny tini huge giant tall wide narrow medium partial crop visib hidden "
    "whole entire complet zoom",
    words="little short(?:er|est)? long(?:er|est)? sized? half full cut cutoff barely off see seen "
    "show(?:s|n|ing)? peeking out",
)


def holds_under_crop(sentence: str) -> bool:
    """Whether an expression stays true for a part of the picture with the whole object in it.

    It names no place, no rank, no size or number, nothing at a distance, and does not speak of
    what can be seen. What an object is in touch with ("on a bench") is taken to stay in sight.
    """
    if any(rule.search(sentence) for rule in (_NOT_LATIN, _PLACE, _RANK, _EXTENT)):
        return False
    return not any(
        _is_misspelt(word) or any(_one_slip(word, place) for place in _PLACES)
        for word in _words(sentence)
    )
