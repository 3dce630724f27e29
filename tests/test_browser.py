"""Every page in a browser: nothing fails, nothing is fetched, all fits a phone, and sliders do their work."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
import xarray as xr

from docs.generate.explorers import EXPLORERS
from grpo_jax.pages import sweep_page

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PHONE = {"width": 390, "height": 844}
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOADED = """() => {
  const there = (image) => image.complete && image.naturalWidth > 0;
  const images = [...document.images];
  images.forEach((image) => { image.loading = "eager"; });
  return Promise.all(images.map((image) => image.decode().catch(() => 0)))
    .then(() => images.filter((image) => !there(image)).map((image) => image.src.slice(0, 200)));
}"""


@pytest.fixture(scope="module")
def browser():
    if importlib.util.find_spec("playwright") is None:
        pytest.skip('a browser is driven by playwright, of the extra docs: pip install -e ".[docs]"')
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


class Visit:
    """A tab, and all that its page said and asked for."""

    def __init__(self, browser, address, *, scheme="light"):
        self.context = browser.new_context(viewport=PHONE, color_scheme=scheme)
        self.context.set_default_timeout(120_000)
        self.tab = self.context.new_page()
        self.said, self.asked = [], []
        self.tab.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(address)

    def leave_for(self, address):
        """Another page in the same tab: a tab of its own for each costs more than the page."""
        self.said.clear()
        self.asked.clear()
        self.tab.goto(address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


def problems(visit, root):
    """What is wrong with a page that lies below ``root``, in words."""
    found = list(visit.said)
    missing = visit.tab.evaluate(LOADED)
    found += [f"an image is missing: {source}" for source in missing]
    width = visit.tab.evaluate("document.documentElement.scrollWidth")
    found += [f"{width} pixels wide"] if width > PHONE["width"] else []
    files = set()
    for asked in visit.asked:
        parts = urlsplit(asked)
        path = Path(unquote(parts.path))
        if parts.scheme in ("data", "blob"):
            continue
        if parts.scheme != "file" or not path.is_relative_to(root) or not path.exists():
            found.append(f"asks for {asked}")
        else:
            files.add(path)
    weight = sum(path.stat().st_size for path in files)
    found += [f"{weight / 1e6:.1f} MB"] if weight > 5e6 else []
    for link in visit.tab.evaluate("[...document.links].map((link) => link.href)"):
        parts = urlsplit(link)
        if parts.scheme == "file" and not Path(unquote(parts.path)).is_file():
            found.append(f"leads nowhere: {link}")
    return found


def all_problems(browser, root, pages):
    found = {}
    with Visit(browser, "about:blank") as visit:
        for page in pages:
            visit.leave_for(page.as_uri())
            if wrong := problems(visit, root):
                found[page.relative_to(root).as_posix()] = wrong
    return found


def test_every_page_of_the_site(browser, built_site):
    pages = [page for page in sorted(built_site.rglob("*.html")) if page.name != "404.html"]
    assert len(pages) > 80
    assert all_problems(browser, built_site, pages) == {}


def test_what_a_check_must_notice(browser, tmp_path):
    """The control: a page with one of each fault."""
    page = tmp_path / "page.html"
    page.write_text(
        '<!doctype html><meta name="viewport" content="width=device-width"><script>null.x</script>'
        '<body style="margin: 0"><div style="width: 600px">wide</div><img src="none.png">'
        '<a href="nowhere.html">there</a>'
        '<img src="http://localhost:9999/x.png">'
    )
    found = "\n".join(all_problems(browser, tmp_path, [page])["page.html"])
    for words in (
        "Cannot read properties of null",
        "600 pixels wide",
        "an image is missing",
        "asks for http://localhost:9999/x.png",
    ):
        assert words in found
    assert "leads nowhere" in found


def test_the_pages_of_experiments_and_sweeps(browser, tmp_path):
    out = tmp_path / "results"
    command = [sys.executable, "-m", "experiments", "A2", "--size", "smoke", "--out", str(out)]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    pages = sorted(out.rglob("*.html"))
    assert len(pages) == 2, ran.stdout + ran.stderr
    values = np.linspace(0, 1, 2 * 5 * 3).reshape(2, 5, 3)
    dims = ("learning_rate", "seed", "iteration")
    data = xr.Dataset(
        {"reward": (dims, values), "finite": (dims, np.ones(values.shape, bool))},
        {"learning_rate": [0.1, 0.2], "iteration": [1, 2, 3]},
        {"config": "{}", "iterations": 3, "expectation": "Counts"},
    )
    own = out / "sweep.html"
    own.write_text(sweep_page(data, title="demo"), encoding="utf-8")
    assert all_problems(browser, out, [*pages, own]) == {}


def numbers(visit):
    """What the page shows: its settings, its sentence and the height of every point that is marked."""
    return (
        visit.tab.eval_on_selector_all(".explorer output", "found => found.map((one) => one.value)"),
        visit.tab.inner_text(".sentence"),
        visit.tab.eval_on_selector_all(
            ".chart .mark-symbol.role-mark path", "found => found.map((one) => one.getAttribute('transform'))"
        ),
    )


@pytest.mark.parametrize("explorer", EXPLORERS, ids=lambda explorer: explorer.name)
def test_sliders_change_what_is_shown_and_a_permalink_restores_it(browser, built_site, explorer):
    address = (built_site / "explore" / f"{explorer.name}.html").as_uri()
    with Visit(browser, address) as visit:
        visit.tab.wait_for_selector(".chart svg")
        start = numbers(visit)
        drawn = sum(curve.drawn for curve in explorer.curves)
        assert len(start[2]) == drawn
        before = start
        for grid in explorer.grids:
            last = grid.values.index(grid.start) == len(grid.values) - 1
            visit.tab.focus(f"#set-{grid.name}")  # by keyboard alone
            for _ in range(2):
                visit.tab.keyboard.press("ArrowLeft" if last else "ArrowRight")
            after = numbers(visit)
            assert after[:2] != before[:2]
            before = after
        assert before[2] != start[2]
        link = visit.tab.url
        assert visit.tab.get_attribute(".permalink", "href") == f"#{urlsplit(link).fragment}"
        held = parse_qs(urlsplit(link).fragment)
        assert [held[grid.name][0] for grid in explorer.grids] == before[0]
        payload = json.loads(visit.tab.text_content("#explorer"))
        assert visit.said == []
    at = [grid.shown.index(text) for grid, text in zip(explorer.grids, before[0], strict=True)]
    flat = np.ravel_multi_index(at, [len(grid.values) for grid in explorer.grids])
    for curve, given in zip(explorer.curves, payload["curves"], strict=True):
        if f"{{{curve.name}}}" in explorer.says:
            assert given["shown"][flat] in before[1]
    with Visit(browser, link, scheme="dark") as visit:
        visit.tab.wait_for_selector(".chart svg")
        assert numbers(visit) == before
        visit.tab.click("details.numbers summary")
        row = visit.tab.inner_text("table.numbers tr.here").split("\t")
        assert row[1:] == [given["shown"][flat] for given in payload["curves"]]
        beyond = 3 * explorer.grids[0].values[-1]  # the nearest there is
        visit.tab.goto(f"{address}#{explorer.grids[0].name}={beyond}&nonsense=1")
        assert numbers(visit)[0][0] == explorer.grids[0].shown[-1]
        assert visit.said == []


def test_filters_and_sorting_work_in_the_ledger(browser, built_site):
    with Visit(browser, (built_site / "claims" / "index.html").as_uri()) as visit:
        rows = "table tbody tr:not([hidden])"
        visit.tab.fill("input.find", "refuted")
        assert 1 < visit.tab.locator(rows).count() < 100
        visit.tab.fill("input.find", "")
        visit.tab.click("th button >> nth=0")
        visit.tab.click("th button >> nth=0")
        first = visit.tab.locator(rows).first.inner_text()
        last = list(json.loads((ROOT / "experiments" / "ledger.json").read_text(encoding="utf-8")))[-1]
        assert first.split()[0] == last


def test_columns_of_numbers_sort_as_numbers(browser, built_site):
    """As texts 0.0327 would come after 0.1, and -1 after -0.5."""
    rows = json.loads((ROOT / "docs" / "figures" / "D7.json").read_text(encoding="utf-8"))
    with Visit(browser, (built_site / "sampler.html").as_uri()) as visit:
        map_of = visit.tab.locator(".ledger table")
        for column, name, unit in ((3, "variance", 1), (5, "won", 100)):
            map_of.locator("th button").nth(column).click()
            cells = map_of.locator(f"tbody tr td:nth-child({column + 1})").all_inner_texts()
            shown = [float(cell.split()[0]) for cell in cells]
            expected = sorted(unit * row[name] for row in rows)
            np.testing.assert_allclose(shown, expected, rtol=0.01, atol=0.006)
        visit.tab.locator("input.find").first.fill("expert IPO")
        left = map_of.locator("tbody tr:not([hidden])")
        assert left.count() == 1
        assert left.inner_text().split()[0] == "IPO"
