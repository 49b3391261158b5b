"""What is fuzzed: a target makes what it needs, and then carries out one case after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from random import Random

import quant
from quant.errors import QuantError


class WrongResultError(AssertionError):
    """A case went through, and its result breaks what must hold."""


def require(condition: bool, told: str) -> None:
    """Raise WrongResultError unless ``condition`` holds."""
    if not condition:
        raise WrongResultError(told)


class Target(ABC):
    """One kind of input, with everything that is done with it.

    It is made once, in the process that watches: ``folder`` is where it puts the files that it
    changes later. :meth:`start` is called in each process that carries out cases, for what a fork
    does not carry over, such as threads.
    """

    name: str
    short = 100
    """Cases of a short run."""
    seconds = 5.0
    """Seconds of processor time that a case may take."""
    system_errors: tuple[type[OSError], ...] = ()
    """Errors of the operating system that count as refusals."""
    kernels: tuple[str, ...] = ()
    """Types of caches whose kernels are loaded, or compiled, before any case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kind in self.kernels:
            quant.compile_kernels(kind)
        self.make()

    def refusals(self) -> tuple[type[Exception], ...]:
        """The errors that refuse an input."""
        return (QuantError, *self.system_errors)

    def make(self) -> None:  # noqa: B027 - some change no files
        """Make the files that cases change."""

    def start(self) -> None:  # noqa: B027 - most have nothing that is theirs alone
        """Make what belongs to one process alone."""

    @abstractmethod
    def case(self, random: Random, scratch: Path) -> None:
        """Carry out a case that depends on ``random`` alone; ``scratch`` is an empty folder.

        Raises QuantError where the input is refused; anything else raised is a fault.
        """
