"""What MkDocs adds to the pages of this folder: references that are generated from the code, so that they cannot go stale.

`reference/commands.md` lists every verb with the options of its own parser, `reference/config.md` every key of the YAML files,
`reference/api/` a page for each module that a user would import (`reference_pages.py` writes them).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from reference_pages import api_pages, commands_page, config_page  # noqa: E402


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the modules of the Python API under its overview in the navigation."""
    for part in config.nav or ():
        for entry in part.get("Reference", ()):
            if "Python API" in entry:
                modules = sorted(name for name in api_pages() if "/api/" in name)
                entry["Python API"] = [entry["Python API"], *({Path(name).stem: name} for name in modules)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {"reference/commands.md": commands_page(), "reference/config.md": config_page(), **api_pages()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    r"""Write `a\|b` in a table's code as `a|b`: other renderers need the backslash there, Python-Markdown shows it."""
    return re.sub(
        r"^\|.*$", lambda row: re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), row[0]), markdown, flags=re.M
    )
