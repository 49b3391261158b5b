"""``mistral-chat quantize-weights`` and ``perplexity``."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import mistral_common
import numpy as np
import pytest

import quant
from mistral_chat.errors import UsageError
from mistral_chat.models.names import recommended_sampling
from mistral_chat.models.texts import LENGTH, calibration_text, held_out_text, pieces
from mistral_chat.tokenizers import load_tokenizer
from quant.quantizers.divergence import log_softmax

from ...quant.models import TINY, write_gguf, write_huggingface
from ..conftest import Command

V3 = Path(mistral_common.__file__).parent / "data/mistral_instruct_tokenizer_240323.model.v3"
WIDE = replace(TINY, vocab_size=32768, max_position_embeddings=1024)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    write_huggingface(folder, WIDE, dtype="BF16")
    (folder / "tokenizer.model.v3").write_bytes(V3.read_bytes())
    return folder


def test_two_paths_are_enough(source: Path, tmp_path: Path, command: Command) -> None:
    target = tmp_path / "small"
    (source / "generation_config.json").write_text('{"top_k": 3, "top_p": null, "eos_token_id": 2}')
    result = command("quantize-weights", str(source), str(target))
    assert result.code == 0
    assert "method gptq" in result.stdout
    assert "Against the source, over " in result.stdout
    assert "Quantizing ..." in result.stderr
    assert "Comparing with the source ..." in result.stderr
    answer = command("-m", str(target), "-q", "-t", "0", "-n", "3", "--json", "Hi")
    assert json.loads(answer.stdout)["template"] == "v3"
    complaints: list[str] = []
    for folder in (target, source):
        assert recommended_sampling(folder, complaints.append) == {"top_k": 3}
    assert complaints == []
    told = json.loads(command("info", str(target), "--json").stdout)
    assert told["tensors"] == {
        "int4 asymmetric in groups of 64": 14,
        "F32": 5,
        "int8 asymmetric in groups of 64": 2,
    }
    assert told["receipt"]["check"]["kl_mean"] > 0
    assert told["problems"] == []


def test_what_may_be_asked_for(source: Path, tmp_path: Path, command: Command) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words to calibrate with. " * 60)
    target = tmp_path / "small"
    result = command(
        "quantize-weights", str(source), str(target), "--bits", "8", "--group-size", "32",
        "--method", "mse", "--symmetric", "--head-bits", "4", "--tensor", "*.down=4",
        "--calibrate", str(text), "--no-check", "--json", "-q",
    )  # fmt: skip
    assert (result.code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert (told["method"], told["check"]) == ("mse", None)
    assert 4.5 < told["bits_per_weight"] < 9
    assert told["source_bytes_per_second"] > 0
    checkpoint = quant.checkpoints.NativeCheckpoint(target)
    assert checkpoint.describe("head")[1] == quant.QuantSpec(4, 32, symmetric=True)
    assert checkpoint.describe("layers.0.q")[1] == quant.QuantSpec(8, 32, symmetric=True)
    assert checkpoint.describe("layers.1.down")[1] == quant.QuantSpec(4, 32, symmetric=True)
    again = command("quantize-weights", str(source), str(target), "--method", "rtn")
    assert (again.code, again.stdout) == (1, "")
    assert "exists already" in again.stderr
    forced = command("quantize-weights", str(source), str(target), "--method", "rtn", "--force")
    assert forced.code == 0


def test_what_is_quantized_already(source: Path, tmp_path: Path, command: Command) -> None:
    small, smaller = tmp_path / "small", tmp_path / "smaller"
    asked = ("--method", "rtn", "--no-check", "-q")
    command("quantize-weights", str(source), str(small), "--bits", "8", *asked)
    result = command("quantize-weights", str(small), str(smaller), *asked)
    assert (result.code, result.stdout) == (2, "")
    assert "is quantized already" in result.stderr
    assert command("quantize-weights", str(small), str(smaller), *asked, "--requantize").code == 0


def test_a_gguf_is_taken_over_as_it_is(tmp_path: Path, command: Command) -> None:
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_file=str(V3))
    vocabulary = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [library.id_to_piece(i) for i in range(32768)],
        "tokenizer.ggml.scores": [library.get_score(i) for i in range(32768)],
        "tokenizer.ggml.token_type": [
            6 if library.is_byte(i) else 3 if library.is_control(i) else 2 if i == 0 else 1
            for i in range(32768)
        ],
    }
    path = tmp_path / "m.gguf"
    write_gguf(path, WIDE, kind=gguf.GGMLQuantizationType.Q4_0, change=vocabulary)
    result = command("quantize-weights", str(path), str(tmp_path / "native"), "--json", "-q")
    told = json.loads(result.stdout)
    assert told["method"] == "lossless"
    assert told["check"]["kl_mean"] < 1e-6
    assert told["check"]["top_token_agreement"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--bits", "5"), 2, "4 or 8 bits, not 5"),
        (("--group-size", "48"), 2, "32, 64 or 128"),
        (("--group-size", "128"), 1, "Groups of 128 do not divide 64 columns"),
        (("--method", "best"), 2, "'best'"),
        (("--tensor", "down"), 2, "PATTERN=BITS"),
        (("--calibrate", "/no/such/text"), 2, "cannot be read"),
    ],
)
def test_what_cannot_be_done(
    source: Path, tmp_path: Path, command: Command, arguments: tuple[str, ...], code: int, said: str
) -> None:
    result = command("quantize-weights", str(source), str(tmp_path / "small"), *arguments, "-q")
    assert (result.code, result.stdout) == (code, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("text", "said"), [(b"too short", "has only"), (b"\xff" * 99, "not UTF-8")]
)
def test_a_text_that_does_not_do(
    source: Path, tmp_path: Path, command: Command, text: bytes, said: str
) -> None:
    (tmp_path / "text").write_bytes(text)
    asked = ("--calibrate", str(tmp_path / "text"), "-q")
    result = command("quantize-weights", str(source), str(tmp_path / "small"), *asked)
    assert (result.code, result.stdout) == (2, "")
    assert said in result.stderr


def test_methods_side_by_side(source: Path, home: Path, command: Command) -> None:
    result = command("quantize-weights", str(source), "--compare", "--json", "-q")
    assert (result.code, result.stderr) == (0, "")
    rows = json.loads(result.stdout)
    assert [row["method"] for row in rows] == ["rtn", "mse", "gptq"]
    kl = [row["check"]["kl_mean"] for row in rows]
    assert kl[2] < kl[0]
    assert not [path for path in home.rglob("*") if path.is_file()]
    shown = command("quantize-weights", str(source), "--compare", "--no-check")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == [
        "method", "rtn", "mse", "gptq",
    ]  # fmt: skip
    assert "Quantizing (gptq) ..." in shown.stderr
    for wrong in ([], ["somewhere", "--compare"]):
        assert command("quantize-weights", str(source), *wrong).code == 2


def test_perplexity_and_distance(source: Path, tmp_path: Path, command: Command) -> None:
    small = tmp_path / "small"
    asked = ("--method", "rtn", "--no-check", "-q", "--bits", "8", "--group-size", "32")
    command("quantize-weights", str(source), str(small), *asked)
    result = command("perplexity", str(small), "--against", str(source), "--json", "-q")
    assert (result.code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    # A random model knows nothing: each of its 32768 tokens is about as likely as the others.
    assert 10_000 < told["perplexity"] < 200_000
    assert told["tokens"] > 500
    assert 0 < told["against"]["kl_mean"] < 0.01
    assert told["against"]["top_token_agreement"] > 0.8
    shown = command("perplexity", str(small), "-", stdin=b"A few words. " * 30)
    assert shown.stdout.startswith(f"{small}: perplexity ")
    assert "Reading ..." in shown.stderr


def test_perplexity_is_that_of_the_logits(source: Path, tmp_path: Path, command: Command) -> None:
    text = "The quick brown fox. " * 40
    told = json.loads(command("perplexity", str(source), "-", "--json", stdin=text.encode()).stdout)
    ids = [1, *load_tokenizer(source).encode(text)]
    model = quant.load(source, quant.QuantSpec())
    logits = model.session(max_context=len(ids)).feed(ids, every=True)[:-1].astype(np.float64)
    chosen = logits[np.arange(len(logits)), ids[1:]]
    loss = (np.log(np.exp(logits).sum(1)) - chosen).mean()
    assert told["tokens"] == len(ids) - 1
    assert told["perplexity"] == pytest.approx(float(np.exp(loss)), rel=1e-5)
    # In parts it is the same, to the last bit, as all at once.
    whole = log_softmax(model.session(max_context=len(ids)).feed(ids, every=True)[:-1])
    loss = -float(whole[np.arange(len(whole)), ids[1:]].sum())
    assert told["perplexity"] == math.exp(loss / len(whole))


def test_perplexity_of_nothing(source: Path, command: Command) -> None:
    result = command("perplexity", str(source), "-", stdin=b"")
    assert (result.code, result.stdout) == (2, "")
    assert "has only 0 tokens" in result.stderr


def test_the_package_s_texts() -> None:
    tokenizer = load_tokenizer(V3)
    calibration, held_out = calibration_text(), held_out_text()
    assert len(tokenizer.encode(calibration)) > 2500
    assert len(tokenizer.encode(held_out)) > 800
    sentences = {line for line in calibration.split("\n") if len(line) > 40}
    assert not sentences & set(held_out.split("\n"))


def test_pieces_of_a_text() -> None:
    tokenizer: Any = SimpleNamespace(
        encode=lambda text: list(range(len(text))), adds_bos=True, bos_id=7
    )
    parts = pieces(tokenizer, "x" * (LENGTH + 100))
    assert [part[0] for part in parts] == [7, 7]
    assert [len(part) for part in parts] == [LENGTH, 102]
    assert [part[1:3] for part in parts] == [[0, 1], [LENGTH - 1, LENGTH]]
    tokenizer.adds_bos = False
    assert list(map(len, pieces(tokenizer, "x" * (LENGTH + 1)))) == [LENGTH]
    with pytest.raises(UsageError, match=r"only 3 tokens; .* at least 10"):
        pieces(tokenizer, "xxx", 10)
