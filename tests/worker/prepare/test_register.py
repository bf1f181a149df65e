"""Registering base models from folders and GGUF files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core.errors import JobError
from core.formats import families
from tests.tiny import build_tiny
from worker.prepare import gguf, register

PROBES = ["Hello there, what is the answer?", "  two  spaces\n\n\tand 123 é 東🙂", "<|im_start|>user\nhi<|im_end|>\n"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "source"))


def test_a_folder_is_registered(source: Path, tmp_path: Path) -> None:
    said: list[tuple[float, str]] = []
    facts = register.convert(f"path:{source}", tmp_path / "out", progress=lambda *event: said.append(event))
    out = tmp_path / "out"
    assert facts.model_dump(exclude={"files", "bytes", "sha256", "parameters", "shape"}) == {
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "hidden_size": 64,
        "layers": 2,
        "vocab_size": 512,
        "context_length": 1024,
        "dtype": "float32",
        "bos_token_id": 1,
        "eos_token_ids": [3],
        "special_tokens": {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|im_end|>"},
        "adds_bos": False,
        "template_origin": "model",
        "chat_template": (source / "chat_template.jinja").read_text(),
        "license": None,
        "converter": register.CONVERTER,
    }
    weights = load_file(out / "model.safetensors")
    assert facts.parameters == sum(value.size for value in weights.values())
    assert (out / "chat_template.jinja").read_text() == (source / "chat_template.jinja").read_text()
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [3]
    assert [entry.path for entry in facts.files] == sorted(path.name for path in out.iterdir())
    assert facts.bytes == sum(path.stat().st_size for path in out.iterdir())
    percents = [percent for percent, _ in said]
    assert percents == sorted(percents)


def test_it_loads_and_tokenises_in_transformers(source: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    register.convert(f"path:{source}", tmp_path / "out")
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [before(probe).input_ids for probe in PROBES] == [after(probe).input_ids for probe in PROBES]
    assert after.chat_template == before.chat_template
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == [3]


def test_the_content_has_one_name(source: Path, tmp_path: Path) -> None:
    facts = [register.convert(f"path:{source}", tmp_path / name) for name in ("a", "b")]
    other = register.convert(f"path:{source}", tmp_path / "c", chat_template="{{ messages[0].content }}{# other #}")
    assert facts[0].sha256 == facts[1].sha256 != other.sha256
    assert other.template_origin == "given"


def test_the_second_time_it_comes_from_the_cache(source: Path, tmp_path: Path) -> None:
    said: list[str] = []
    cache = tmp_path / "cache"
    first = register.convert(f"path:{source}", tmp_path / "a", cache=cache)
    second = register.convert(f"path:{source}", tmp_path / "b", cache=cache, progress=lambda _, text: said.append(text))
    assert first == second
    assert "found in the cache" in said
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("a", "b")]
    assert names[0] == names[1]
    given = register.convert(f"path:{source}", tmp_path / "c", cache=cache, chat_template="{{ messages[0].content }}")
    assert given.sha256 != first.sha256


def test_a_model_without_template_gets_the_default_of_its_family(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").unlink()
    facts = register.convert(f"path:{source}", tmp_path / "out")
    # A Llama, but with ChatML's tokens.
    assert facts.template_origin == "default:chatml"
    assert facts.chat_template == (tmp_path / "out" / "chat_template.jinja").read_text() == families.text("chatml")
    assert facts.eos_token_ids == [3]


def test_a_model_of_no_known_family_gets_the_plain_template(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_text((source / name).read_text().replace("<|im_", "<|talk_"))
    facts = register.convert(f"path:{source}", tmp_path / "out")
    assert facts.template_origin == "default:plain"
    assert facts.chat_template == families.text("plain")


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% for %}", "line 1"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "2 seconds"),
        ("{{ (7 ** 1000000000) % 9 }}", "2 seconds"),
        ("{{ 'a' * 10 ** 10 }}", "memory"),
        ("{% for a in range(4000) %}{% for b in range(5000) %}x{% endfor %}{% endfor %}", "characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses"),
        ("{{ lipsum.__globals__['os'] }}", "unsafe"),
    ],
    ids=["syntax", "refusal", "endless", "one endless step", "huge", "long", "recursion", "escape"],
)
def test_a_hostile_template_can_not_be_registered(source: Path, tmp_path: Path, template: str, what: str) -> None:
    with pytest.raises(JobError, match=what) as refused:
        register.convert(f"path:{source}", tmp_path / "out", chat_template=template)
    assert (refused.value.error_code, refused.value.param) == ("invalid_chat_template", "chat_template")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_template_of_absurd_length_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").write_text("x" * 300_000)
    with pytest.raises(JobError, match="300,000 characters"):
        register.convert(f"path:{source}", tmp_path / "out")


def test_the_templates_end_of_turn_stops_generation(source: Path, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_start|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    facts = register.convert(f"path:{source}", tmp_path / "out", chat_template=template)
    assert facts.eos_token_ids == [3, 2]


def test_a_template_that_asks_with_more_than_it_writes_can_be_registered(source: Path, tmp_path: Path) -> None:
    """As DeepSeek R1's own does, which opens a thought in every question."""
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_start|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: <think>{% endif %}"
    )
    facts = register.convert(f"path:{source}", tmp_path / "out", chat_template=template)
    assert facts.eos_token_ids == [3, 2]


def test_code_is_neither_copied_nor_named(source: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        value = json.loads((source / name).read_text())
        value["auto_map"] = {"AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
        (source / name).write_text(json.dumps(value))
    (source / "evil.py").write_text("raise SystemExit('ran')")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    register.convert(f"path:{source}", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {"evil.py", "pytorch_model.bin"} & names
    assert not any(b"auto_map" in (tmp_path / "out" / name).read_bytes() for name in names if name.endswith(".json"))


def test_the_source_is_left_as_it_was(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").chmod(0o600)
    before = {path.name: (path.read_bytes(), path.stat().st_mode) for path in source.iterdir()}
    register.convert(f"path:{source}", tmp_path / "out", cache=tmp_path / "cache")
    assert {path.name: (path.read_bytes(), path.stat().st_mode) for path in source.iterdir()} == before
    assert (source / "model.safetensors").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "no safetensors"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer"),
        (lambda folder: (folder / "config.json").write_text('{"quantization_config": {}}'), "quantised"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% for %}"), "chat template"),
    ],
    ids=["config", "pickle", "tokenizer", "quantised", "template"],
)
def test_what_can_not_be_used_is_refused(source: Path, tmp_path: Path, change: Any, what: str) -> None:
    change(source)
    with pytest.raises(JobError, match=what):
        register.convert(f"path:{source}", tmp_path / "out")
    # A refusal leaves nothing behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("source", ["s3:bucket", "path:/nowhere", "gguf:/nowhere.gguf", "gguf:no-such-package-here"])
def test_an_unknown_source_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(JobError) as error:
        register.convert(source, tmp_path / "out")
    assert (error.value.error_code, error.value.param) == ("invalid_source", "source")


@pytest.fixture(scope="module")
def gguf_file(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as llama.cpp would write it, in half precision."""
    import gguf as writer

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    weights = load_file(tiny / "model.safetensors")
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    file = writer.GGUFWriter(path, "llama")
    file.add_name("tiny")
    file.add_context_length(1024)
    file.add_embedding_length(64)
    file.add_block_count(2)
    file.add_feed_forward_length(128)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_dimension_count(16)
    file.add_rope_freq_base(10000.0)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("default")
    file.add_token_list(vocabulary)
    file.add_token_types([3] * 4 + [1] * (len(vocabulary) - 4))
    file.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    file.add_bos_token_id(1)
    file.add_eos_token_id(3)
    file.add_pad_token_id(0)
    file.add_chat_template((tiny / "chat_template.jinja").read_text())
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }
    for name, value in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        file.add_tensor(name, value.astype(np.float16) if value.ndim == 2 else value)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def test_a_gguf_file_becomes_what_transformers_reads(gguf_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = register.convert(f"gguf:{gguf_file}", tmp_path / "out", cache=tmp_path / "cache")
    assert (facts.dtype, facts.vocab_size, facts.eos_token_ids, facts.template_origin) == ("float32", 512, [3], "model")
    theirs = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype="float32")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all((value == expected[name]).all() for name, value in ours.state_dict().items())
    before = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [before(probe).input_ids for probe in PROBES] == [after(probe).input_ids for probe in PROBES]


def test_pieces_are_joined_in_their_order(gguf_file: Path, tmp_path: Path) -> None:
    data = gguf_file.read_bytes()
    pieces = [tmp_path / f"m.gguf.part0{number}" for number in range(3)]
    for number, piece in enumerate(pieces):
        piece.write_bytes(data[number * 100_000 : None if number == 2 else (number + 1) * 100_000])
    gguf.join(pieces, tmp_path / "whole.gguf")
    assert (tmp_path / "whole.gguf").read_bytes() == data


def test_something_else_is_not_a_gguf_file(tmp_path: Path) -> None:
    for content in (b"", b"GGUF", b"not a model at all" * 10):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(JobError, match=r"m\.gguf"):
            register.convert(f"gguf:{tmp_path / 'm.gguf'}", tmp_path / "out")


def test_sharded_weights_stay_sharded(source: Path, tmp_path: Path) -> None:
    weights = load_file(source / "model.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, source / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "model.safetensors").unlink()
    facts = register.convert(f"path:{source}", tmp_path / "out")
    assert facts.parameters == sum(value.size for value in weights.values())
    assert {*shards, "model.safetensors.index.json"} <= {entry.path for entry in facts.files}
