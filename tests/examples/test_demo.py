"""What the demo promises, draws and checks."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import demo
import download
import pytest
import show
from evaluate import Example
from service import Failed


@pytest.mark.parametrize(
    ("base", "few_shot", "tuned", "status"),
    [
        (0.0, 0.1, 0.9, 0),
        (0.10, 0.5, 0.80, 0),
        (0.12, 0.2, 0.9, 1),
        (0.0, 0.1, 0.79, 1),
        (0.0, 0.9, 0.9, 1),
    ],
)
def test_it_succeeds_only_when_every_promise_is_kept(base: float, few_shot: float, tuned: float, status: int) -> None:
    assert demo.judge({"base": base, "base few-shot": few_shot, "tuned": tuned}) == status


def test_the_curve_falls_with_the_loss_and_names_its_ends() -> None:
    lines = show.curve([4.0 * 0.9**step for step in range(100)]).splitlines()
    assert lines[0].startswith("  3.8")
    assert lines[-1].split() == ["step", "1", "100"]
    filled = ["".join(column).count("█") for column in zip(*(line[9:] for line in lines[: show.HEIGHT]), strict=True)]
    assert len(filled) == show.WIDTH
    assert filled == sorted(filled, reverse=True)
    assert filled[0] == show.HEIGHT


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [2.0, 3.0]])
def test_the_curve_of_a_very_short_run_can_be_drawn(values: list[float]) -> None:
    assert str(len(values)) in show.curve(values).splitlines()[-1]


def test_the_loss_is_read_from_the_metrics_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train_loss,train_accuracy,completion_loss\n1,3.5,0.1,2.5\n2,1.5,,\n")
    assert show.losses(path) == [2.5, 1.5]


def test_shown_answers_are_telling_and_hide_no_mistake() -> None:
    rows = [Example(f"m{at}", f"r{at}") for at in range(8)]
    answers = {
        "base": ["no"] * 8,
        "base few-shot": ["r0"] + ["no"] * 7,
        "tuned": ["r0", "wrong", "r2", "r3", "r4", "r5", "r6", "r7"],
    }
    assert show.telling(rows, answers) == [2, 3, 4, 1]


class FakeFiles:
    """The part of the SDK's ``client.files`` that downloads use."""

    def __init__(self, files: dict[str, tuple[str, bytes]]) -> None:
        self.files = files

    def retrieve(self, id: str) -> Any:
        return SimpleNamespace(filename=self.files[id][0])

    def content(self, id: str) -> Any:
        return SimpleNamespace(write_to_file=lambda path: path.write_bytes(self.files[id][1]))


def artifact(weights: bytes, promised: bytes) -> Any:
    manifest = {"version": 1, "files": [{"path": "w.bin", "bytes": 4, "sha256": hashlib.sha256(promised).hexdigest()}]}
    files = {
        "file-csv": ("metrics.csv", b"step\n"),
        "file-w": ("../w.bin", weights),
        "file-m": ("manifest.json", json.dumps(manifest).encode()),
    }
    return SimpleNamespace(files=FakeFiles(files)), SimpleNamespace(result_files=list(files))


def test_downloaded_files_are_where_they_belong_and_told_with_their_hash(tmp_path: Path) -> None:
    client, job = artifact(b"1234", b"1234")
    told = download.adapter(client, job, tmp_path)
    assert [file["path"] for file in told] == ["metrics.csv", "adapter/w.bin", "adapter/manifest.json"]
    assert told[1] == {"path": "adapter/w.bin", "bytes": 4, "sha256": hashlib.sha256(b"1234").hexdigest()}
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "manifest.json",
        "metrics.csv",
        "w.bin",
    ]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    client, job = artifact(b"1235", b"1234")
    with pytest.raises(Failed, match=r"w\.bin is damaged"):
        download.adapter(client, job, tmp_path)


def test_base_files_that_are_there_already_are_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    entry = {"path": "config.json", "bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest(), "url": "http://nowhere"}
    download.base([entry], tmp_path)
    (tmp_path / "config.json").write_bytes(b"[]")
    with pytest.raises(Exception, match=r"nowhere|resolution|resolve|known|connect"):
        download.base([entry], tmp_path)


def test_an_interrupted_demo_cancels_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next demo's job would wait behind it."""
    cancelled: list[str] = []
    made = SimpleNamespace(id="ftjob-1", status="queued")
    client: Any = SimpleNamespace(
        files=SimpleNamespace(create=lambda **_: SimpleNamespace(id="file-1")),
        fine_tuning=SimpleNamespace(jobs=SimpleNamespace(create=lambda **_: made, cancel=cancelled.append)),
    )

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.tune(client)
    assert cancelled == ["ftjob-1"]
