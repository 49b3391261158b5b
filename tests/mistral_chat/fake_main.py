"""The command with an engine that answers from FAKE_ANSWERS (a JSON list), for real terminals."""

import json
import os

from mistral_chat.cli import main
from mistral_chat.engines import opening
from tests.mistral_chat.fakes import FakeEngine

if __name__ == "__main__":
    engine = FakeEngine(json.loads(os.environ["FAKE_ANSWERS"]))
    engine.session.max_context = int(os.environ.get("FAKE_CONTEXT", "100"))
    engine.delay = float(os.environ.get("FAKE_DELAY", "0"))
    engine.rules = json.loads(os.environ.get("FAKE_RULES", "{}"))
    opening.open_engine = lambda settings, paths, progress, ignore_memory=False: engine
    main()
