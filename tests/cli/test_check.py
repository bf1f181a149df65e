"""`attune files check` and `preview` on a file of this machine: no service, and no package that is not needed."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.formats import families
from core.formats.findings import Survey
from tests.cli.running import ROOT, Done, attune, environment
from tests.worker.prepare.conftest import TOKENS, tiny_tokenizer


@pytest.fixture
def away() -> dict[str, str]:
    """Whoever asks a service here gets no answer."""
    return environment(OPENAI_BASE_URL="http://127.0.0.1:9/v1", OPENAI_API_KEY="sk-attune-x")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``save_pretrained`` writes it, without weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny-gemma"
    folder.mkdir()
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    template = families.text("gemma3")
    (folder / "tokenizer_config.json").write_text(json.dumps({**TOKENS, "chat_template": template}))
    (folder / "config.json").write_text('{"model_type": "gemma3_text", "max_position_embeddings": 100}')
    return folder


def talk(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages})


def written(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return written(tmp_path / "good.jsonl", *(talk(f"What is {n}?", f"It is {n}.") for n in range(30)))


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    twice = talk("again", "and again")
    return written(tmp_path / "bad.jsonl", twice, "nonsense", '{"messages": [{"role": "bot", "content": "x"}]}', twice)


def check(env: dict[str, str], *arguments: object) -> Done:
    return attune("files", "check", *arguments, env=env)


def test_a_good_file_is_good_without_a_service(away: dict[str, str], good: Path) -> None:
    done = check(away, good)
    assert done.returncode == 0, done.stderr
    assert "30 good rows of the format chat (jsonl" in done.stdout
    assert "no faults" in done.stdout


def test_a_faulty_file_ends_with_status_1_and_each_line_named(away: dict[str, str], bad: Path) -> None:
    done = check(away, bad)
    assert done.returncode == 1
    assert "line 2: not JSON at column" in done.stdout
    assert "line 3: messages[0].role" in done.stdout
    assert "[unknown_role]\n" in done.stdout
    assert '\n      "bot"\n' in done.stdout
    assert "1 row(s) say exactly what an earlier one says: line 4 (as 1)" in done.stdout


def test_faults_of_the_validation_file_count_and_shared_rows_are_named(
    away: dict[str, str], good: Path, bad: Path, tmp_path: Path
) -> None:
    assert check(away, good, "--validation", bad).returncode == 1
    some = written(tmp_path / "valid.jsonl", *good.read_text().splitlines()[4:6], talk("new", "row"))
    done = check(away, good, "--validation", some)
    assert done.returncode == 0
    assert "2 row(s) of the data are in it, too: lines 5 (as 1), 6 (as 2)" in done.stdout


def test_a_models_folder_gives_lengths_as_a_drawn_histogram(
    away: dict[str, str], good: Path, model: Path, tmp_path: Path
) -> None:
    long = written(tmp_path / "long.jsonl", *good.read_text().splitlines(), talk("Hello", "yes " * 100))
    done = check(away, long, "--model", model)
    assert done.returncode == 0, done.stderr
    assert "tiny-gemma: 30 rows to train on" in done.stdout
    assert "1 row(s) have more than 100 tokens and would be left out: line 31" in done.stdout
    drawn = [line for line in done.stdout.splitlines() if "█" in line or line.endswith("▏")]
    assert len(drawn) >= 2
    assert max(drawn, key=len).split()[1] == "30"


def test_the_json_is_the_report_that_the_service_gives(away: dict[str, str], bad: Path, model: Path) -> None:
    done = check(away, bad, "--model", model, "--json")
    assert done.returncode == 1
    survey = Survey.model_validate_json(done.stdout)
    assert (survey.rows, survey.fault_count, survey.duplicates.count) == (2, 2, 1)
    assert survey.models[0].model == "tiny-gemma"


def test_every_finding_can_be_had_as_a_file(away: dict[str, str], bad: Path, tmp_path: Path) -> None:
    check(away, bad, "--findings", tmp_path / "found.jsonl")
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [(one["finding"], one["line"]) for one in found] == [("fault", 2), ("fault", 3), ("duplicate", 4)]


def test_a_folder_that_is_no_model_is_said_in_a_sentence(away: dict[str, str], good: Path, tmp_path: Path) -> None:
    done = check(away, good, "--model", tmp_path)
    assert done.returncode == 1
    assert "has no tokenizer.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_check_without_a_model_needs_none_of_the_workers_packages(good: Path) -> None:
    code = (
        "import sys\nfrom cli.main import main\n"
        "try:\n    main(['files', 'check', sys.argv[1], '--json'])\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}"
        " & {'torch', 'tokenizers', 'transformers', 'worker', 'api', 'openai', 'sqlalchemy'}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(good)], env=environment(), capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stderr.splitlines()[-1] == "[]"


def shown(file: Path, model: Path, *more: str, **env: str) -> str:
    """In a process of its own: whether there is colour is decided at its start."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "files", "preview", str(file), "--model", str(model), "--limit", "2", *more],
        env={**environment(), **env},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_preview_has_what_is_trained_on_in_colour(good: Path, model: Path) -> None:
    text = shown(good, model, FORCE_COLOR="1", TERM="xterm-256color")
    painted = "".join(part.split("\x1b[0m")[0] for part in text.split("\x1b[1;32m")[1:])
    assert painted == "trained onIt is 0.<end_of_turn>It is 1.<end_of_turn>"


def test_a_preview_without_colour_marks_what_is_trained_on(good: Path, model: Path) -> None:
    text = shown(good, model, NO_COLOR="1")
    assert "\x1b" not in text
    assert "⟦It is 0.<end_of_turn>⟧" in text
    assert "── line 2: " in text
    assert "What is 2?" not in text


def test_a_preview_lists_tokens_when_asked(good: Path, model: Path) -> None:
    found: list[Any] = json.loads(shown(good, model, "--json"))["rows"]
    text = shown(good, model, "--tokens")
    for token in found[0]["tokens"][:5]:
        assert repr(token["text"]) in text
        assert str(token["id"]) in text


def test_rows_that_can_not_be_sent_along_are_to_be_uploaded(away: dict[str, str], tmp_path: Path) -> None:
    array = tmp_path / "rows.json"
    array.write_text('[\n{"text": "a"}\n]')
    done = attune("files", "preview", array, "--model", "some-model", env=away)
    assert done.returncode == 1
    assert "upload it and give its id" in done.stderr


def test_other_containers_are_checked_as_the_service_would(away: dict[str, str], tmp_path: Path) -> None:
    table = tmp_path / "rows.csv.gz"
    lines = ["prompt,completion", *(f"{n}?,{n}!" for n in range(12)), "x,"]
    table.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    done = check(away, table)
    assert done.returncode == 1
    assert "12 good rows of the format completion (csv, gzip" in done.stdout
    assert "line 14: completion: is empty" in done.stdout


def test_a_conversion_is_named(away: dict[str, str], tmp_path: Path) -> None:
    rows = [json.dumps({"instruction": f"Say {n}.", "input": "", "output": str(n)}) for n in range(12)]
    done = check(away, written(tmp_path / "alpaca.jsonl", *rows))
    assert done.returncode == 0
    assert "converted from alpaca: " in done.stdout
