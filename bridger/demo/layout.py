"""What stands on the page and where; what it does stands in `page.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridger.demo.choices import Choice
from bridger.demo.gallery import Scene
from bridger.demo.limits import Limits
from bridger.demo.look import BOXES, OWN_RULE, THRESHOLD, heading, part

STEP = 0.01


class Layout:
    """Makes the page's components, within a `gradio.Blocks`.

    Args:
        choices: the heads; the page opens with the first one.
        scenes: pictures to try; the page opens with the first one.
        limits: how much may be asked.
    """

    def __init__(self, choices: Sequence[Choice], scenes: Sequence[Scene], limits: Limits) -> None:
        import gradio as gr

        self.choices, self.scenes, self.limits = choices, scenes, limits
        self.first = choices[0]
        self.kinds = list(dict.fromkeys(choice.text for choice in choices))
        self.session = gr.State()
        adapters = list(dict.fromkeys(choice.adapter for choice in choices))
        gr.HTML(heading(adapters), padding=False, elem_id="top")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=320):
                self._question()
            with gr.Column(scale=6, min_width=320):
                self._answer()

    def _question(self) -> None:
        import gradio as gr

        scene = self.scenes[0]
        self._title("Picture", "Upload your own with the arrow below it.")
        self.picture = gr.Image(
            scene.path,
            label="Picture",
            show_label=False,
            type="filepath",
            sources=["upload", "clipboard"],
            buttons=["fullscreen"],
            height=300,
            elem_id="picture",
        )
        # Handlers may set its value alone: for other properties gradio would make a new one.
        self.picture.preprocess = _path  # type: ignore[method-assign]
        self.boxes = {
            kind: gr.Textbox(
                scene.words[kind][0] if kind == "expressions" else "",
                lines=1,
                max_lines=self.limits.sentences,
                max_length=self.limits.sentences * self.limits.letters,
                visible=kind == self.first.text,
                elem_id=f"words-{kind}",
                **self.box(self.first if kind == self.first.text else None, kind),
            )
            for kind in self.kinds
        }
        self.button = gr.Button("Find", variant="primary", elem_id="ask")
        self.examples = {
            kind: gr.Dataset(
                components=["textbox"],
                samples=[[words] for words in scene.words[kind]],
                label="Words that fit this picture",
                visible=kind == self.first.text,
                elem_id=f"examples-{kind}",
            )
            for kind in self.kinds
        }
        self._title("Pictures to try", last=True)
        self.gallery = gr.Gallery(
            [scene.path for scene in self.scenes],
            label="Pictures to try",
            show_label=False,
            columns=len(self.scenes),
            height="auto",
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="gallery",
            elem_classes="last",
        )

    def _answer(self) -> None:
        import gradio as gr

        self._title("What is found", "Choose what kind of answer you want.")
        self.heads = gr.Radio(
            [choice.label for choice in self.choices],
            value=self.first.label,
            label="Show",
            show_label=False,
            container=False,
            visible=len(self.choices) > 1,
            elem_id="heads",
        )
        self.message = gr.HTML(visible=False, padding=False, elem_id="message")
        self.seen = gr.Image(
            label="What is found",
            show_label=False,
            height=440,
            format="jpeg",
            interactive=False,
            buttons=["fullscreen"],
            elem_id="seen",
        )
        self.threshold = gr.Slider(
            0, 1, step=STEP, buttons=[], elem_id="threshold", **self.slider(self.first)
        )
        self.found = gr.HTML(padding=False, elem_id="found")
        with gr.Row():
            self.get_result = gr.Button("Download the mask", interactive=False, size="sm")
            self.get_overlay = gr.Button("Download this view", interactive=False, size="sm")
        self.file = gr.File(visible=False)

    def _title(self, title: str, says: str = "", last: bool = False) -> None:
        import gradio as gr

        gr.HTML(part(title, says), padding=False, elem_classes=["part", *["last"] * last])

    def box(self, choice: Choice | None, kind: str) -> dict[str, Any]:
        """Return the texts of a box of words, which say what happens without any."""
        texts = dict(BOXES[kind])
        if choice is not None and kind == "classes" and choice.classes:
            count = len(choice.classes)
            texts["info"] += f" Without any: the {count} classes that it was trained on."
        return texts

    def slider(self, choice: Choice) -> dict[str, Any]:
        """Return how the slider stands for a head by itself."""
        own = choice.threshold
        return {
            "value": own or 0.0,
            "visible": choice.has_threshold,
            "label": THRESHOLD["label"],
            "info": THRESHOLD["info"] + (OWN_RULE if own is None else ""),
        }


def _path(payload: Any) -> str | None:
    """Hand over an uploaded file as it is.

    gradio's own way opens it first, and shows a traceback's last line where it is broken.
    """
    path: str | None = None if payload is None else payload.path
    return path
