"""Every import and export format by its name in `--format`.

A new one is a module with a `Format`, and a line here.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from jaxgpt.errors import require

if TYPE_CHECKING:
    from jaxgpt.interop.base import Format

# As text, so that a command's --help can list them without loading JAX.
FORMATS = {
    "gpt2": "jaxgpt.interop.gpt2:GPT2",
    "nanogpt": "jaxgpt.interop.nanogpt:NANOGPT",
    "sigma-gpt": "jaxgpt.interop.nanogpt:SIGMA_GPT",
    "teenygpt": "jaxgpt.interop.teenygpt:FORMAT",
    "nanollama": "jaxgpt.interop.nanollama:FORMAT",
    "nanollama-later": "jaxgpt.interop.nanollama:LATER",
}


def get_format(name: str) -> Format:
    """Returns the format of this name; UserError for an unknown one."""
    require(name in FORMATS, "format", f"one of {', '.join(FORMATS)}", name)
    return pkgutil.resolve_name(FORMATS[name])
