"""What is told of each line, as JSON: its answer, or why there is none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from mistral_chat.batch.requests import Named, Request
from mistral_chat.engines.many import Answered
from mistral_chat.errors import sentence
from mistral_chat.guardrail.judging import Judged

Record = dict[str, object]

_OPENAI_REASONS = {"stop": "stop", "refused": "content_filter"}
"""OpenAI's words for how an answer ended; all else is ``length``: there was more to say."""


def answer_record(
    line: int, request: Request, answered: Answered, judged: Sequence[Judged], model: str
) -> Record:
    """The record of an answer to the line of that number.

    A plain line's has ``line``, its ``id``, ``text``, ``finish_reason``, ``usage``, ``seed`` and,
    where the guardrail judged, ``verdicts``; one in OpenAI's format the form of its result files.
    """
    if request.named.openai:
        return _openai_answer(line, request, answered, model)
    record: Record = {"line": line}
    if request.named.name is not None:
        record["id"] = request.named.name
    record |= {
        "text": answered.text,
        "finish_reason": answered.finish_reason,
        "usage": asdict(answered.usage),
        "seed": answered.seed,
    }
    if judged:
        record["verdicts"] = [each.record() for each in judged]
    return record


def error_record(line: int, named: Named, error: BaseException) -> Record:
    """The record of a line that could not be answered: ``error`` is a sentence."""
    if named.openai:
        body = {"error": {"message": sentence(error), "type": "invalid_request_error"}}
        return {**_openai(line, named, 400, body), "error": None}
    own = {} if named.name is None else {"id": named.name}
    return {"line": line, **own, "error": sentence(error)}


def is_error(record: Mapping[str, object]) -> bool:
    """Whether a record is that of a line which could not be answered."""
    response = record.get("response")
    if isinstance(response, dict):
        return response.get("status_code") != 200
    return "error" in record


def is_refused(record: Mapping[str, object]) -> bool:
    """Whether the guardrail refused a line or its answer."""
    response = record.get("response")
    if isinstance(response, dict):
        choices = response.get("body", {}).get("choices") or [{}]
        return bool(choices[0].get("finish_reason") == "content_filter")
    return record.get("finish_reason") == "refused"


def _openai_answer(line: int, request: Request, answered: Answered, model: str) -> Record:
    usage = answered.usage
    body = {
        "id": f"chatcmpl-{line}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answered.text},
                "logprobs": None,
                "finish_reason": _OPENAI_REASONS.get(answered.finish_reason, "length"),
            }
        ],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
    }
    return {**_openai(line, request.named, 200, body), "error": None}


def _openai(line: int, named: Named, status: int, body: object) -> Record:
    return {
        "id": f"batch_req_{line}",
        "custom_id": named.name,
        "response": {"status_code": status, "request_id": f"req_{line}", "body": body},
    }
