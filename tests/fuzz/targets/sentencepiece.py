"""``tokenizer.model``: SentencePiece files, as messages of protobuf and as bytes."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mistral_chat.tokenizers import tokenizer_from_gguf

from ..mutation import FLOATS, changed_bytes, unicode_only
from ..target import Target
from ..tiny import PIECES
from ..vocabularies import exercise, write_companions

KINDS = (1, 2, 3, 4, 5, 6)
SHORT_TEXTS = [text for text in unicode_only() if len(text) < 100]


def changed_model(random: Random, data: bytes) -> bytes:
    """The file with pieces, ids or rules of normalizing changed."""
    model = ModelProto()
    model.ParseFromString(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        if random.random() < 0.4 and len(model.pieces):
            _change_pieces(random, model)
        else:
            _change_rules(random, model)
    written: bytes = model.SerializeToString()
    return written


def _change_pieces(random: Random, model: Any) -> None:
    place, kind = random.randrange(len(model.pieces)), random.randrange(5)
    piece = model.pieces[place]
    if kind == 0:
        piece.type = random.choice(KINDS)
    elif kind == 1:
        piece.piece = random.choice(SHORT_TEXTS)
    elif kind == 2:
        piece.score = max(-3e38, min(3e38, random.choice(FLOATS)))
    elif kind == 3:
        del model.pieces[place]
    else:
        text = random.choice(("twice", "<s>", "▁a", "<0x41>", "", "\x00"))
        model.pieces.add(piece=text, score=0.0, type=random.choice(KINDS))


def _change_rules(random: Random, model: Any) -> None:
    trainer, normalizer, kind = model.trainer_spec, model.normalizer_spec, random.randrange(10)
    if kind == 0:
        trainer.model_type = random.choice((1, 2, 3, 4))
    elif kind == 1:
        trainer.byte_fallback = not trainer.byte_fallback
    elif kind == 2:
        trainer.vocab_size = random.choice((0, 1, -1, 2**31 - 1, len(model.pieces)))
    elif kind == 3:
        length = random.choice((0, 1, 3, 4, 5, 8, 64, 1000))
        normalizer.precompiled_charsmap = random.randbytes(length)
    elif kind == 4:
        size = random.choice((0, 4, 8, 1024, 2**32 - 1)).to_bytes(4, "little")
        rest = random.randbytes(random.choice((0, 4, 1024, 1030)))
        normalizer.precompiled_charsmap = size + rest
    elif kind == 5:
        trainer.unk_id = random.choice((-1, 0, 5, 10**6))
        trainer.bos_id = random.choice((-1, 1, 10**6))
        trainer.eos_id = random.choice((-1, 2, -5))
    elif kind == 6:
        normalizer.name = random.choice(("nmt_nfkc", "identity", "x"))
    elif kind == 7:
        for name in ("add_dummy_prefix", "escape_whitespaces", "remove_extra_whitespaces"):
            setattr(normalizer, name, random.random() < 0.5)
    elif kind == 8:
        trainer.treat_whitespace_as_suffix = True
    else:
        model.denormalizer_spec.precompiled_charsmap = random.randbytes(50)


class SentencePiece(Target):
    """SentencePiece files, with their companions."""

    name = "sentencepiece"

    def make(self) -> None:
        tokenizer_from_gguf(PIECES).save(self.folder)
        self.data = (self.folder / "tokenizer.model").read_bytes()

    def case(self, random: Random, scratch: Path) -> None:
        change = changed_model if random.random() < 0.6 else changed_bytes
        (scratch / "tokenizer.model").write_bytes(change(random, self.data))
        write_companions(random, scratch)
        exercise(random, scratch)


TARGET = SentencePiece
