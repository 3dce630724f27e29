"""The site's pages that come from records: claims, questions and tables (`mkdocs.yml` names the hook)."""
