"""`seeker demo`: a page on which people ask an agent, watch it search, compare two, and read episodes.

`live.py` runs a checkpoint and tells what happens; `story.py` turns that into cards, `drawing.py` cards into HTML; `corpora.py`
holds what is searched, `episodes.py` reads episodes of the past; `page.py` lays it out with Gradio; `command.py` is the verb.
"""
