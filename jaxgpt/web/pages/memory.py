"""The page of runs with a memory: the entries that each token was predicted with."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from jaxgpt.commands.memory import Memory
from jaxgpt.errors import UserError
from jaxgpt.inference import Run
from jaxgpt.model.layers import count_parameters
from jaxgpt.web.pages.base import Emit, Event
from jaxgpt.web.requests import Fill, Forget, Nothing, Remember

NEW_TOKENS = 200  # The most that a text is continued by.


class MemoryPage:
    """Has a memory that starts empty, and is lost when the server ends."""

    kind = "memory"

    def __init__(self, run: Run):
        self.run, self.memory = run, Memory(run)
        self.compiled = False
        self.actions = {
            "memories": self.memories,
            "remember": self.remember,
            "forget": self.forget,
            "fill": self.fill,
        }

    def describe(self) -> Event:
        """See `Page.describe`."""
        config = self.run.config
        return {
            "system": f"{config.system}: {config.memory.mode}",
            "step": self.run.step,
            "parameters": count_parameters(self.run.params),
            "longest": self.run.system.model_config.block_size,
            "has_text": self.run.tokenizer is not None,
            "room": config.memory.memory_size,
            "most_new_tokens": NEW_TOKENS,
        }

    def memories(self, request: Nothing, emit: Emit) -> None:
        """Sends the documents, and how many entries of each the memory keeps."""
        emit({"type": "done", "documents": self.memory.documents})

    def remember(self, request: Remember, emit: Emit) -> None:
        """Reads a text into the memory."""
        if request.name in self.memory.documents:
            raise UserError(f"there is a document '{request.name}': forget it first")
        emit({"type": "running", "compiling": not self.compiled})
        self.memory.ingest({request.name: self.read(request.text)})
        self.memories(Nothing(), emit)

    def forget(self, request: Forget, emit: Emit) -> None:
        """Removes a document, as if the memory had never read it."""
        self.memory.forget(request.name)
        self.memories(Nothing(), emit)

    def fill(self, request: Fill, emit: Emit) -> None:
        """Continues a text; sends its tokens with the entries that each one used.

        The memory keeps the whole text under the name "text N".
        """
        pieces = [piece for piece in request.pieces if piece != type(piece)()]
        new = pieces[-1].gap if pieces else 0
        if not 1 <= new <= NEW_TOKENS or any(not piece.text for piece in pieces[:-1]):
            raise UserError(
                f"this page continues a text by 1 to {NEW_TOKENS} tokens: the gap must "
                "be at its end"
            )
        prompt = "".join(piece.text for piece in pieces[:-1])
        emit({"type": "running", "compiling": not self.compiled})
        sample = self.memory.generate(
            self.read(prompt), max_new_tokens=new, seed=request.seed, **request.sampling
        )
        self.compiled = True
        given = len(sample.tokens) - len(sample.memories)
        tokens = [
            {"text": self.show(sample.tokens[given + place]), "memories": found}
            for place, found in enumerate(
                [dataclasses.asdict(entry) for entry in entries]
                for entries in sample.memories
            )
        ]
        emit(
            {
                "type": "done",
                "given": prompt,
                "tokens": tokens,
                "log_prob": sample.log_prob,
                "documents": self.memory.documents,
            }
        )

    def read(self, text: str) -> str | list[int]:
        """Returns a text, or the token ids in it if the run has no tokenizer."""
        return text if self.run.tokenizer else [*map(int, re.findall(r"\d+", text))]

    def show(self, token: np.integer) -> str:
        """Returns the text of one token."""
        tokenizer = self.run.tokenizer
        return tokenizer.decode_rest(np.array([token])) if tokenizer else f"{token} "
