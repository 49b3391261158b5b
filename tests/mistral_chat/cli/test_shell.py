"""``config``, ``doctor``, ``completions``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mistral_chat.cli.shell import candidates
from mistral_chat.doctor import commands_on_path
from mistral_chat.settings import Paths, all_settings
from mistral_chat.talk.sessions import SessionFile
from mistral_chat.terminal.shells import SCRIPTS

from ..conftest import Command


def test_config_tells_where_each_value_comes_from(
    command: Command, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.config.mkdir(parents=True)
    paths.config_file.write_text("top_k = 5\nplain = true\n")
    monkeypatch.setenv("MISTRAL_CHAT_TOP_P", "0.5")
    monkeypatch.setenv("MISTRAL_CHAT_LOOP_DETECTOR", "off")
    told = json.loads(command("config", "--min-p", "0.1", "--no-cache", "--json").stdout)
    rows = {row["name"]: (row["value"], row["source"]) for row in told["settings"]}
    assert rows["top_k"] == (5, str(paths.config_file))
    assert rows["plain"] == (True, str(paths.config_file))
    assert rows["top_p"] == (0.5, "MISTRAL_CHAT_TOP_P")
    assert rows["loop_detector"] == (False, "MISTRAL_CHAT_LOOP_DETECTOR")
    assert rows["min_p"] == (0.1, "--min-p")
    assert rows["cache"] == (False, "--cache")
    assert rows["seed"] == (None, "default")
    assert list(rows) == [row.name for row in all_settings()]
    shown = command("config")
    assert f"plain               on  ({paths.config_file})" in shown.stdout
    assert str(paths.config_file) in shown.stderr


def test_a_word_that_is_neither_on_nor_off(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISTRAL_CHAT_PLAIN", "perhaps")
    result = command("config")
    assert (result.code, result.stdout) == (2, "")
    assert "MISTRAL_CHAT_PLAIN: plain must be on or off, not 'perhaps'." in result.stderr


def test_doctor(command: Command, home: Path) -> None:
    told = json.loads(command("doctor", "--json").stdout)
    assert told["threads"] >= 1
    assert told["instruction_set"]
    assert told["folders"]["data"] == str(home / "data")
    assert told["models"] == {}
    assert any("No model is here yet" in problem for problem in told["problems"])
    shown = command("doctor")
    assert "kernels" in shown.stdout
    assert shown.code == 0
    assert not (home / "data").exists()


def test_two_commands_of_one_name(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "none"]
    for folder in folders[:2]:
        folder.mkdir()
        (folder / "mistral-chat").write_text("#!/bin/sh\n")
        (folder / "mistral-chat").chmod(0o755)
    path = os.pathsep.join(map(str, [*folders, folders[0]]))
    assert commands_on_path(path) == [str(folder / "mistral-chat") for folder in folders[:2]]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["mod"], ["models", "moderate"]),
        (["sessions", "ex"], ["export"]),
        (["sessions", "export", "wo"], ["work"]),
        (["--session", ""], ["work"]),
        (["-m", "sm"], ["smollm2"]),
        (["info", "mistral-7b-instruct-v0.3"], ["mistral-7b-instruct-v0.3"]),
        (["chat", "--kv", ""], ["f16", "int8"]),
        (["--on-full", "s"], ["slide", "stop", "summarize"]),
        (["pull", "--qu"], ["--quantize", "--quiet"]),
        (["completions", "z"], ["zsh"]),
        (["complet"], ["completions"]),
        (["what", "is"], []),
    ],
)
def test_what_may_follow(paths: Paths, words: list[str], found: list[str]) -> None:
    session = SessionFile.open(paths.sessions / "work.jsonl")
    session.record("turn", user="a", assistant="b")
    session.close()
    assert candidates(words, paths) == found


def test_the_scripts_are_printed(command: Command) -> None:
    for shell, script in SCRIPTS.items():
        assert command("completions", shell).stdout == script
    assert command("completions", "csh").code == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "mistral-chat").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m mistral_chat "$@"\n'
    )
    (tmp_path / "mistral-chat").chmod(0o755)
    script = SCRIPTS["bash"] + (
        "COMP_WORDS=(mistral-chat sessions ex); COMP_CWORD=2; _mistral_chat\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "export\n"
