"""What mkdocs calls: adds the generated pages and figures, and the claims to the navigation."""

from __future__ import annotations

import itertools

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.generate import drawing, records


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages of claims and explorers into the navigation, below their lists."""
    below = {"Claims": records.sections(), "At your setting": records.explorer_entries()}
    for entry in config.nav or []:
        if isinstance(entry, dict):
            for title in below.keys() & entry.keys():
                entry[title] = [*entry[title], *below[title]]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every page that comes from records, as if it lay beside the written ones."""
    for address, text in itertools.chain(records.pages(), drawing.pages()):
        files.append(File.generated(config, address, content=text))
    files.append(File.generated(config, "assets/drawing.js", content=drawing.script()))
    for address, path in records.pictures():
        files.append(File.generated(config, address, abs_src_path=str(path)))
    return files
