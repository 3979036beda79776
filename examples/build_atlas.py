"""Builds the atlas of sprites that the scenes are made of.

The pictures are Microsoft's Fluent Emoji in 3D (MIT licence), taken from the npm package
``@lobehub/fluent-emoji-3d``, whose folder ``assets`` holds one 256 px WebP file per code point.
The names are a hand-made table, ``sprite_names.tsv``, beside this script: a name that a person
would say, synonyms, hypernyms, the dominant colour where one word is honest, and whether the
object may be tinted (a purple lemon would still be called a lemon by nobody).

    npm pack @lobehub/fluent-emoji-3d && tar xzf lobehub-fluent-emoji-3d-*.tgz
    python examples/build_atlas.py package/assets
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

ASSETS = Path(__file__).parent.parent / "bridger" / "assets"
TABLE = Path(__file__).parent / "sprite_names.tsv"
SOURCE = "Microsoft Fluent Emoji in 3D, npm package @lobehub/fluent-emoji-3d 1.1.0"
LICENCE = """\
The pictures in sprites.webp are taken from Fluent Emoji by Microsoft, in their 3D style,
resized and put side by side. They are licensed as follows.

MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


@dataclass(frozen=True)
class Row:
    """One line of the table of names."""

    code: str  # the code point in hexadecimal, which is the picture's file name
    name: str
    synonyms: list[str]
    hypernyms: list[str]
    colour: str | None
    tint: bool


def read_table(path: Path) -> list[Row]:
    """Reads the hand-made table; "-" stands for nothing."""

    def words(cell: str) -> list[str]:
        return [] if cell == "-" else cell.split(",")

    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if not row[0].startswith("#")]
    return [
        Row(
            code, name, words(synonyms), words(hypernyms), (words(colour) or [None])[0], tint == "y"
        )
        for code, name, synonyms, hypernyms, colour, tint in rows
    ]


def load_sprite(folder: Path, code: str, cell: int) -> Image.Image:
    """Crops one picture to what can be seen of it and fits it into a square cell, centred."""
    path = next(p for p in (folder / f"{code}.webp", folder / f"{code}-fe0f.webp") if p.exists())
    sprite = Image.open(path).convert("RGBA")
    # A faint halo is not part of the object: it would only make masks larger than what is seen.
    sprite = sprite.crop(sprite.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox())
    scale = cell / max(sprite.size)
    width, height = (max(1, round(side * scale)) for side in sprite.size)
    sprite = sprite.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (cell, cell))
    square.paste(sprite, ((cell - width) // 2, (cell - height) // 2))
    return square


def build(folder: Path, cell: int, columns: int, quality: int) -> None:
    """Writes sprites.webp, sprites.json and the licence into the package's assets."""
    rows = read_table(TABLE)
    atlas = Image.new("RGBA", (columns * cell, -(-len(rows) // columns) * cell))
    entries = []
    for index, row in enumerate(rows):
        place = (index % columns * cell, index // columns * cell)
        atlas.paste(load_sprite(folder, row.code, cell), place)
        entries.append({**asdict(row), "cell": index})
    ASSETS.mkdir(exist_ok=True)
    atlas.save(ASSETS / "sprites.webp", quality=quality, alpha_quality=90, method=6)
    facts = {
        "source": SOURCE,
        "licence": "MIT, Copyright (c) Microsoft Corporation: see LICENSE-fluent-emoji",
        "cell_size": cell,
        "columns": columns,
    }
    lines = ",\n".join("    " + json.dumps(entry) for entry in entries)  # one sprite, one line
    text = json.dumps(facts, indent=2)[:-2] + f',\n  "sprites": [\n{lines}\n  ]\n}}\n'
    (ASSETS / "sprites.json").write_text(text)
    (ASSETS / "LICENSE-fluent-emoji").write_text(LICENCE)
    size = (ASSETS / "sprites.webp").stat().st_size
    print(f"{len(rows)} sprites of {cell} px, {size / 1e6:.2f} MB -> {ASSETS / 'sprites.webp'}")


def main() -> None:
    """Parses the command line and builds the atlas."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="the npm package's folder `assets`")
    parser.add_argument("--cell", type=int, default=128, help="side of a sprite in pixels")
    parser.add_argument("--columns", type=int, default=16, help="sprites in a row")
    parser.add_argument("--quality", type=int, default=82, help="of the WebP picture, 0 to 100")
    args = parser.parse_args()
    build(args.folder, args.cell, args.columns, args.quality)


if __name__ == "__main__":
    main()
