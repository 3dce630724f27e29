"""What mkdocs calls: adds the generated pages and figures, and the claims to the navigation."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.generate import records


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The claims' pages into the navigation, beside the ledger."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Claims" in entry:
            entry["Claims"] = [*entry["Claims"], *records.sections()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every page that comes from records, as if it lay beside the written ones."""
    for address, text in records.pages():
        files.append(File.generated(config, address, content=text))
    for address, path in records.pictures():
        files.append(File.generated(config, address, abs_src_path=str(path)))
    return files
