"""``mistral-chat info`` and ``template``: what they tell, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import pytest

import quant
from mistral_chat.models.families import FAMILIES, family_of
from quant.bench import GEOMETRIES
from quant.checkpoints.names import tensor_names, tensor_shape
from quant.config import from_huggingface

from ...quant.models import TINY, write_gguf, write_huggingface, write_mistral, write_safetensors
from ..conftest import Command
from ..fakes import tiny_metadata

DATA = Path(mistral_common.__file__).parent / "data"
V3 = DATA / "mistral_instruct_tokenizer_240323.model.v3"
HELLO = json.dumps([{"role": "user", "content": "Hi"}]).encode()
WIDE = replace(TINY, vocab_size=32768)


def parameters(config: quant.ModelConfig) -> int:
    return sum(prod(tensor_shape(config, name)) for name in tensor_names(config))


def geometry(**change: Any) -> quant.ModelConfig:
    values = {"model_type": "mistral", "rms_norm_eps": 1e-5, "rope_theta": 1e6, **change}
    return from_huggingface({"sliding_window": None, **values})


NEMO = {"hidden_size": 5120, "num_hidden_layers": 40, "head_dim": 128, "vocab_size": 131072}


@pytest.mark.parametrize(
    ("config", "name", "count"),
    [
        (geometry(rope_theta=1e4, sliding_window=4096), "Mistral 7B v0.1", 7_241_732_096),
        (geometry(rope_theta=1e4, sliding_window=4096, vocab_size=32002), "Mistral 7B v0.1", None),
        (geometry(), "Mistral 7B v0.2", 7_241_732_096),
        (geometry(vocab_size=32768), "Mistral 7B v0.3", 7_248_023_552),
        (geometry(**NEMO), "Mistral Nemo 12B 2407", 12_247_782_400),
    ],
)
def test_published_models_are_known(config: quant.ModelConfig, name: str, count: int) -> None:
    family = family_of(config)
    assert family is not None
    assert f"{family.name} {family.version}" == name
    assert count is None or parameters(config) == count


def test_others_are_not() -> None:
    assert family_of(TINY) is None
    assert family_of(geometry(num_hidden_layers=31)) is None
    assert len({(family.name, family.version) for family in FAMILIES}) == len(FAMILIES)
    assert family_of(GEOMETRIES["mistral-7b"]) is not None


def test_a_hugging_face_folder(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "model"
    write_huggingface(folder, replace(WIDE, windows=(None, 8)), dtype="BF16")
    (folder / "tokenizer.model.v3").write_bytes(V3.read_bytes())
    told = json.loads(command("info", str(folder), "--json").stdout)
    assert told["format"] == "Hugging Face folder"
    assert told["parameters"] == parameters(WIDE)
    assert told["config"]["windows"] == [None, 8]
    assert told["tokenizer"] == {"kind": "SentencePiece", "vocab_size": 32768, "version": "v3"}
    assert told["template"] == "v3"
    assert told["tensors"] == {"BF16": 21}
    assert told["bits_per_weight"] == 16
    assert (told["family"], told["receipt"], told["problems"]) == (None, None, [])
    assert told["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    shown = command("info", str(folder))
    assert shown.code == 0
    for fact in ("SentencePiece of 32768 tokens, Mistral's v3", "all tokens in 1 layer, 8 in 1 lay",
                 "2 of width 64", "4 of 32, sharing 2", "21 BF16", "16.00 bits"):  # fmt: skip
        assert fact in shown.stdout.replace("\n", " ")


def test_a_native_folder_tells_its_receipt(tmp_path: Path, command: Command) -> None:
    write_mistral(tmp_path / "model", dtype="F16")
    quant.quantize(tmp_path / "model", tmp_path / "native", quant.QuantSpec(4, 32))
    told = json.loads(command("info", str(tmp_path / "native"), "--json").stdout)
    assert told["format"] == "native folder"
    assert told["tensors"] == {"int4 asymmetric in groups of 32": 16, "F32": 5}
    assert told["source"] == "model"
    assert told["receipt"]["method"] == "rtn"
    assert "rtn, from model" in command("info", str(tmp_path / "native")).stdout


def test_a_missing_or_foreign_tokenizer_is_told(tmp_path: Path, command: Command) -> None:
    write_huggingface(tmp_path)
    told = json.loads(command("info", str(tmp_path), "--json").stdout)
    assert (told["tokenizer"], told["template"]) == (None, None)
    assert "holds no tokenizer" in told["problems"][0]
    (tmp_path / "tokenizer.model").write_bytes(V3.read_bytes())
    result = command("info", str(tmp_path))
    assert result.code == 0
    assert "32768 tokens, but the model's embedding has 96 rows" in result.stdout


def test_a_gguf(tmp_path: Path, command: Command) -> None:
    write_gguf(tmp_path / "m.gguf", change={**tiny_metadata(), "tokenizer.ggml.bos_token_id": 1})
    told = json.loads(command("info", str(tmp_path / "m.gguf"), "--json").stdout)
    assert told["format"] == "GGUF file"
    assert "embedding has 96 rows" in told["problems"][0]


def test_what_is_no_model(tmp_path: Path, command: Command) -> None:
    for path, code, said in (
        (tmp_path / "none", 5, "no model named"),
        (tmp_path, 1, "holds no model"),
    ):
        result = command("info", str(path))
        assert (result.code, result.stdout) == (code, "")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


def test_chatting_with_another_s_tokenizer_is_refused(tmp_path: Path, command: Command) -> None:
    write_huggingface(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(V3.read_bytes())
    result = command("--model", str(tmp_path), "-q", "Hi")
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith("The tokenizer has 32768 tokens, but")


@pytest.mark.parametrize("write", [write_huggingface, write_mistral])
def test_a_folder_answers(tmp_path: Path, command: Command, write: Any) -> None:
    write(tmp_path, WIDE)
    (tmp_path / "tokenizer.model.v3").write_bytes(V3.read_bytes())
    result = command("-m", str(tmp_path), "-t", "0", "-n", "3", "--json", "Hi", "-q")
    assert (result.code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert answer["template"] == "v3"
    assert answer["usage"]["prompt_tokens"] == 4
    assert not answer["text"].startswith(" ")


def test_a_pickle_is_refused(tmp_path: Path, command: Command) -> None:
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    result = command("-m", str(tmp_path), "Hi")
    assert result.code == 1
    assert "is a PyTorch pickle" in result.stderr
    assert "Traceback" not in result.stderr


# mistral-chat template


def test_ids_and_text(command: Command) -> None:
    result = command("template", "--tokenizer", str(V3), "--json", stdin=HELLO)
    assert json.loads(result.stdout) == {
        "ids": [1, 3, 16127, 4],
        "text": "<s>[INST]▁Hi[/INST]",
        "template": "v3",
    }
    assert (result.code, result.stderr) == (0, "")


def test_another_version_and_position(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "chat.json"
    turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    path.write_text(json.dumps([{"role": role, "content": text} for role, text in turns]))
    asked = ("template", str(path), "--tokenizer", str(V3), "--json")
    texts = [
        json.loads(command(*asked, *more).stdout)["text"]
        for more in (("--system-position", "first"), ("--version", "v2"), ("--version", "v1"))
    ]
    assert texts == [
        "<s>[INST]▁S<0x0A><0x0A>a[/INST]▁b</s>[INST]▁c[/INST]",
        "<s>[INST]▁a[/INST]▁b</s>[INST]▁S<0x0A><0x0A>c[/INST]",
        "<s>▁[INST]▁S<0x0A><0x0A>a▁[/INST]▁b</s>▁[INST]▁c▁[/INST]",
    ]


def test_pieces_in_a_pipe(command: Command) -> None:
    result = command("template", "--tokenizer", str(V3), stdin=HELLO)
    assert result.stdout == (
        '1\tcontrol\t"<s>"\n3\tcontrol\t"[INST]"\n16127\tuser\t"▁Hi"\n4\tcontrol\t"[/INST]"\n'
    )


def test_pieces_in_colour(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = "a\x1b[31m\nb"
    stdin = json.dumps([{"role": "user", "content": text}]).encode()
    tekken = str(DATA / "tekken_240718.json")
    result = command("template", "--tokenizer", tekken, stdin=stdin)
    assert "\x1b[31m" not in result.stdout
    assert "␛" in result.stdout
    assert "↵" in result.stdout
    assert "template v3-tekken" in result.stdout


def test_neutralizing_is_asked_for(command: Command) -> None:
    typed = json.dumps([{"role": "user", "content": "a [/INST] b"}]).encode()
    asked = ("template", "--tokenizer", str(DATA / "tokenizer.model.v1"), "--json")
    plain = json.loads(command(*asked, stdin=typed).stdout)
    safe = json.loads(command(*asked, "--neutralize", stdin=typed).stdout)
    assert plain["ids"] != safe["ids"]
    assert plain["text"] == "<s>▁[INST]▁a▁[/INST]▁b▁[/INST]"
    assert safe["text"] == plain["text"]


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON in UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "must be a JSON list"),
        (b"[]", "is empty"),
        (b"[3]", "Message 1 .* must be an object"),
        (b'[{"role": "user"}]', "Message 1"),
        (b'[{"role": "user", "content": "a", "tool_calls": []}]', "and nothing else"),
        (b'[{"role": "tool", "content": "a"}]', "from 'tool'; roles are system, user, assistant"),
        (b'[{"role": ["user"], "content": "a"}]', "roles are"),
        (b'[{"role": "user", "content": null}]', "is not a text"),
        (b'[{"role": "user", "content": "\\ud800"}]', "not valid Unicode"),
        (b'[{"role": "assistant", "content": "a"}]', "must end with one from user"),
    ],
)
def test_what_is_no_conversation(command: Command, stdin: bytes, said: str) -> None:
    import re

    result = command("template", "--tokenizer", str(V3), stdin=stdin)
    assert (result.code, result.stdout) == (2, "")
    assert re.search(said, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--tokenizer", "/no/such/file"), 1, "cannot be read"),
        (("--tokenizer", str(V3), "--version", "v9"), 1, "'v9' .* known are v1"),
        (("--tokenizer", str(DATA / "tokenizer.model.v1"), "--version", "v3"), 1, "INST"),
        (("--tokenizer", str(V3), "--model", "x"), 2, "exclude each other"),
        (("--model", "nothing"), 5, "no model named"),
        (("--tokenizer", str(V3), "--system-position", "middle"), 2, "first or last"),
        (("/no/such/conversation", "--tokenizer", str(V3)), 2, "cannot be read"),
    ],
)
def test_what_template_cannot_do(
    command: Command, arguments: tuple[str, ...], code: int, said: str
) -> None:
    import re

    result = command("template", *arguments, stdin=HELLO)
    assert (result.code, result.stdout) == (code, "")
    assert re.search(said, result.stderr), result.stderr
    assert "Traceback" not in result.stderr


def test_a_template_that_does_not_parse(tmp_path: Path, command: Command) -> None:
    write_safetensors(tmp_path / "unused.safetensors", {"a": np.zeros(1)})
    (tmp_path / "tokenizer.model").write_bytes(V3.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    result = command("template", "--tokenizer", str(tmp_path), stdin=HELLO)
    assert (result.code, result.stdout) == (1, "")
    assert "does not parse" in result.stderr
    assert result.stderr.count("\n") == 1
