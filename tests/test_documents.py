"""What the documents claim, as far as a machine can check it."""

import re
import tomllib
from pathlib import Path

import pytest

from core.config import Settings
from core.formats.check import Checker
from core.options import JobOptions, known, parse, unsupported

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def fenced(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def table(page: str, heading: str) -> dict[str, list[str]]:
    """Rows of the table whose header's first cell is ``heading``, by their first cell."""
    rows: dict[str, list[str]] = {}
    inside = False
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == heading:
            inside = True
        elif inside and not set(cells[0]) <= {"-"}:
            rows[cells[0]] = cells[1:]
    return rows


def test_the_settings_table_is_the_settings() -> None:
    """The bug behind it: an operator sets a variable that a page still names and nothing reads any more."""
    told = {name.strip("`"): cells[0].strip("`") for name, cells in table("docs/operations.md", "variable").items()}
    real = {
        f"ATTUNE_{name.upper()}": "" if field.default is None else str(field.default)
        for name, field in Settings.model_fields.items()
    }
    assert told == real


def test_every_option_of_the_table_is_one_and_is_honoured() -> None:
    options = set(known())
    named: set[str] = set()
    for first in table("docs/api.md", "key"):
        group = ""
        for name in re.findall(r"`([a-z_.]+)`", first):
            full = f"ext.{group}{name}" if name.startswith(".") else f"ext.{name}"
            group = name.partition(".")[0] if "." in name.strip(".") else group
            assert full in options, full
            named.add(full)
    # What can be set to more than one value but is not in the table would be a secret.
    faults = {fault.path for fault in unsupported(JobOptions())}
    assert not faults
    assert {"ext.lora.rank", "ext.optim.betas", "ext.eval.every", "ext.prompt_loss_weight"} <= named


def test_the_defaults_of_the_table_are_the_defaults() -> None:
    defaults = JobOptions()
    assert (defaults.lora.rank, defaults.prompt_loss_weight, defaults.optim.min_lr_ratio) == (16, 0.1, 0.1)
    assert table("docs/api.md", "key")["`lora.rank` · `lora.alpha`"][1] == "16 · twice the rank"
    assert table("docs/api.md", "key")["`prompt_loss_weight`"][1] == "0.1"
    assert table("docs/api.md", "key")["`optim.min_lr_ratio`"][1] == "0.1"


def test_the_example_of_ext_is_accepted() -> None:
    (code, *_) = fenced("docs/api.md", "python")
    given = re.search(r"extra_body=\{\"ext\": (\{.*\})\},", code)
    assert given is not None
    assert unsupported(parse(eval(given.group(1), {}))) == []


def test_the_readmes_script_has_ten_lines_and_one_of_them_is_marked() -> None:
    (code,) = fenced("README.md", "python")
    compile(code, "README.md", "exec")
    lines = code.splitlines()
    assert len(lines) == 10
    (marked,) = [line for line in lines if "the one changed line" in line]
    assert "base_url=" in marked


@pytest.mark.parametrize("row", "".join(fenced("docs/data.md", "json")).splitlines())
def test_the_rows_of_the_data_page_are_good_rows(row: str) -> None:
    checker = Checker()
    checker.feed(row.encode())
    assert checker.finish().faults == []


def test_the_faults_of_the_data_page_are_said_like_that() -> None:
    checker = Checker()
    good = b'{"messages": [{"role": "assistant", "content": "a"}]}\n'
    bot = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}, '
    bot += b'{"role": "bot", "content": "a"}]}\n'
    checker.feed(good * 16 + bot + good * 22 + b'{"messages": [{"role": "user", "content": "a"}]}\n')
    said = [str(fault) for fault in checker.finish().faults]
    shown = re.findall(r"^    (line \d+: .*)$", (ROOT / "docs" / "data.md").read_text(), flags=re.MULTILINE)
    assert said == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda page: page.name)
def test_a_decision_has_its_four_parts_and_one_line_to_quote(page: Path) -> None:
    text = page.read_text()
    assert re.match(r"# \d+\. ", text)
    assert all(f"**{part}.**" in text for part in ("Context", "Consequences", "Not chosen"))
    assert len(re.findall(r"^> \*\*.+\*\*$", text, flags=re.MULTILINE)) == 1


def test_paths_of_the_floor_plan_exist() -> None:
    """Files and folders that ARCHITECTURE.md and the decisions name in passing."""
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"`((?:core|api|worker|cli|tests|docs|deploy)/[\w./-]+)`", text))
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = "".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets


def test_the_changelog_has_a_place_for_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text or f"## [{version}]" in text
