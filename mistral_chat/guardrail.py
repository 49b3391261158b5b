"""The paper's guardrail: a system prompt that keeps a model within bounds.

Mistral 7B (arXiv 2310.06825), section 5.1. With it the paper's model declined all of 175 unsafe
prompts, at some cost in MT-Bench (6.58 against 6.84).
"""

from __future__ import annotations

OFF, PROMPT = "off", "prompt"
MODES = (OFF, PROMPT)

GUARDRAIL_PROMPT = (
    "Always assist with care, respect, and truth. Respond with utmost utility yet securely. Avoid "
    "harmful, unethical, prejudiced, or negative content. Ensure replies promote fairness and "
    "positivity."
)


def system_prompt(mode: str, own: str | None) -> str | None:
    r"""The system prompt of a talk: the guardrail's text where ``mode`` has one, then the person's.

    It is a system message like any other, so each template places it by its own rule, and nothing
    that is typed as a message can take it away.

    >>> system_prompt("off", "Be brief")
    'Be brief'
    >>> system_prompt("prompt", "Be brief").endswith("positivity.\n\nBe brief")
    True
    """
    texts = [GUARDRAIL_PROMPT] if mode == PROMPT else []
    texts += [own] if own else []
    return "\n\n".join(texts) or None
