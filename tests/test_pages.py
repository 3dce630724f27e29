"""A sweep's page: what it says, that it needs nothing else, and that nothing of a user's becomes markup."""

import re
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
import xarray as xr
from scipy import stats

from grpo_jax.pages import picture, render, sweep_page

RNG = np.random.default_rng(0)
EVIL = '"><script>alert(1)</script>'


class Page(HTMLParser):
    """Elements with their attributes, and texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def swept(*, rates=(0.1, 0.2), coefs=(0.0, 0.5), iterations=(10, 20), **attributes):
    """As a sweep's dataset is, with values by hand: reward = rate + coef + noise."""
    dims = ("learning_rate", "kl_coef", "seed", "iteration")
    shape = (len(rates), len(coefs), 5, len(iterations))
    noise = 0.01 * RNG.normal(size=shape)
    values = np.asarray(rates)[:, None, None, None] + np.asarray(coefs)[:, None, None] + noise
    data = {
        "reward": (dims, values),
        "finite": (dims, np.ones(shape, bool)),
        "per": ((*dims, "context"), values[..., None]),
    }
    coords = {"learning_rate": list(rates), "kl_coef": list(coefs), "iteration": list(iterations)}
    made = {
        "config": '{"policy": {"kind": "ActionPolicy"}}',
        "iterations": iterations[-1],
        "expectation": "Counts",
    }
    return xr.Dataset(data, coords, made | attributes)


def test_a_page_holds_means_intervals_settings_and_pictures():
    data = swept()
    page = Page(sweep_page(data, title="demo", folder="runs/demo"))
    images = [given for tag, given in page.elements if tag == "img"]
    assert len(images) == 1
    assert images[0]["src"].startswith("data:image/svg+xml;base64,")
    assert images[0]["alt"] == "reward over iterations"
    last = data.reward.sel(learning_rate=0.2, kl_coef=0.5, iteration=20).values
    low, high = stats.t.interval(0.999, 4, loc=last.mean(), scale=stats.sem(last))
    assert f"{last.mean():.4g} ± {(high - low) / 2:.2g}" in page.texts
    assert any("With axes of their own, and left out: per" in text for text in page.texts)
    assert 'data = grpo_jax.load("runs/demo")' in page.texts
    assert any('"kind": "ActionPolicy"' in text for text in page.texts)


def test_a_page_needs_nothing_else_and_fits_a_phone():
    text = sweep_page(swept(), title="demo")
    assert not re.findall(r'(?:src|href)="(?!data:)[^"#]', text)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_many_settings_are_drawn_at_the_end_and_the_table_says_what_it_leaves_out():
    data = swept(rates=np.linspace(0.1, 1, 21), coefs=np.linspace(0, 1, 10))
    page = Page(sweep_page(data, title="many"))
    assert [given["alt"] for tag, given in page.elements if tag == "img"] == [
        "reward at the end over learning_rate, kl_coef 0"
    ]
    assert sum(tag == "tr" for tag, _ in page.elements) == 201
    assert any("The first 200 of 210 settings are shown" in text for text in page.texts)


def test_runs_that_broke_are_counted_and_named():
    data = swept()
    data["finite"].loc[{"learning_rate": 0.2, "kl_coef": 0.0, "seed": [1, 3]}] = False
    data["reward"].loc[{"learning_rate": 0.2, "kl_coef": 0.0, "seed": [1, 3]}] = np.nan
    page = Page(sweep_page(data, title="broken"))
    assert "2 of 20 runs turned non-finite: learning_rate 0.2, kl_coef 0 (seeds 1, 3)" in page.texts
    left = data.reward.sel(learning_rate=0.2, kl_coef=0.0, iteration=20).dropna("seed")
    assert any(text.startswith(f"{left.values.mean():.4g} ±") for text in page.texts)


def test_nothing_of_a_user_s_becomes_markup():
    data = swept(config=EVIL, because=EVIL, expectation=EVIL, note=EVIL).rename(reward=EVIL, kl_coef="<b>")
    page = Page(sweep_page(data, title=EVIL, folder=EVIL))
    assert {tag for tag, _ in page.elements} & {"script", "b"} == set()
    assert page.texts.count(EVIL) >= 2


def test_what_is_no_sweep_or_no_picture_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a sweep's"):
        sweep_page(xr.Dataset({"x": ("seed", [1.0])}), title="x")
    with pytest.raises(ValueError, match=r"figure.pdf is no picture"):
        picture(tmp_path / "figure.pdf")
    (tmp_path / "own.html").write_text("{{ words }}")
    with pytest.raises(jinja2.UndefinedError, match="'words' is undefined"):
        render("own.html", folders=[tmp_path])
