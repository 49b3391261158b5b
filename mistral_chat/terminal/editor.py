"""The person's own editor, for a text that is changed."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from mistral_chat.errors import UsageError
from mistral_chat.system.files import without_mark


def edit_text(text: str, folder: Path) -> str:
    """``text`` as the person's editor leaves it. Raises UsageError where the editor fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(suffix=".md", dir=folder)  # for its owner only
    path = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        try:
            code = subprocess.run([*shlex.split(editor), name], check=False).returncode
        except (OSError, ValueError) as error:
            raise UsageError(
                f"The editor {editor!r} cannot be started; set EDITOR to one that can."
            ) from error
        if code != 0:
            raise UsageError(f"The editor {editor!r} ended with code {code}; nothing was changed.")
        # A mark that an editor puts first is no part of the text; what is no text shows.
        data = without_mark(path.read_bytes(), "What was edited")
        return data.decode("utf-8", "replace").rstrip("\n")
    finally:
        path.unlink(missing_ok=True)
