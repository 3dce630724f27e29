"""The site: every answer rests on a claim and on a source, and the built pages need nothing from outside."""

import json
import re
import string
import unicodedata
from html.parser import HTMLParser
from math import comb, sqrt
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest

import grpo_jax as gj
from docs.generate import libraries, sampler
from docs.generate.answers import Formula, Hazard, Row, Several, formula, hazard, several
from docs.generate.explorers import EXPLORERS
from docs.generate.formulas import FORMULAS
from docs.generate.longer import LONGER
from docs.generate.questions import QUESTIONS
from docs.generate.records import FIGURES, pages, sections
from docs.generate.text import plain, prose, underscores
from experiments.harness.scripts import find_scripts

ROOT = Path(__file__).resolve().parent.parent
LEDGER = json.loads((ROOT / "experiments" / "ledger.json").read_text(encoding="utf-8"))
NAMES = ("k1", "k2", "k3", "1/|o|", "1/P(mixed)", "1/length", "pass@1", "pass@8", "float32", "bfloat16")
"""What holds a digit and is no number."""


def test_there_are_at_least_twenty_questions_and_none_twice():
    asked = [question.ask for question in QUESTIONS]
    assert len(asked) >= 20
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("question", [*QUESTIONS, *LONGER], ids=lambda question: question.ask)
def test_an_answer_names_claims_and_takes_its_number_from_its_source(question):
    assert question.claims
    assert set(question.claims) <= set(find_scripts()) & set(LEDGER)
    literal = "".join(text for text, *_ in string.Formatter().parse(question.says))
    for name in NAMES:
        literal = literal.replace(name, "")
    literal = re.sub(r"\b[A-F]\d+(\.\d+)?", "", literal)
    typed = set(re.findall(r"[\d.]*\d", literal))
    assert typed <= {"0", "1"}, f"typed in: {typed}"
    fields = {field for _, field, *_ in string.Formatter().parse(question.says) if field}
    values = question.source.values(LEDGER)
    assert fields
    assert fields <= set(values)
    shown = question.answer(LEDGER)
    assert re.search(r"\d|nothing", shown)
    assert "nan" not in shown
    assert isinstance(question.source, Formula | Hazard | Row | Several)


def _rows(source):
    """Every row of the ledger that a source reads, as (id, part)."""
    if isinstance(source, Several):
        return [row for one in source.sources.values() for row in _rows(one)]
    return [(source.id, source.part)] if isinstance(source, Row) else []


@pytest.mark.parametrize("question", LONGER, ids=lambda question: question.ask)
def test_a_longer_answer_stops_the_build_when_any_row_of_it_says_something_else(question):
    rows = _rows(question.source)
    named = re.findall(r"\b[A-F]\d+(?:\.\d+)?", question.says)
    assert set(named) <= {id for id, _ in rows}
    assert {id.partition(".")[0] for id, _ in rows} <= set(question.claims)
    for id, part in rows:
        other = {**LEDGER, id: {**LEDGER[id], part: "Otherwise."}}
        with pytest.raises(LookupError, match=f"{re.escape(id)} no longer says"):
            question.answer(other)


def test_several_sources_keep_their_values_apart():
    def twice(number):
        return 2.0 * number

    found = several(one=formula(twice, number=3.0), two=formula(twice, number=5.0)).values(LEDGER)
    assert found == {"one_number": 3.0, "one_value": 6.0, "two_number": 5.0, "two_value": 10.0}


def test_the_sampler_map_shows_the_numbers_of_the_committed_run(tmp_path):
    """One cell of each kind by hand, and the words of the ledger's row, which come from the same run."""
    numbers = {"lost": 0.0327, "lost low": -0.00001, "lost high": 0.04, "won": 0, "won low": 0, "won high": 0}
    made = {"correction": "none", "mismatch": "fixed", "bias": 6e-16, "variance": 9784.2, **numbers}
    (tmp_path / "D7.json").write_text(json.dumps([made]), encoding="utf-8")
    shown = ("none", "fixed", "0", "9784", "3.27 [0.00, 4.00]", "0.00 [0.00, 0.00]")
    assert sampler.rows(tmp_path) == [shown]
    rows = json.loads((ROOT / "docs" / "figures" / "D7.json").read_text(encoding="utf-8"))
    found = LEDGER["D7"]["found"]
    alone = [row for row in rows if row["correction"] == "none"]
    assert f"by up to {max(row['bias'] for row in alone):.0%} of the" in found
    assert f"costs {max(row['lost'] for row in alone):.3f} of" in found
    assert f"wins back more than {max(row['won'] for row in rows):.3f}." in found
    assert f"IPO {-min(row['won'] for row in rows if row['correction'] == 'IPO'):.3f}" in found
    page = dict(pages())["sampler.md"]
    assert {row["correction"] for row in rows} == set(sampler.corrections())
    assert len(rows) == 4 * len(sampler.corrections())
    assert page.count(" | fixed noise | ") == len(sampler.corrections())
    assert "(../sampler.md)" in dict(pages())["claims/D7.md"]


def test_numbers_of_the_ledger_stand_in_the_row_that_is_named():
    for question in QUESTIONS:
        if isinstance(question.source, Row):
            row = LEDGER[question.source.id]
            assert row[question.source.part]
            for value in question.source.values(LEDGER).values():
                assert value in row[question.source.part]
            assert question.source.id.partition(".")[0] in question.claims


def _answer(ask):
    return next(question for question in QUESTIONS if ask in question.ask).answer(LEDGER)


def test_answers_by_hand():
    assert f"{100 * (0.05**8 + 0.95**8):.1f}%" in _answer("dead groups")
    assert f"{1 / (1 - 0.05**8 - 0.95**8):.3g} groups" in _answer("refilling")
    assert f"{1.01**256:.3g}" in _answer("Token or sequence ratio")
    odds = (0.9 / 0.1) ** 0.7
    assert f"{odds / (1 + odds):.3g}" in _answer("temperature")

    def weight(p, group=8):  # E sqrt(K(G - K)) / (G p (1 - p))
        counts = range(group + 1)
        spread = sum(comb(group, k) * p**k * (1 - p) ** (group - k) * sqrt(k * (group - k)) for k in counts)
        return spread / (group * p * (1 - p))

    weights = [weight(k / 1000) for k in range(1, 1000)]
    assert f"{max(weights) / min(weights):.2f}"[:3] == _answer("standard deviation").split("**")[1][:3]


def test_a_source_that_no_longer_says_it_is_refused():
    with pytest.raises(LookupError, match="A7 no longer says"):
        Row("A7", r"(?P<value>no such words)").values(LEDGER)
    with pytest.raises(LookupError, match="has no hazard top_p; it has"):
        hazard("top_p", num_generations=8).values(LEDGER)


def test_text_of_a_record_is_no_markup():
    assert plain("a_b *c* <d> [e](f)") == "a&#95;b &#42;c&#42; &#60;d&#62; &#91;e&#93;(f)"
    assert prose("`a_b` <c>") == "`a_b` &#60;c&#62;"
    assert prose("one ` alone") == "one &#96; alone"
    assert underscores("| `a_b` | c_d_ |") == "| `a_b` | c&#95;d&#95; |"


def test_there_is_a_page_for_every_claim_with_its_words_its_rows_and_its_command():
    made = dict(pages())
    for name, script in find_scripts().items():
        page = made[f"claims/{name}.md"]
        run = LEDGER[name]
        assert f"python -m experiments {name} --size {run['size']} --seed {run['seed']}\n" in page
        assert script.path.name in page
        assert "efuted if" in page
        for row, entry in LEDGER.items():
            if row.partition(".")[0] == name:
                assert prose(entry["because"]) in page
                assert prose(entry["found"]) in page
        assert script.path.read_text(encoding="utf-8") in made[f"claims/{name}-script.md"]
    listed = [
        address
        for section in sections()
        for entries in section.values()
        for e in entries
        for address in e.values()
    ]
    assert listed == [f"claims/{name}.md" for name in find_scripts()]
    assert all(f"| [{row}](" in made["claims/index.md"] for row in LEDGER)


def test_a_claim_s_page_has_its_formula_and_the_explorers_of_its_numbers():
    made = dict(pages())
    assert set(FORMULAS) <= set(find_scripts())
    for name in find_scripts():
        formula = FORMULAS.get(name)
        held = re.findall(r"```formula\n(.*?)\n```", made[f"claims/{name}.md"], re.S)
        assert held == ([formula.latex] if formula else [])
        linked = set(re.findall(r"\(\.\./explore/([\w-]+)\.md\)", made[f"claims/{name}.md"]))
        assert linked == {explorer.name for explorer in EXPLORERS if name in explorer.claims}
    dead = next(part for part in made["index.md"].split("### ") if part.startswith("Do dead groups"))
    assert "(explore/dead-groups.md " in dead
    assert all(f"(explore/{explorer.name}.md " in made["index.md"] for explorer in EXPLORERS)
    assert all(f"({explorer.name}.md)" in made["explore/index.md"] for explorer in EXPLORERS)


def test_formulas_become_mathml_and_nothing_of_them_is_lost():
    mathml = pytest.importorskip("docs.generate.mathml", reason="formulas need the extra docs")
    for claim, (latex, _) in FORMULAS.items():
        root = ElementTree.fromstring(mathml.fence(latex, "", "formula", {}, None))
        drawn = unicodedata.normalize("NFKC", "".join(root.itertext()))
        assert root.get("class") == "formula"
        assert len(root) == latex.count("\n") + 1
        assert "\\" not in drawn, claim
        letters = set(re.findall(r"[A-Za-z]", re.sub(r"\\[a-zA-Z]+", "", latex)))
        assert letters <= set(drawn), claim


def test_the_table_of_libraries_by_hand():
    found = {line.spec: line for line in libraries.lines()}
    trl, rloo, areal = found["trl:dr_grpo"], found["trl:rloo"], found["areal"]
    assert (trl.less, trl.over, trl.mean) == ("the group's mean", "σ, ddof 1, + 0.0001", "a constant")
    assert (rloo.less, rloo.over, rloo.penalty) == (
        "the mean of the others",
        "nothing",
        "k1 in the reward, β = 0.05",
    )
    assert (areal.less, areal.penalty) == ("nothing", "k1 in the returns, β = 0.1")
    assert found["verl:gspo"].ratio == "answer, geometric mean"
    assert (rloo.ratio, trl.ratio) == ("answer, product", "token")
    assert found["trl:grpo"].mean == "each answer's tokens, then answers"
    assert found["trl:dapo"].mean == "all tokens of the batch"
    assert found["liger:dapo"].penalty == "k3 in the loss, β = 0.04"
    nemo, gdpo, opened = found["nemo_rl:grpo"], found["nemo_rl:gdpo"], found["open_instruct:cispo"]
    assert (nemo.less, nemo.over) == ("the mean of the others", "σ of the others, ddof 1, + 1e-06")
    assert (gdpo.over, nemo.penalty) == ("the batch's σ", "k3 times the ratio, β = 0.01")
    assert (opened.less, opened.over, opened.mean) == (
        "the group's mean",
        "nothing",
        "all tokens of the batch",
    )
    assert found["openrlhf:ppo"].gain == "`Clip(low=0.2, high=0.2)`"
    assert all("|" not in text for line in found.values() for text in line)


@pytest.mark.parametrize("library", [name for name, losses in libraries.LOSSES.items() if losses])
def test_the_table_of_libraries_leaves_out_what_it_says(library):
    with pytest.raises(ValueError, match="known: ") as refused:
        gj.presets.parse(f"{library}:no such loss")
    known = set(str(refused.value).partition("known: ")[2].split(", "))
    listed = {loss.partition(",")[0] for loss in libraries.LOSSES[library]}
    assert known - listed == ({"dro", "clip_cov"} if library == "verl" else set())
    assert listed - known == ({"rloo", "gmpo"} if library == "trl" else set())


def test_the_method_table_is_the_code_s():
    assert underscores(gj.methods.table()).strip() in dict(pages())["methods.md"]


def test_figures_named_are_there():
    assert all((ROOT / "docs" / file).exists() for file in FIGURES.values())


class Links(HTMLParser):
    """What a page links to, what it loads, and where it can be jumped to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        followed = tag == "a" or (tag == "link" and given.get("rel") in ("canonical", "prev", "next"))
        if followed:
            self.links |= {given["href"]} if given.get("href") else set()
        else:
            self.loads |= {given[name] for name in ("src", "href") if given.get(name)}


@pytest.fixture(scope="module")
def site(built_site):
    return {path: Links(path.read_text(encoding="utf-8")) for path in built_site.rglob("*.html")}


@pytest.mark.slow
def test_links_lead_somewhere_and_nothing_is_loaded_from_outside(site):
    broken = []
    for path, page in site.items():
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert link in page.links, f"{path} loads {link}"
                continue
            if path.name == "404.html":
                continue  # served from anywhere, its links start at the root
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = site.get(target)
            if not target.exists() or (
                parts.fragment and known and unquote(parts.fragment) not in known.anchors
            ):
                broken.append(f"{path.name}: {link}")
    assert not broken
    assert len(site) > 2 * len(find_scripts())


@pytest.mark.slow
def test_no_front_matter_is_shown(built_site):
    for path in built_site.rglob("*.html"):
        assert not re.search(r"<p>(title|hide): ", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_no_page_is_over_five_megabytes(site):
    assert all(path.stat().st_size < 5e6 for path in site)


@pytest.mark.slow
def test_the_reference_has_a_part_s_fields_with_their_defaults_and_examples_as_code(site):
    page = next(path for path in site if path.parts[-2:] == ("api", "grpo_jax.html")).read_text(
        encoding="utf-8"
    )
    text = " ".join(re.sub("<[^>]*>", " ", page.partition('id="grpo_jax.AdamW"')[2][:9000]).split())
    default = gj.AdamW()
    assert f"b2 : Number = {default.b2}" in text
    assert f"learning_rate : Rate = {default.learning_rate}" in text
    assert "<blockquote>" not in page
