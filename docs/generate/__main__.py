"""`python -m docs.generate` writes the README's answers and `docs/ledger.md` from the committed ledger."""

from docs.generate.readme import write

if __name__ == "__main__":
    write()
