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
#top h1 { font-size: 1.5rem; margin: 0 0 0.15rem; }
#top p { margin: 0; color: var(--body-text-color-subdued); }
#heads .wrap { gap: 0.4rem; }
#message { padding: 0; }
#message p {
  margin: 0; padding: 0.6rem 0.8rem; border-radius: 6px;
  border-left: 4px solid #d9480f;
  background: color-mix(in srgb, #d9480f 12%, transparent); color: var(--body-text-color);
}
#found { overflow-x: auto; padding: 0; }
#found table { width: 100%; border-collapse: collapse; font-size: 0.92rem; margin: 0; }
#found th, #found td {
  text-align: left; padding: 0.35rem 0.6rem; border: none;
  border-bottom: 1px solid var(--border-color-primary);
}
#found th { font-weight: 600; color: var(--body-text-color-subdued); white-space: nowrap; }
#found td { overflow-wrap: anywhere; min-width: 3.2rem; }
#found td:not(:first-child) { font-variant-numeric: tabular-nums; }
#found .hint { color: var(--body-text-color-subdued); margin: 0.3rem 0; }
@media (max-width: 640px) {
  .gradio-container { padding: 0.6rem !important; }
  #found td, #found th { padding: 0.3rem 0.35rem; }
}
"""

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

HINT = '<p class="hint">What is found is shown here.</p>'


def heading(adapters: Sequence[str]) -> str:
    """Return the top of the page."""
    names = ", ".join(f"<b>{escape(name)}</b>" for name in adapters)
    plural = "s" if len(adapters) > 1 else ""
    return (
        f"<h1>Words in pictures</h1><p>Say what to look for, and see where it is. "
        f"Adapter{plural}: {names}.</p>"
    )


def alert(message: str) -> str:
    """Return a message to the visitor, which screen readers read out."""
    return f'<p role="alert">{escape(message)}</p>' if message else ""


def theme() -> Any:
    """Return gradio's plain theme with the system's own fonts, so that none are fetched."""
    import gradio as gr

    return gr.themes.Soft(
        primary_hue="orange",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
