"""What a verdict costs, beside reading the same prompt.

    python benchmarks/moderation.py ~/.local/share/mistral-chat/models/smollm2 --json verdict.json

The model reads a prompt of about 200 tokens with the classification text around it, and judges it,
in turns (A B A B); the ratio of the medians is what moderation costs beyond reading. Then the same
for a second text, when the classification prompt's beginning is in the cache already.

Then the set of examples that ships is judged, one text after the other and several at once, in
turns as well; their verdicts are the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import quant
from mistral_chat.engines.local import ChatEngine
from mistral_chat.guardrail.categories import PRESETS
from mistral_chat.guardrail.evaluation import SHIPPED, read_examples, shipped_examples
from mistral_chat.guardrail.moderation import Moderator, Said, open_moderator
from mistral_chat.guardrail.prompt import Verdict
from mistral_chat.messages import Role
from mistral_chat.models.names import open_tokenizer
from mistral_chat.templates import template_for

SENTENCE = "The ferry leaves at nine, if the wind allows, and takes letters, apples and two goats. "


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--at-once", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = quant.load(options.model)
    tokenizer = open_tokenizer(options.model)
    engine = ChatEngine(
        model, tokenizer, template_for(tokenizer), str(options.model), quant.SessionOptions(64)
    )
    text = ""
    while len(tokenizer.encode(text)) < options.tokens:
        text += SENTENCE
    report = []
    print("categories   tokens  prefill ms  verdict ms  ratio  second text ms")
    for preset in PRESETS:
        entry = measure(engine, open_moderator(engine, preset), text, options.rounds)
        report.append({"categories": preset, **entry})
        print(
            f"{preset:<12} {entry['tokens']:6.0f} {entry['prefill'] * 1e3:11.1f} "
            f"{entry['verdict'] * 1e3:11.1f} {entry['ratio']:6.2f} {entry['second'] * 1e3:15.1f}"
        )
    found = measure_many(engine, options.at_once, options.rounds)
    for at_once, seconds in found.items():
        print(f"all examples, {at_once} at once: {seconds:.2f} s, {found[1] / seconds:.2f} times")
    if options.json:
        told = {"verdicts": report, "examples": found}
        options.json.write_text(json.dumps(told), encoding="utf-8")


def measure(engine: ChatEngine, moderator: Moderator, text: str, rounds: int) -> dict[str, float]:
    """Seconds of a prefill, of a verdict from nothing and of one on another text."""
    verdict = moderator.judge(text)
    if verdict is None:
        raise RuntimeError("nobody cancelled, and yet there is no verdict")
    session = engine.model.session(len(verdict.ids) + 64)
    session.feed(verdict.ids)
    seconds: dict[str, list[float]] = {"prefill": [], "verdict": [], "second": []}
    for _ in range(rounds):
        session.trim(0)
        start = time.perf_counter()
        session.feed(verdict.ids)
        seconds["prefill"].append(time.perf_counter() - start)
        # A moderator of its own each time: nothing is in its cache.
        moderator = open_moderator(engine, moderator.taxonomy.source)
        start = time.perf_counter()
        moderator.judge(text)
        seconds["verdict"].append(time.perf_counter() - start)
        start = time.perf_counter()
        moderator.judge("Then again: " + text[: -len("Then again: ")], Role.USER)
        seconds["second"].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["prefill"], seconds["verdict"], strict=True)]
    return {"tokens": len(verdict.ids), **medians, "ratio": statistics.median(ratios)}


def measure_many(engine: ChatEngine, counts: Sequence[int], rounds: int) -> dict[int, float]:
    """Median seconds in which the examples are judged: by :meth:`Moderator.judge` one after the
    other, which is 1, and so many at once.
    """
    taxonomy = open_moderator(engine, None).taxonomy
    texts = [Said(each.text) for each in read_examples(shipped_examples(), SHIPPED, taxonomy)]
    seconds: dict[int, list[float]] = {at_once: [] for at_once in (1, *counts)}
    found: dict[int, list[Verdict | None]] = {}
    for _ in range(rounds):
        for at_once in seconds:
            moderator = open_moderator(engine, None)
            start = time.perf_counter()
            if at_once == 1:
                found[1] = [moderator.judge(each.text) for each in texts]
            else:
                found[at_once] = list(moderator.judge_all(texts, at_once))
            seconds[at_once].append(time.perf_counter() - start)
            if found[at_once] != found[1]:
                raise RuntimeError("company has changed a verdict")
    return {at_once: statistics.median(times) for at_once, times in seconds.items()}


if __name__ == "__main__":
    main()
