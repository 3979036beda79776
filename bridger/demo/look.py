"""How the page looks: its texts, its style sheet, and a little JavaScript."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

TITLE = "bridger: words in pictures"

BOXES = {
    "expressions": {
        "label": "What to look for",
        "placeholder": "the owl on the left",
        "info": "A sentence; several stand on lines of their own (Shift+Enter). Enter asks.",
    },
    "classes": {
        "label": "Class names",
        "placeholder": "owl, car, drum",
        "info": "Separated by commas. Enter asks.",
    },
}
"""The box of words for each kind of text that heads read."""

THRESHOLD = {
    "label": "Threshold",
    "info": "How sure it must be: higher shows less. The model does not run again.",
}

OWN_RULE = " At 0 the head decides by itself."

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#top .html-container, .part .html-container, #message .html-container, #found .html-container {
  padding: 0;
}
#top h1 { font-size: 1.5rem; margin: 0 0 0.15rem; }
#top p { margin: 0; color: var(--body-text-color-subdued); }
.part h2 { font-size: 1rem; font-weight: 600; margin: 0; }
.part p { margin: 0; font-size: 0.85rem; color: var(--body-text-color-subdued); }
[id^="examples-"]:not(:has(button)) { display: none; }
#seen { min-height: 200px; }
#gallery { min-height: 0 !important; height: auto !important; }
#gallery .grid-wrap {
  min-height: 0; height: auto !important; max-height: none !important;
  overflow: visible; padding: 0;
}
#gallery .grid-container {
  grid-template-columns: repeat(8, 1fr) !important;
  grid-template-rows: none !important; grid-auto-rows: auto !important;
  gap: 6px; padding: 0;
}
#gallery .thumbnail-item { aspect-ratio: 1; height: auto; width: 100%; }
#message p {
  margin: 0; padding: 0.6rem 0.8rem; border-radius: 6px; border-left: 4px solid #d9480f;
  background: color-mix(in srgb, #d9480f 12%, transparent); color: var(--body-text-color);
}
#found { overflow-x: auto; padding: 0; }
#found table {
  width: 100%; border-collapse: collapse; border: none !important; font-size: 0.92rem; margin: 0;
}
#found tr { border: none; }
#found th, #found td {
  text-align: left; vertical-align: top; padding: 0.3rem 0.5rem; border: none;
  border-bottom: 1px solid var(--border-color-primary); color: var(--body-text-color);
}
#found th { font-weight: 600; color: var(--body-text-color-subdued); }
#found td { overflow-wrap: anywhere; min-width: 3rem; }
#found td:first-child { min-width: 7rem; }
#found td:not(:first-child) { font-variant-numeric: tabular-nums; white-space: nowrap; }
#found .hint { color: var(--body-text-color-subdued); margin: 0; }
@media (max-width: 700px) {
  /* One column, with the pictures to try after the answer. */
  #columns { flex-direction: column; }
  #columns > .column { display: contents; }
  #columns .last { order: 1; }
  #gallery .grid-container { grid-template-columns: repeat(4, 1fr) !important; }
  .gradio-container .main { padding: 0.75rem !important; }
  #found th, #found td { padding: 0.3rem 0.25rem; font-size: 0.85rem; }
  #found td:first-child { min-width: 5.5rem; }
}
"""

EMPTY = "() => [null, '', '']"
"""Takes an answer away before the next one can come: its picture, its table, the message."""

SAVE = """(file) => {
  if (!file) return;
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name;
  document.body.appendChild(link);
  link.click();
  link.remove();
}"""
"""Saves the file that a handler made."""


def heading(adapters: Sequence[str]) -> str:
    """Return the top of the page."""
    names = ", ".join(f"<b>{escape(name)}</b>" for name in adapters)
    plural = "s" if len(adapters) > 1 else ""
    return (
        f"<h1>Words in pictures</h1><p>Say what to look for, and see where it is. "
        f"Adapter{plural}: {names}.</p>"
    )


def part(title: str, says: str = "") -> str:
    """Return the heading of a part of the page."""
    return f"<h2>{escape(title)}</h2>" + (f"<p>{escape(says)}</p>" if says else "")


def alert(message: str) -> str:
    """Return a message to the visitor, which screen readers read out."""
    return f'<p role="alert">{escape(message)}</p>' if message else ""


def theme() -> Any:
    """Return gradio's plain theme with the system's own fonts, so that none are fetched."""
    import gradio as gr

    return gr.themes.Default(
        primary_hue="orange",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        # Small grey letters that are dark enough to be read.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )
