"""The page's layout, and which of the visitor's moves calls what."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from bridger.demo.choices import Choice
from bridger.demo.files import Download, overlay_file
from bridger.demo.gallery import Scene
from bridger.demo.look import (
    BOXES,
    OWN_RULE,
    SAVE,
    THRESHOLD,
    TITLE,
    alert,
    heading,
    part,
)
from bridger.demo.rows import table_of
from bridger.demo.session import Desk, Session, View

if TYPE_CHECKING:
    import gradio as gr

FORGET_EVERY, FORGET_AFTER = 3600, 86400
"""Seconds: how often the page looks for files to delete, and how old those are."""

STEP = 0.01


class PageBuilder:
    """Builds the page.

    Args:
        desk: answers what visitors ask.
        scenes: pictures to try.
    """

    def __init__(self, desk: Desk, scenes: Sequence[Scene]) -> None:
        self.desk, self.scenes = desk, scenes
        self.choices = list(desk.choices.values())
        self.first = self.choices[0]
        self.kinds = list(dict.fromkeys(choice.text for choice in self.choices))

    def build(self) -> gr.Blocks:
        """Return the page, not yet served."""
        import gradio as gr

        with gr.Blocks(
            title=TITLE,
            analytics_enabled=False,
            delete_cache=(FORGET_EVERY, FORGET_AFTER),
        ) as blocks:
            self.session = gr.State()
            adapters = list(dict.fromkeys(choice.adapter for choice in self.choices))
            gr.HTML(heading(adapters), padding=False, elem_id="top")
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=5, min_width=320):
                    self._lay_out_question()
                with gr.Column(scale=6, min_width=320):
                    self._lay_out_answer()
            self._connect()
        limits = self.desk.limits
        blocks.queue(max_size=limits.waiting, default_concurrency_limit=limits.at_once)
        return blocks

    def _lay_out_question(self) -> None:
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
        self.picture.preprocess = _path
        self.boxes = {
            kind: gr.Textbox(
                scene.words[kind][0] if kind == "expressions" else "",
                lines=1,
                max_lines=self.desk.limits.sentences,
                max_length=self.desk.limits.sentences * self.desk.limits.letters,
                visible=kind == self.first.text,
                elem_id=f"words-{kind}",
                **self._box(self.first if kind == self.first.text else None, kind),
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

    def _lay_out_answer(self) -> None:
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
            0, 1, step=STEP, buttons=[], elem_id="threshold", **self._slider(self.first)
        )
        self.found = gr.HTML(padding=False, elem_id="found")
        with gr.Row():
            self.get_result = gr.Button("Download the mask", interactive=False, size="sm")
            self.get_overlay = gr.Button("Download this view", interactive=False, size="sm")
        self.file = gr.File(visible=False)

    def _title(self, title: str, says: str = "", last: bool = False) -> None:
        import gradio as gr

        gr.HTML(part(title, says), padding=False, elem_classes=["part", *["last"] * last])

    def _box(self, choice: Choice | None, kind: str) -> dict[str, Any]:
        """Return the texts of a box of words, which say what happens without any."""
        texts = dict(BOXES[kind])
        if choice is not None and kind == "classes" and choice.classes:
            count = len(choice.classes)
            texts["info"] += f" Without any: the {count} classes that it was trained on."
        return texts

    def _slider(self, choice: Choice) -> dict[str, Any]:
        """Return how the slider stands for a head by itself."""
        own = choice.threshold
        return {
            "value": own or 0.0,
            "visible": choice.has_threshold,
            "label": THRESHOLD["label"],
            "info": THRESHOLD["info"] + (OWN_RULE if own is None else ""),
        }

    # What the visitor does.

    def _connect(self) -> None:
        import gradio as gr

        asked = [self.session, self.picture, self.heads, self.threshold, *self.boxes.values()]
        pane = [
            self.session,
            self.seen,
            self.found,
            self.message,
            self.get_result,
            self.get_overlay,
        ]
        model: dict[str, Any] = {
            "concurrency_limit": self.desk.limits.at_once,
            "concurrency_id": "model",
            "show_progress_on": [self.seen],
        }
        hidden: dict[str, Any] = {"api_visibility": "private"}
        gr.on(
            [self.button.click, *(box.submit for box in self.boxes.values())],
            self.ask,
            asked,
            pane,
            api_name="ask",
            **model,
        )
        self.heads.input(
            self.turn_to,
            self.heads,
            [self.threshold, *self.boxes.values(), *self.examples.values()],
            show_progress="hidden",
            **hidden,
        ).then(self.ask_if_possible, asked, pane, **hidden, **model)
        self.gallery.select(
            _with_index(self.take_scene),
            None,
            [self.picture, *self.boxes.values(), *self.examples.values()],
            show_progress="hidden",
            **hidden,
        ).then(self.ask, asked, pane, **hidden, **model)
        for kind, examples in self.examples.items():
            examples.click(
                _only, examples, self.boxes[kind], show_progress="hidden", **hidden
            ).then(self.ask, asked, pane, **hidden, **model)
        self.picture.input(
            self.look,
            [self.session, self.picture],
            [self.picture, *self.examples.values(), *pane],
            **hidden,
        )
        self.threshold.input(
            self.cut,
            [self.session, self.threshold],
            pane[1:],
            trigger_mode="always_last",
            show_progress="hidden",
            concurrency_id="drawing",
            api_name="threshold",
        )
        for button, make, name in (
            (self.get_result, self.result_file, "download"),
            (self.get_overlay, self.overlay_file, "overlay"),
        ):
            button.click(
                make,
                [self.session, self.threshold],
                self.file,
                concurrency_limit=1,
                concurrency_id="files",
                show_progress_on=[self.found],
                api_name=name,
            ).then(None, self.file, None, js=SAVE)

    def ask(
        self, session: Session | None, path: str | None, label: str, threshold: float, *typed: str
    ) -> list[Any]:
        """Answer the words in the box of the head's kind."""
        words = dict(zip(self.boxes, typed, strict=True))[self.desk.choices[label].text]
        return self._pane(*self.desk.ask(session or Session(), path, words, label, threshold))

    def ask_if_possible(
        self, session: Session | None, path: str | None, label: str, threshold: float, *typed: str
    ) -> list[Any]:
        """Answer where there is something to answer: turning to a head alone is no question."""
        choice = self.desk.choices[label]
        words = dict(zip(self.boxes, typed, strict=True))[choice.text]
        if path is None or not (words.strip() or choice.classes):
            return self._pane(*self.desk.look(session or Session(), path))
        return self.ask(session, path, label, threshold, *typed)

    def turn_to(self, label: str) -> list[Any]:
        """Show the box and the slider of a head."""
        import gradio as gr

        choice = self.desk.choices[label]
        shown = [kind == choice.text for kind in self.kinds]
        return [
            gr.update(**self._slider(choice)),
            *(
                gr.update(visible=True, **self._box(choice, kind))
                if kind == choice.text
                else gr.update(visible=False)
                for kind in self.kinds
            ),
            *(gr.update(visible=visible) for visible in shown),
        ]

    def take_scene(self, index: int) -> list[Any]:
        """Put a scene and words that fit it into the boxes."""
        import gradio as gr

        scene = self.scenes[index]
        firsts = [scene.words[k][0] if k == "expressions" else "" for k in self.kinds]
        samples = [gr.update(samples=[[w] for w in scene.words[k]]) for k in self.kinds]
        return [scene.path, *firsts, *samples]

    def look(self, session: Session | None, path: str | None) -> list[Any]:
        """Take a picture of the visitor's, or say why not."""
        import gradio as gr

        session, view = self.desk.look(session or Session(), path)
        picture = None if view.message else path
        none = [gr.update(samples=[]) for _ in self.examples]
        return [picture, *none, *self._pane(session, view)]

    def cut(self, session: Session | None, threshold: float) -> list[Any]:
        """Show the answer at another threshold."""
        session = session or Session()
        return self._pane(session, self.desk.show(session, threshold))[1:]

    def result_file(self, session: Session | None, threshold: float) -> str | None:
        """Make the file of what was found."""
        return self._kept(self.desk.download(session or Session(), threshold))

    def overlay_file(self, session: Session | None, threshold: float) -> str | None:
        """Make the file of what the page shows."""
        view = self.desk.show(session or Session(), threshold)
        return None if view.overlay is None else self._kept(overlay_file(view.overlay))

    def _kept(self, download: Download | None) -> str | None:
        """Write a file where the page serves it and deletes it again."""
        if download is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = download.write(Path(folder))
            kept: str | None = self.file.move_resource_to_block_cache(path)
        return kept

    def _pane(self, session: Session, view: View) -> list[Any]:
        import gradio as gr

        return [
            session,
            view.overlay,
            "" if view.rows is None else table_of(view.rows),
            gr.update(value=alert(view.message), visible=bool(view.message)),
            gr.update(
                value=view.download or "Download the result",
                interactive=view.download is not None,
            ),
            gr.update(interactive=view.overlay is not None),
        ]


def _only(sample: Sequence[str]) -> str:
    """Return the only value of an example."""
    return sample[0]


def _with_index(handler: Callable[[int], Any]) -> Callable[..., Any]:
    """Return a handler of a picture that is chosen in a gallery."""
    import gradio as gr

    def chosen(event: Any) -> Any:
        return handler(int(event.index))

    # gradio looks for its event among the annotations, and cannot read one that is a text.
    chosen.__annotations__["event"] = gr.SelectData
    return chosen


def _path(payload: Any) -> str | None:
    """Hand over an uploaded file as it is.

    gradio's own way opens it first, and shows a traceback's last line where it is broken.
    """
    path: str | None = None if payload is None else payload.path
    return path
