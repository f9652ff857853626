"""Four small-GPT research systems on one JAX core.

What `jaxgpt.api` offers is here too, loaded on first use: importing jaxgpt is cheap.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxgpt.api import CheckError, LogProb, Run, Sample, UserError, load

__all__ = [
    "CheckError",
    "LogProb",
    "Run",
    "Sample",
    "UserError",
    "config",
    "convert",
    "gssm",
    "load",
    "memory",
    "train",
]


class _Callable(types.ModuleType):
    """A module that can be called, as the function of `jaxgpt.api` with its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module("jaxgpt.api"), name)(*args, **kwargs)


class _Package(types.ModuleType):
    """Makes jaxgpt.train a module, as `python -m` needs it, that can be called."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'jaxgpt' has no attribute {name!r}")
        if name in ("config", "convert", "gssm", "memory", "train"):
            return importlib.import_module(f"jaxgpt.{name}")
        return getattr(importlib.import_module("jaxgpt.api"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system sets every submodule, whoever imports it first.
        if name in ("config", "convert", "train"):
            value.__class__ = _Callable
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *__all__})


sys.modules[__name__].__class__ = _Package
