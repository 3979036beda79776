"""A page in the browser that shows what words mean in a picture: `bridger demo`.

`choices.py` loads the adapters, `pictures.py` takes uploads, `asking.py` runs heads within a time
limit, `session.py` is what the page does for one visitor, `gallery.py` composes pictures to try,
`rows.py` and `files.py` make tables and downloads; `page.py` lays them out with gradio, `look.py`
says how it looks, and `serving.py` serves it.
"""
