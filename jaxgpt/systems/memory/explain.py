"""Which memories a token was predicted with, and the text they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.sampling.state import SamplerOutput

if TYPE_CHECKING:
    from jaxgpt.systems.memory.session import Memory

BEFORE, AFTER = 8, 3
MOST = 3


def used(
    memory: Memory | None,
    filled: SamplerOutput,
    row: int,
    given: int,
    tokenizer: Tokenizer | None,
) -> list[dict[str, Any]]:
    """Returns for each generated token what it was predicted with, most used first.

    Each is {"token", "memories": [{"weight", "document", "position", "text"}]}; the
    text is of the source, around that position.
    """
    assert memory is not None and filled.memories is not None
    show = lambda ids: tokenizer.decode(ids) if tokenizer else str(ids.tolist())
    result = []
    for place in range(given, filled.tokens_BT.shape[1]):
        memories = []
        for weight, document, position in filled.memories[row][place][:MOST]:
            text = memory.texts[document]
            if len(filled.tokens_BT) > 1:  # Rows of one document differ in text.
                text = filled.tokens_BT[row]
            piece = text[max(0, position - BEFORE) : position + AFTER]
            memories.append(
                {
                    "weight": weight,
                    "document": memory.names[document],
                    "position": position,
                    "text": show(piece),
                }
            )
        token = filled.tokens_BT[row, place : place + 1]
        result.append({"token": show(token), "memories": memories})
    return result


def show(found: list[dict[str, Any]]) -> None:
    """Prints it, a line for each memory."""
    for one in found:
        print(repr(one["token"]))
        for memory in one["memories"]:
            print(
                f"    {memory['weight']:.3f}  {memory['document']} at "
                f"{memory['position']}: {memory['text']!r}"
            )
