"""What every test needs: compiled kernels that are kept from run to run, apart from the user's."""

from __future__ import annotations

import os
from pathlib import Path

# Before Numba is imported: without a GPU its kernels run under the simulator.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

import pytest
from hypothesis import HealthCheck, settings

from mistral_chat.models import names as models
from mistral_chat.settings import Paths

# No test asserts a time, and these machines are shared.
settings.register_profile(
    "shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared-machine")


def pytest_configure(config: pytest.Config) -> None:
    for size in ("COLUMNS", "LINES"):
        # Parallel workers inherit the size of no terminal at all.
        os.environ.pop(size, None)
    cache = getattr(config, "cache", None)  # absent with -p no:cacheprovider
    if cache is not None and "MISTRAL_CHAT_KERNEL_CACHE" not in os.environ:
        # Tests give each command a home of its own; compiling there each time would take minutes.
        os.environ["MISTRAL_CHAT_KERNEL_CACHE"] = str(cache.mkdir("kernels"))


@pytest.fixture(scope="session")
def default_model_home(request: pytest.FixtureRequest) -> Path:
    """A home with the default model, fetched by the product's own code and kept across runs."""
    cache = request.config.cache
    if cache is None:
        raise pytest.UsageError("the tests of the default model need pytest's cache")
    folder = cache.mkdir("mistral-chat-home")
    paths = Paths.from_environment({"MISTRAL_CHAT_HOME": str(folder)})
    models.locate("smollm2", paths, lambda label, done, total: None)
    return folder
