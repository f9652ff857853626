"""The seam by which a system adds options of its own to jaxgpt.sample.

Modules that define `SampleOptions` import no JAX at their top: options are parsed, and
--help is printed, before anything heavy is loaded.
"""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from jaxgpt.sampling.options import check_left_to_right, check_one_by_one
from jaxgpt.systems.diffusion import options as diffusion
from jaxgpt.systems.registry import ANY_ORDER, LEFT_TO_RIGHT, MASKED
from jaxgpt.systems.sigma import options

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict

    from jaxgpt.data.tokenizers import Tokenizer
    from jaxgpt.sampling.state import SamplerOutput

OPTIONS = ("jaxgpt.systems.memory.options:MemoryOptions",)


class SampleSession(Protocol):
    """Generates in place of the system where options ask for it."""

    def instead(self) -> tuple[dict[str, Any], str] | None:
        """Does what is asked for instead of generating: returns it as JSON and text."""

    def sample(
        self, *arguments: Any, shown: Callable[[np.ndarray], int]
    ) -> SamplerOutput:
        """Generates as `System.sample`, with its arguments.

        Args:
          *arguments: those of `System.sample`.
          shown: how many tokens of a text [T] the user is shown: those up to --stop.
        """

    def describe(
        self,
        samples: list[dict[str, Any]],
        output: SamplerOutput,
        prompt_length: int,
        tokenizer: Tokenizer | None,
    ) -> None:
        """Adds its figures to the JSON object of each sample."""

    def show(self, sample: dict[str, Any]) -> list[str]:
        """Returns the lines to print below a sample's text."""

    def close(self) -> None:
        """Is called at the end, whatever happened."""


class SampleOptions(Protocol):
    """Options that a system adds.

    Attributes:
      system: whose runs --help shows them for.
      title: of their group.
    """

    system: str
    title: str

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Adds them to a group of a parser."""

    def check(self, args: argparse.Namespace) -> None:
        """Raises UserError if they are incompatible with each other or others."""

    def overrides(self, config: ConfigDict, args: argparse.Namespace) -> dict[str, str]:
        """Returns config fields that a run is to be opened with, unless others are set.

        Raises:
          UserError: for a file that cannot be read.
        """

    def open(self, run: Any, args: argparse.Namespace) -> SampleSession | None:
        """Returns a session for a run; None if no option is set.

        Raises:
          UserError: if they are not for this system, or cannot be carried out.
        """


def check_sampling(system: str, args: argparse.Namespace) -> None:
    """Checks --sampler, --order and what goes with them before anything is loaded.

    Args:
      system: the name of the run's; one that is not ours checks once it is loaded.
      args: of jaxgpt.sample.

    Raises:
      UserError: if the system would refuse them.
    """
    if system in ANY_ORDER:
        options.check_sampling(args)
    elif system in MASKED:
        diffusion.check_sampling(args)
    elif system in LEFT_TO_RIGHT:
        check_left_to_right(args.order)
        check_one_by_one(args)


def sample_options() -> list[SampleOptions]:
    """Returns the options of every system that has some."""
    return [pkgutil.resolve_name(name)() for name in OPTIONS]
