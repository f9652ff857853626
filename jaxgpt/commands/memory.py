"""The memory of a model, from Python: `jaxgpt.memory.Memory`."""

from __future__ import annotations

import dataclasses
import numbers
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxgpt import backend
from jaxgpt import config as configs
from jaxgpt.config import user_path
from jaxgpt.errors import UserError, require
from jaxgpt.inference import Run
from jaxgpt.run import open_run
from jaxgpt.sampling import prompts
from jaxgpt.sampling.output import Sample, read_output
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.memory.options import MemorySession, excerpt, overrides
from jaxgpt.systems.memory.system import MemoryLM

if TYPE_CHECKING:
    from typing import Unpack

    from jaxgpt.sampling.options import SamplingOptions

__all__ = ["Found", "Memory", "MemorySample"]

Text = str | Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Found:
    """An entry of a memory.

    Attributes:
      document: its name.
      position: of the entry's token in the document, from 0.
      text: some tokens before and after the position.
      score: of `search`, larger for nearer entries: minus the squared distance of its
        key, or with memory.mode=attention the inner product, summed over heads. Of
        `generate`, how much it contributed, from 0 to 1.
    """

    document: str
    position: int
    text: str
    score: float


@dataclasses.dataclass(frozen=True)
class MemorySample(Sample):
    """A generated text, and what its tokens were predicted with.

    Attributes:
      memories: for each generated token the entries, most used first; at most 3.
    """

    memories: list[list[Found]]


def open_reader(
    workdir: str, step: str, path: pathlib.Path, changes: dict[str, str]
) -> Run:
    """Opens a run with the settings with which it reads a memory, and other changes."""
    config = configs.load_frozen(user_path(workdir))
    return open_run(workdir, step, overrides(config, path) | changes)


def memory_system(run: Run) -> MemoryLM:
    """Returns the system of a run with a memory; UserError for others."""
    if not isinstance(run.system, MemoryLM):
        remedy = ": name its folder" if run.config.system == "causal" else ""
        raise UserError(
            f"'{run.workdir}' is a {run.config.system} run without a memory{remedy}"
        )
    return run.system


class Memory:
    """The documents that a model remembers.

    A memory has room for `memory.memory_size` tokens; beyond that `memory.eviction`
    says what goes. A text is a string, or token ids [T] where the run has no tokenizer.
    """

    def __init__(
        self,
        run: str | os.PathLike[str] | Run,
        path: str | os.PathLike[str] | None = None,
        *,
        allow_other_model: bool = False,
    ):
        """Opens the memory in a file; an empty one if there is none.

        Args:
          run: folder of a run that was trained with a memory, or of a causal one, which
            is then read with memory.mode=output; or one that is loaded, by
            `jaxgpt.run.open_run` with overrides that change memory.* (docs/memory.md).
          path: of `save`, or of jaxgpt.memory and --memory of jaxgpt.sample.
          allow_other_model: only warns if other weights or another tokenizer wrote it.

        Raises:
          UserError: if the run has no memory, or the file is damaged, of another model
            or with other settings.
        """
        file = user_path(os.fspath(path)) if path else None
        if not isinstance(run, Run):
            named = isinstance(run, str | os.PathLike)
            require(named, "run", "its folder or a loaded run", run)
            backend.set_up_jax()
            new = pathlib.Path("new.memory")
            run = open_reader(os.fspath(run), "best", file or new, {})
        self._run, self._system = run, memory_system(run)
        self._memory = self._system.open_memory(
            file, model=run.fingerprint, allow_other_model=allow_other_model
        )

    def ingest(self, documents: Mapping[str, Text]) -> None:
        """Reads documents into the memory, in order.

        Args:
          documents: {name: text}. A text of a known name continues that document.

        Raises:
          UserError: for a text that is empty, or outside the vocabulary.
        """
        rule = "a mapping of names to texts"
        require(isinstance(documents, Mapping), "documents", rule, documents)
        for name in documents:
            named = isinstance(name, str) and bool(name)
            require(named, "the name of a document", "text", name)
        # Nothing is read unless all can be.
        tokens = {name: self._encode(text) for name, text in documents.items()}
        for name, tokens_T in tokens.items():
            self._memory.read(self._run.params, name, tokens_T)

    @property
    def documents(self) -> dict[str, int]:
        """How many entries each document has, in the order in which they were read."""
        return {found.name: found.entries for found in self._memory.documents()}

    def __len__(self) -> int:
        """How many entries there are."""
        return self._memory.store.size()

    def search(self, query: Text, k: int = 5) -> list[Found]:
        """Returns the k entries nearest to the end of a query, nearest first.

        They are found as the model searches its memory after the query's last token,
        of which it reads the last model.block_size tokens. They are fewer if the memory
        has fewer entries.

        Raises:
          UserError: for a query that is empty or outside the vocabulary, or k < 1.
        """
        require(isinstance(k, numbers.Integral) and k >= 1, "k", "an integer >= 1", k)
        tokens_T = self._encode(query)
        texts, tokenizer = self._memory.texts, self._run.tokenizer
        return [
            Found(
                self._memory.names[entry.document],
                entry.position,
                excerpt(texts[entry.document], entry.position, tokenizer),
                entry.score,
            )
            for entry in self._memory.nearest(self._run.params, tokens_T, int(k))
        ]

    def generate(
        self,
        prompt: Text,
        *,
        document: str = "",
        max_new_tokens: int | None = None,
        seed: int = 0,
        **sampling: Unpack[SamplingOptions],
    ) -> MemorySample:
        """Continues a prompt with the memory, which reads it and what follows it.

        Args:
          prompt: a text, or token ids [T].
          document: name of this text in the memory; default "text N".
          max_new_tokens, seed, **sampling: as of `Run.generate`.

        Raises:
          UserError: if it does not fit the model, or an option is out of range.
        """
        run = self._run
        require(isinstance(document, str), "document", "a str", document)
        session = MemorySession(run, self._memory, document=document, explain=True)
        given = run.reader.prompt(prompt, max_new_tokens)
        params = SamplingParams.of(sampling)
        output = run.fill(given, params, seed=seed, session=session)
        (sample,) = read_output(output, given.known, run.tokenizer)
        described = [sample.to_json()]
        session.describe(described, output, int(given.known.sum()), run.tokenizer)
        memories = [
            [Found(m["document"], m["position"], m["text"], m["weight"]) for m in found]
            for found in (token["memories"] for token in described[0]["memories"])
        ]
        return MemorySample(**vars(sample), memories=memories)

    def forget(self, document: str) -> int:
        """Removes a document for good; returns how many entries it had.

        The memory is then one that never read it: if necessary, the other documents
        are read again.

        Raises:
          UserError: if there is no such document.
        """
        return self._memory.forget(document, self._run.params)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the memory to a file, atomically.

        Raises:
          UserError: if it cannot be written, the file there is not a memory, or another
            process has changed the file that this memory was read from.
        """
        self._memory.save(user_path(os.fspath(path)))

    def _encode(self, text: Text) -> np.ndarray:
        """Returns the tokens [T] of a text."""
        if isinstance(text, str):
            tokens_T = self._run.encode(text)
        else:
            vocab_size = self._system.model_config.vocab_size
            tokens_T = prompts.read_ids(text, vocab_size, "a text")
        fits = tokens_T.ndim == 1 and len(tokens_T) > 0
        require(fits, "a text", "of one token or more", list(tokens_T.shape))
        return tokens_T
