"""Searches for a graph with a given floor, and a given gap to a bigram model."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxgpt import backend
from jaxgpt.errors import CheckError, UserError, atomic_write, os_errors, require
from jaxgpt.systems.gssm import baselines
from jaxgpt.systems.gssm.graph import LatentGraph
from jaxgpt.systems.gssm.graph_files import load_graph
from jaxgpt.systems.gssm.kernels import draw_tables
from jaxgpt.systems.gssm.process import Stream, make_process

# Powers of ten that alphas are scaled by at first, and how far the steps of the search
# around the best shrink: alpha is found to 2 %.
COARSE = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
FIRST_STEP, LAST_STEP = 0.25, 0.01
# About the most that floor and gap change, in nats, when alphas grow tenfold.
SLOPE = 2.0
# How many of the best coarse scales of the first seed are tried with other seeds.
KEPT = 5

Scales = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """A graph that was tried; all figures are in nats per token.

    Attributes:
      distance: the largest difference from the targets.
    """

    graph: LatentGraph
    seed: int
    floor: float
    floor_error: float | None
    bigram_gap: float
    distance: float


def find(
    args: argparse.Namespace, config: ConfigDict, output: pathlib.Path
) -> dict[str, Any]:
    """Searches for a graph, and writes it as YAML.

    Args:
      args: of the difficulty command.
      config: of the graph to begin with.
      output: the file.

    Returns:
      The figures of the graph, and how many were tried.

    Raises:
      UserError: for a graph whose kernels are given or redrawn, unknown nodes, or if
        the file cannot be written.
      CheckError: if no graph is within the tolerance; names the nearest.
    """
    search = Search(args, config)
    found = search.run()
    if found.distance > args.tolerance:
        alphas = ", ".join(f"{n.name} {n.alpha:g}" for n in found.graph.order)
        raise CheckError(
            f"none of {search.tried} graphs is within {args.tolerance:g} nats: the "
            f"nearest has floor {found.floor:.3f} and bigram_gap "
            f"{found.bigram_gap:.3f} (graph_seed {found.seed}; alphas {alphas}). "
            f"--tolerance={math.ceil(1000 * found.distance) / 1000:g} takes it"
        )
    with (
        os_errors(f"--output '{output}' cannot be written"),
        atomic_write(output) as stream,
    ):
        stream.write(
            f"# With gssm.graph_seed={found.seed} the floor is {found.floor:.3f} nats "
            f"per token, and a bigram model {found.bigram_gap:.3f} above it.\n"
            f"{found.graph.to_yaml()}"
        )
    return {
        "output": str(output),
        "graph_seed": found.seed,
        "floor": found.floor,
        "floor_error": found.floor_error,
        "bigram_gap": found.bigram_gap,
        "tried": search.tried,
    }


class Search:
    """Tries scales of alphas by graph seed, coarse ones, then some around the best."""

    def __init__(self, args: argparse.Namespace, config: ConfigDict):
        """Checks the graph; see `find`."""
        self.args, self.config, c = args, config, config.gssm
        self.graph = load_graph(c.graph)
        c.graph = self.graph.to_json()  # A file's notes are logged once.
        if c.kernels or self.graph.has_context:
            raise UserError(
                "difficulty changes the alphas of kernels that are drawn once: omit "
                "gssm.kernels and context nodes"
            )
        most = math.log(self.graph.observed.state_dim)
        for name in ("floor", "bigram_gap"):
            wanted = getattr(args, name)
            within = wanted is None or wanted - args.tolerance <= most
            rule = f"<= {most:.3f}, the entropy of uniform tokens"
            require(within, f"--{name}", rule, wanted)
        known = [node.name for node in self.graph.order]
        named = args.nodes.replace(",", " ").split() if args.nodes else known
        rule = f"among {', '.join(known)}, which X is drawn from"
        require(bool(named) and {*named} <= {*known}, "--nodes", rule, args.nodes)
        # Those scaled together.
        latents = [node.name for node in self.graph.latents if node.name in named]
        X = [name for name in named if name == self.graph.observed.name]
        self.groups = [group for group in (latents, X) if group]
        backend.set_up_jax()
        self.process = make_process(config)
        self.tried = 0
        self.measure = functools.cache(self._measure)

    def run(self) -> Found:
        """Returns the first graph within the tolerance, or else the nearest."""
        best, own = None, self.config.gssm.graph_seed
        for found in self._candidates(own):
            if best is None or found.distance < best.distance:
                best = found
            if best.distance <= self.args.tolerance or self.tried >= self.args.tries:
                break
        assert best, "tries are 1 or more"
        return best

    def _candidates(self, own: int) -> Iterator[Found]:
        """Yields graphs of the config's seed, then of 0, 1, ... without end."""
        starts = sorted(
            itertools.product(COARSE, repeat=len(self.groups)),
            key=lambda scales: sum(map(abs, scales)),
        )
        tried = []
        for scales in starts:
            tried.append(self.measure(own, scales))
            yield tried[-1]
        near = sorted(range(len(starts)), key=lambda i: tried[i].distance)[:KEPT]
        yield from self._around(own, starts[near[0]])
        for seed in (seed for seed in itertools.count() if seed != own):
            yield from (self.measure(seed, starts[i]) for i in near)
            best = min(near, key=lambda i: self.measure(seed, starts[i]).distance)
            yield from self._around(seed, starts[best])

    def _around(self, seed: int, at: Scales) -> Iterator[Found]:
        """Yields graphs around one, moving to nearer ones, in steps that shrink."""
        step = FIRST_STEP
        while step >= LAST_STEP:
            nearest = at
            for move in itertools.product((-1, 0, 1), repeat=len(at)):
                if not any(move):
                    continue
                to = tuple(a + step * m for a, m in zip(at, move, strict=True))
                found = self.measure(seed, to)
                yield found
                if found.distance < self.measure(seed, nearest).distance:
                    nearest = to
            if nearest == at:
                # Smaller steps cannot make up for more than SLOPE times their size.
                left = self.measure(seed, at).distance - self.args.tolerance
                step = step / 2 if left < SLOPE * step else 0.0
            at = nearest

    def _measure(self, seed: int, scales: Scales) -> Found:
        c, process = self.config, self.process
        graph = self._scaled(scales)
        process = process.with_tables(draw_tables(graph, seed, c.gssm.clip))
        count, length = self.args.num_sequences, c.model.block_size + 1
        tokens_NT = process.held_out(Stream(c.seed, "val", c.batch_size), count, length)
        floor = baselines.mean(process.score(tokens_NT, "float64"))
        bigram_NT = baselines.fitted_scores(process, c, tokens_NT)["bigram"]
        gap = baselines.mean(bigram_NT).value - floor.value
        wanted = ((self.args.floor, floor.value), (self.args.bigram_gap, gap))
        distance = max(abs(a - b) for a, b in wanted if a is not None)
        self.tried += 1
        return Found(graph, seed, floor.value, floor.error, gap, distance)

    def _scaled(self, scales: Scales) -> LatentGraph:
        """Returns the graph with scaled alphas, in the three digits of the file."""
        nodes = {node.name: node for node in self.graph.nodes}
        for group, scale in zip(self.groups, scales, strict=True):
            for name in group:
                alpha = float(f"{nodes[name].alpha * 10**scale:.3g}")
                nodes[name] = dataclasses.replace(nodes[name], alpha=alpha)
        return LatentGraph(tuple(nodes.values()))
