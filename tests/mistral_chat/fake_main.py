"""The command with an engine that answers from FAKE_ANSWERS (a JSON list), for real terminals."""

import json
import os

from fakes import FakeEngine

from mistral_chat.cli import main
from mistral_chat.engines.local import ChatEngine

if __name__ == "__main__":
    engine = FakeEngine(json.loads(os.environ["FAKE_ANSWERS"]))
    engine.session.max_context = int(os.environ.get("FAKE_CONTEXT", "100"))
    engine.rules = json.loads(os.environ.get("FAKE_RULES", "{}"))
    ChatEngine.open = classmethod(
        lambda cls, settings, paths, progress, ignore_memory=False: engine
    )
    main()
