"""What the page does: which move of a visitor calls what."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.demo.files import Download, overlay_file
from bridger.demo.gallery import Scene
from bridger.demo.layout import Layout
from bridger.demo.look import EMPTY, SAVE, TITLE, alert
from bridger.demo.rows import table_of
from bridger.demo.session import NOTHING_ASKED, Desk, Session, View

if TYPE_CHECKING:
    import gradio as gr

FORGET_EVERY, FORGET_AFTER = 3600, 86400
"""Seconds: how often the page looks for files to delete, and how old those are."""


QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of what is done at once, and of no use to other programs."""


class PageBuilder:
    """Builds the page.

    Args:
        desk: answers what visitors ask.
        scenes: pictures to try.
    """

    def __init__(self, desk: Desk, scenes: Sequence[Scene]) -> None:
        self.desk, self.scenes = desk, scenes

    def build(self) -> gr.Blocks:
        """Return the page, not yet served."""
        import gradio as gr

        blocks: gr.Blocks = gr.Blocks(
            title=TITLE, analytics_enabled=False, delete_cache=(FORGET_EVERY, FORGET_AFTER)
        )
        with blocks:
            self.parts = Layout(list(self.desk.choices.values()), self.scenes, self.desk.limits)
            self._connect()
        limits = self.desk.limits
        blocks.queue(max_size=limits.waiting, default_concurrency_limit=limits.at_once)
        return blocks

    def _connect(self) -> None:
        parts = self.parts
        self._asked = [
            parts.session,
            parts.picture,
            parts.heads,
            parts.threshold,
            *parts.boxes.values(),
        ]
        self._shown = [
            parts.session,
            parts.seen,
            parts.found,
            parts.message,
            parts.get_result,
            parts.get_overlay,
        ]
        self._model = {
            "concurrency_limit": self.desk.limits.at_once,
            "concurrency_id": "model",
            "show_progress_on": [parts.seen],
        }
        self._connect_questions()
        self._connect_choices()
        self._connect_answers()

    def _connect_questions(self) -> None:
        """Connect what asks the head that is chosen."""
        import gradio as gr

        parts = self.parts
        gr.on(
            [parts.button.click, *(box.submit for box in parts.boxes.values())],
            self.ask,
            self._asked,
            self._shown,
            api_name="ask",
            **self._model,
        )
        for kind, examples in parts.examples.items():
            examples.click(_only, examples, parts.boxes[kind], **QUIET).then(
                self.ask, self._asked, self._shown, api_visibility="private", **self._model
            )
        parts.gallery.select(
            _with_index(self.take_scene),
            None,
            [parts.picture, *parts.boxes.values(), *parts.examples.values()],
            **QUIET,
        ).then(self.ask, self._asked, self._shown, api_visibility="private", **self._model)

    def _connect_choices(self) -> None:
        """Connect the choice of a head and of a picture."""
        parts = self.parts
        parts.heads.input(
            self.turn_to,
            parts.heads,
            [parts.threshold, *parts.boxes.values(), *parts.examples.values()],
            **QUIET,
        ).then(
            self.ask_if_possible,
            self._asked,
            self._shown,
            api_visibility="private",
            **self._model,
        )
        parts.picture.input(None, None, [parts.seen, parts.found, parts.message], js=EMPTY)
        parts.picture.input(self.leave_scene, None, [*parts.examples.values()], **QUIET)

    def _connect_answers(self) -> None:
        """Connect what is done with an answer."""
        parts = self.parts
        kept = [parts.session, parts.picture, parts.threshold]
        parts.threshold.input(
            self.cut,
            kept,
            self._shown[1:],
            trigger_mode="always_last",
            show_progress="hidden",
            concurrency_id="drawing",
            api_name="threshold",
        )
        for button, make, name in (
            (parts.get_result, self.result_file, "download"),
            (parts.get_overlay, self.overlay_file, "overlay"),
        ):
            button.click(
                make,
                kept,
                [parts.file, parts.message],
                concurrency_limit=1,
                concurrency_id="files",
                show_progress_on=[parts.found],
                api_name=name,
            ).then(None, parts.file, None, js=SAVE)

    def ask(
        self, session: Session | None, path: str | None, label: str, threshold: float, *typed: str
    ) -> list[Any]:
        """Answer the words in the box of the head's kind."""
        words = dict(zip(self.parts.boxes, typed, strict=True))[self.desk.choices[label].text]
        return self._pane(*self.desk.ask(session or Session(), path, words, label, threshold))

    def ask_if_possible(
        self, session: Session | None, path: str | None, label: str, threshold: float, *typed: str
    ) -> list[Any]:
        """Answer where there is something to answer: turning to a head alone is no question."""
        choice = self.desk.choices[label]
        words = dict(zip(self.parts.boxes, typed, strict=True))[choice.text]
        if path is None or not (words.strip() or choice.classes):
            return self._pane(replace(session or Session(), asked=None), View())
        return self.ask(session, path, label, threshold, *typed)

    def turn_to(self, label: str) -> list[Any]:
        """Show the box and the slider of a head."""
        import gradio as gr

        choice = self.desk.choices[label]
        shown = [kind == choice.text for kind in self.parts.kinds]
        return [
            gr.update(**self.parts.slider(choice)),
            *(
                gr.update(visible=True, **self.parts.box(choice, kind))
                if kind == choice.text
                else gr.update(visible=False)
                for kind in self.parts.kinds
            ),
            *(gr.update(visible=visible) for visible in shown),
        ]

    def take_scene(self, index: int) -> list[Any]:
        """Put a scene and words that fit it into the boxes."""
        import gradio as gr

        scene = self.scenes[index]
        firsts = [scene.words[k][0] if k == "expressions" else "" for k in self.parts.kinds]
        samples = [gr.update(samples=[[w] for w in scene.words[k]]) for k in self.parts.kinds]
        return [scene.path, *firsts, *samples]

    def leave_scene(self) -> list[Any]:
        """Take the words of a scene away: a visitor's own picture shows other things."""
        import gradio as gr

        return [gr.update(samples=[]) for _ in self.parts.examples]

    def cut(self, session: Session | None, path: str | None, threshold: float) -> list[Any]:
        """Show the answer at another threshold."""
        session = session or Session()
        return self._pane(session, self.desk.show(session, path, threshold))[1:]

    def result_file(self, session: Session | None, path: str | None, threshold: float) -> list[Any]:
        """Make the file of what was found."""
        return self._file(lambda: self.desk.download(session or Session(), path, threshold))

    def overlay_file(
        self, session: Session | None, path: str | None, threshold: float
    ) -> list[Any]:
        """Make the file of what the page shows."""

        def make() -> Download:
            view = self.desk.show(session or Session(), path, threshold)
            if view.overlay is None:
                raise ValueError(view.message or NOTHING_ASKED)
            return overlay_file(view.overlay)

        return self._file(make)

    def _file(self, make: Callable[[], Download]) -> list[Any]:
        """Return a file where the page serves it and deletes it again, and the message."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = make().write(Path(folder))
                return [self.parts.file.move_resource_to_block_cache(path), _message("")]
        except Exception as error:
            return [None, _message(self.desk.said(error))]

    def _pane(self, session: Session, view: View) -> list[Any]:
        import gradio as gr

        return [
            session,
            view.overlay,
            "" if view.rows is None else table_of(view.rows),
            _message(view.message),
            gr.update(
                value=view.download or "Download the result",
                interactive=view.download is not None,
            ),
            gr.update(interactive=view.overlay is not None),
        ]


def _message(message: str) -> Any:
    """Return the update of the place where messages stand."""
    import gradio as gr

    return gr.update(value=alert(message), visible=bool(message))


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
