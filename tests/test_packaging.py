"""What is said about the package agrees: versions, Pythons, licence, pins."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import grpo_jax

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
ZENODO = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
WORKFLOWS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / ".github/workflows").iterdir()}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_there_is_one_version():
    assert CITATION["version"] == PROJECT["version"] == grpo_jax.__version__


def test_the_changelog_knows_the_version():
    """Released versions are headings with a date, newest first; work goes on under Unreleased."""
    headings = re.findall(r"^## (.*)$", CHANGES, re.M)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    assert PROJECT["version"] in CHANGES


def test_name_licence_authors_and_keywords_agree():
    assert CITATION["title"] == ZENODO["title"] == PROJECT["name"]
    assert CITATION["license"] == ZENODO["license"] == PROJECT["license"]
    assert CITATION["authors"] == ZENODO["creators"] == PROJECT["authors"]
    assert CITATION["keywords"] == ZENODO["keywords"]
    assert set(CITATION["keywords"]) == set(PROJECT["keywords"])
    assert " ".join(CITATION["abstract"].split()) == ZENODO["description"]


def test_zenodo_relates_the_readme_s_papers():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    papers = readme[readme.index("## Papers") :]
    related = {entry["identifier"] for entry in ZENODO["related_identifiers"]}
    assert related == set(re.findall(r"arXiv:\d{4}\.\d{5}", papers))


def test_ci_runs_the_oldest_and_the_newest_python_that_are_named():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert PROJECT["requires-python"] == f">={named[0]}"
    for job in yaml.safe_load(WORKFLOWS["ci"])["jobs"].values():
        assert job["strategy"]["matrix"]["python"] == [named[0], named[-1]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_scripts_that_workflows_run_are_there(name):
    scripts = re.findall(r"bash (\S+)", WORKFLOWS[name])
    assert scripts
    assert all((ROOT / script).stat().st_mode & 0o111 for script in scripts)


def test_publishing_needs_no_token():
    publish = yaml.safe_load(WORKFLOWS["release"])["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in WORKFLOWS["release"]


def test_every_requirement_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonical(line.partition("==")[0]) for line in lines if not line.startswith("#")}
    own = canonical(PROJECT["name"])
    extras = PROJECT["optional-dependencies"].values()
    for requirement in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]:
        name = canonical(re.match(r"[\w.-]+", requirement)[0])
        assert name in pinned | {own}, f"{requirement} has no line in constraints.txt"
