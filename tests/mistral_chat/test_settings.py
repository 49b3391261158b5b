"""Where settings come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mistral_chat.errors import UsageError
from mistral_chat.settings import Paths, Settings, resolve, setting


def write_config(paths: Paths, text: str) -> None:
    paths.config.mkdir(parents=True)
    paths.config_file.write_text(text, encoding="utf-8")


def test_defaults_hold_where_nothing_is_said(paths: Paths) -> None:
    assert resolve({}, {}, paths) == Settings()


def test_flag_beats_environment_beats_file_beats_default(paths: Paths) -> None:
    write_config(paths, 'model = "file"\ncontext = 100\ntemperature = 1\n')
    environ = {"MISTRAL_CHAT_MODEL": "variable", "MISTRAL_CHAT_CONTEXT": "200"}
    settings = resolve({"model": "flag", "context": None}, environ, paths)
    assert (settings.model, settings.context, settings.temperature) == ("flag", 200, 1.0)
    assert settings.source("model") == "--model"
    assert settings.source("context") == "MISTRAL_CHAT_CONTEXT"
    assert settings.source("temperature") == str(paths.config_file)
    assert settings.source("top_p") == "default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = ", "not valid TOML"),
        ("temprature = 1", "did you mean 'temperature'"),
        ("temperature = 'hot'", "must be a number"),
        ("temperature = nan", "at least 0"),
        ("context = true", "must be a whole number"),
        ("context = 0", "at least 1"),
        ("kv = 'f8'", "f16 or int8"),
    ],
)
def test_a_bad_file_is_one_sentence_and_code_2(
    paths: Paths, command: Callable[..., Any], text: str, said: str
) -> None:
    write_config(paths, text)
    result = command("hello")
    assert result.code == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert str(paths.config_file) in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_that_is_not_utf8_is_refused(paths: Paths) -> None:
    paths.config.mkdir(parents=True)
    paths.config_file.write_bytes(b"system = '\xff'")
    with pytest.raises(UsageError, match="UTF-8"):
        resolve({}, {}, paths)


def test_a_bad_variable_is_named(paths: Paths) -> None:
    with pytest.raises(UsageError, match="MISTRAL_CHAT_THREADS: threads must be a whole number"):
        resolve({}, {"MISTRAL_CHAT_THREADS": "many"}, paths)


def test_home_puts_everything_below_one_folder(tmp_path: Path) -> None:
    paths = Paths.from_environment({"MISTRAL_CHAT_HOME": str(tmp_path)})
    assert {paths.config, paths.data, paths.state, paths.cache} == {
        tmp_path / name for name in ("config", "data", "state", "cache")
    }


def test_without_home_the_platform_decides() -> None:
    paths = Paths.from_environment({})
    assert "mistral-chat" in str(paths.data)


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UsageError, match="'top_p'"):
        setting("topp")
