"""A page in the browser that shows what words mean in a picture: `bridger demo`.

`choices.py` loads the adapters, `pictures.py` takes uploads, `asking.py` runs heads within a time
limit, `session.py` is what the page does for one visitor, `rows.py` and `files.py` make tables and
downloads, `gallery.py` composes pictures to try. None of these needs gradio; `layout.py` lays the
page out with it, `page.py` says what it does, `look.py` how it looks, and `serving.py` serves it.
"""
