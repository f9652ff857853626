"""Config fields of the device mesh."""

from __future__ import annotations

import dataclasses
import functools

from jaxgpt.config import OptionGroup, option

_resumable = functools.partial(option, resumable=True)


@dataclasses.dataclass(frozen=True)
class MeshConfig(OptionGroup):
    """Devices along each axis; checkpoints have one layout, so a resume may change it.

    What the devices must satisfy is checked by `sharding.make_mesh`, which knows them.
    """

    data: int = _resumable(
        0, "devices that split a batch; 0 is all that fsdp and tensor leave", min=0
    )
    fsdp: int = _resumable(
        1, "devices that split a batch, and parameters and moments too", min=1
    )
    tensor: int = _resumable(
        1, "devices that split heads, feed-forwards and the vocabulary", min=1
    )
