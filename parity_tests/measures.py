"""What the certificate measures, and the tests hold: each comparison, once.

A measuring function returns {quantity: `Found`}. `test_certificate` holds each to the
tolerance of its name in `tolerances`, `certificate` writes all of them down.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from ml_collections import ConfigDict

from jaxgpt.commands import convert
from jaxgpt.interop import formats, rules, teenygpt
from jaxgpt.model import attention, layers
from jaxgpt.run import Run, open_run
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.base import System
from jaxgpt.systems.gssm import graph, kernels, likelihood
from jaxgpt.systems.registry import build_system
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import Checkpoints
from parity_tests import GOLDEN, files, pairs
from parity_tests.pairs import Pair

# Tokens given to greedy generation, and the gap of two logits that rounding cannot
# close.
PROMPT, SURE = 3, 1e-4
# Draws of a text's dropout, and its rate.
DRAWS, DROPOUT = 2000, 0.25
# Steps before a checkpoint, and after it.
BEFORE, AFTER = 7, 20
# teenyGPT's choices, each with all others, and the sizes of its recorded models.
TEENY = [
    "-".join(kinds)
    for kinds in itertools.product(
        teenygpt.POSITIONS, teenygpt.ACTIVATIONS, teenygpt.NORMS
    )
]
TEENY_SIZES = {
    "n_dim": 16,
    "n_vocab": 23,
    "n_attn_heads": 4,
    "n_attn_layers": 2,
    "n_context_max": 12,
}
GRAPHS = json.loads((GOLDEN / "gssm" / "graphs.json").read_text())
RECORDED_GRAPHS = [name for name in GRAPHS if name.endswith(".npz")]


@dataclasses.dataclass(frozen=True)
class Found:
    """A figure that has to be small; what it is, in words, where it is not plain."""

    value: float
    text: str = ""
    absolute: float | None = None

    def __str__(self) -> str:
        return self.text or (f"{self.value:.1e}" if self.value else "0")


def difference(ours: Any, theirs: Any) -> Found:
    """The largest difference of two trees, relative to their largest entry."""
    leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    arrays = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in leaves]
    assert all(a.shape == b.shape for a, b in arrays)
    absolute = max(float(np.abs(a - b).max()) for a, b in arrays)
    largest = max(float(np.abs(b).max()) for _, b in arrays)
    assert np.isfinite(absolute)
    return Found(absolute / largest, absolute=absolute)


def misses(count: int, of: int) -> Found:
    """How many of so many are wrong; written as how many are right."""
    return Found(count / of, f"{of - count} of {of}")


def worst(found: Iterable[Found]) -> Found:
    """The largest of several."""
    return max(found, key=lambda each: each.value)


def matrices(tree: dict) -> list:
    """Leaves out vectors: the key's bias moves by rounding alone."""
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]


def forward(pair: Pair) -> dict[str, Found]:
    """Logits, in one pass and token by token through the cache."""
    tokens, orders = (each[0] for each in pairs.random_batches(pair, 1))
    with torch.no_grad():
        there = pair.logits_there(tokens, orders).numpy()
    read, positions = pair.read(tokens, orders)
    B, S = positions[0].shape

    @jax.jit
    def ours(params):
        def step(cache, at):
            column = lambda array: jax.lax.dynamic_slice_in_dim(array, at, 1, 1)
            where = tuple(map(column, positions))
            logits, cache = model(column(read), where, cache=cache, start=at)
            return cache, logits[:, 0]

        model = pair.system.model(params)
        cache = attention.empty_cache(model.config, B, S)
        cached = jax.lax.scan(step, cache, jnp.arange(S))[1].swapaxes(0, 1)
        return model(read[:, :-1], positions)[0], cached

    whole, cached = ours(pair.params())
    return {
        "logits": difference(whole, there),
        "logits through the cache": difference(cached, there),
    }


def training(pair: Pair, count: int = 50) -> dict[str, Found]:
    """Loss and gradients, and AdamW with schedule, clipping and groups."""
    tokens, orders = pairs.random_batches(pair, count)
    params = pair.params()
    state = optimizers.make_optimizer(pair.system.config).init(params)
    ours = pairs.train_here(pair, params, state, tokens, orders)
    theirs = pairs.train_there(pair, pairs.adamw(pair), tokens, orders)
    found, losses = {}, []
    for step, (here, there) in enumerate(zip(ours, theirs, strict=True), 1):
        losses.append(difference(here[0], there[0]))
        if step == 1:
            found["loss"] = losses[0]
            found["gradient"] = difference(here[1], pair.to_ours(there[1]))
        if step in (2, count):
            name = f"matrices after {step} AdamW steps"
            found[name] = difference(matrices(here[2]), matrices(pair.params()))
    return found | {f"loss of {count} AdamW steps": worst(losses)}


def greedy(pair: Pair) -> dict[str, Found]:
    """The likeliest tokens, one by one, up to a tie in each row."""
    tokens, orders = (each[0] for each in pairs.random_batches(pair, 1))
    T = pair.system.model_config.block_size
    tokens, order = tokens[:, :T], np.r_[:PROMPT, orders[0][orders[0] >= PROMPT]]
    causal = bool(pair.system.extra_tokens)
    order = np.arange(T) if causal else order
    there = tokens.copy()
    sure = np.ones(tokens.shape, bool)
    for t in range(PROMPT, T):
        # A causal model is asked for the token after the last one it is given.
        given = there[:, : t + 1] if causal else there
        with torch.no_grad():
            logits = pair.logits_there(given, np.tile(order, (len(there), 1)))
        row = t - 1 + int(pair.system.model_config.begin_token)
        top = logits[:, row].topk(2)
        there[:, order[t]] = top.indices[:, 0]
        close = (top.values[:, 0] - top.values[:, 1]).numpy() < SURE
        sure[:, order[t:]] &= ~close[:, None]
    known = np.broadcast_to(np.arange(T) < PROMPT, tokens.shape)
    given = "left-to-right" if causal else ",".join(map(str, order[PROMPT:]))
    sampling = SamplingParams("ar", given, temperature=0.0)
    here = pair.system.sample(
        pair.params(), np.where(known, tokens, 0), known, jax.random.key(0), sampling
    ).tokens_BT
    counted = sure & ~known
    wrong = (here != there) & counted
    return {"greedy tokens": misses(int(wrong.sum()), int(counted.sum()))}


def bfloat16(name: str) -> dict[str, Found]:
    """Nats from the float32 distribution to the bfloat16 one, beside autocast's."""
    pair, half = pairs.make(name, "float32"), pairs.make(name, "bfloat16")
    tokens, orders = (each[0] for each in pairs.random_batches(pair, 1))

    def ours(system):
        read, positions = pair.read(tokens, orders)
        logits = jax.jit(lambda p: system.model(p)(read[:, :-1], positions)[0])
        return torch.tensor(np.asarray(logits(pair.params()), np.float32))

    def divergence(p, q):
        p, q = (x.double().log_softmax(-1) for x in (p, q))
        return float((p.exp() * (p - q)).sum(-1).mean())

    with torch.no_grad():
        plain = pair.logits_there(tokens, orders)
        with torch.autocast("cpu", torch.bfloat16):
            cast = pair.logits_there(tokens, orders)
    here = divergence(ours(pair.system), ours(half.system))
    there = divergence(plain, cast)
    return {
        "nats lost by bfloat16 (by autocast)": Found(here, f"{here:.1e} ({there:.1e})"),
        "ratio of the two": Found(here / there, f"{here / there:.2f}"),
    }


def dropout_of_layer() -> dict[str, Found]:
    """How many of a million numbers are kept, and what the kept ones become."""
    x = jnp.ones((1000, 1000))
    bits = jax.random.bits(jax.random.key(0), 2, jnp.uint32)
    y = np.asarray(layers.dropout(x, DROPOUT, bits), np.float64)
    kept, expected = float((y != 0).mean()), 1 - DROPOUT
    error = math.sqrt(DROPOUT * expected / y.size)
    by_row, positive = (y != 0).mean(1), y[y != 0]
    spread = by_row.std() / math.sqrt(DROPOUT * expected / y.shape[1])
    errors = abs(kept - expected) / error
    text = f"{kept:.5f}, expected {expected}: {errors:.1f} standard errors"
    return {
        "share kept": Found(errors, text),
        "difference of the factor on it from 1 / share": difference(
            positive, np.full_like(positive, 1 / expected)
        ),
        "spread between rows, relative to a binomial's": Found(
            abs(spread - 1), f"{spread:.3f}"
        ),
    }


def dropout_of_loss(name: str) -> dict[str, Found]:
    """The mean and spread of a text's loss over many draws, ours and PyTorch's."""
    pair = pairs.make(name, "float32", dropout=DROPOUT)
    pair.module.train()
    tokens, orders = pairs.random_batches(pair, 1)
    many = lambda array: np.repeat(array[0, :1], DRAWS, 0)
    tokens, orders = many(tokens), many(orders)
    torch.manual_seed(1)
    read, _ = pair.read_there(tokens, orders)
    with torch.no_grad():
        logits = pair.logits_there(tokens, orders)
    lost = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), read[:, 1:], reduction="none"
    )
    there = lost.mean(1).double().numpy()
    batch = {"tokens": tokens, "order": orders}
    nll = jax.jit(lambda p, key: pair.system.nll(p, batch, key).mean(1))
    here = np.asarray(nll(pair.params(), jax.random.key(0)), np.float64)
    error = math.sqrt((here.var() + there.var()) / DRAWS)
    ratio = float(here.std() / there.std())
    means = abs(here.mean() - there.mean()) / error
    spreads = abs(math.log(ratio)) * math.sqrt(DRAWS)
    say = lambda a, b, n: f"{a:.4f} and {b:.4f}: {n:.1f} standard errors"
    return {
        "mean loss": Found(means, say(here.mean(), there.mean(), means)),
        "standard deviation": Found(spreads, say(here.std(), there.std(), spreads)),
    }


def rates() -> dict[str, Found]:
    """Of nanoGPT and of σ-GPT the first 200 learning rates, beside transformers'."""
    found = {}
    for name in ("nanogpt", "sigma-gpt"):
        config = pairs.settings(name, pairs.sizes_of(name))
        config.optimizer.warmup_steps, config.optimizer.decay_steps = 40, 160
        rate = jax.jit(optimizers.learning_rate_schedule(config))
        here = [float(rate(jnp.int32(step))) for step in range(200)]
        found[name] = difference(here, _library_rates(config, 200))
    return found


def _library_rates(config: ConfigDict, count: int) -> list[float]:
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    c = config.optimizer
    # A warmup that begins above zero is one from zero, a step later.
    ahead = 0 if c.warmup_from_zero else 1
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=c.learning_rate)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer,
        c.warmup_steps + ahead,
        c.decay_steps + ahead,
        min_lr=c.min_learning_rate,
    )
    result = []
    for _ in range(c.decay_steps + ahead + 1):
        result += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    # It rises again past its end, where the originals stay.
    return [result[min(step, c.decay_steps) + ahead] for step in range(count)]


def round_trip(name: str, folder: pathlib.Path) -> dict[str, Found]:
    """The original's file in, ours out, loaded as the original does, and in again."""
    pair, layout = pairs.make(name, "float32"), files.LAYOUTS[name]
    source, exported = (folder / f"{n}{layout.suffix}" for n in ("there", "here"))
    layout.write(pair, source, None, 0)
    first = _imported(pair, source, folder / "first")
    convert.export_run(name, first, exported)
    second = _imported(pair, exported, folder / "second")
    tokens, orders = (each[0] for each in pairs.random_batches(pair, 1))
    loaded = dataclasses.replace(pair, module=layout.load(pair, exported))
    with torch.no_grad():
        one, two = (p.logits_there(tokens, orders) for p in (pair, loaded))
    same = jax.tree.map(np.array_equal, first.params, second.params)
    equal = jax.tree.leaves(same)
    return {
        "logits of PyTorch from our export": difference(two, one),
        "arrays equal after import, export, import": misses(
            equal.count(False), len(equal)
        ),
    }


def _imported(pair: Pair, source: pathlib.Path, workdir: pathlib.Path) -> Run:
    settings = files.write_settings(pair, workdir.with_suffix(".json"))
    convert.import_run(pair.name, str(source), workdir, settings)
    return open_run(str(workdir))


def continued(name: str, folder: pathlib.Path) -> dict[str, Found]:
    """Steps after a checkpoint with moments, here and in the original's program.

    Ours go on from its file, and PyTorch again from what we export of that.
    """
    pair, layout = pairs.make(name, "float32"), files.LAYOUTS[name]
    tokens, orders = pairs.random_batches(pair, BEFORE + AFTER)
    optimizer = pairs.adamw(pair)
    list(pairs.train_there(pair, optimizer, tokens[:BEFORE], orders[:BEFORE]))
    source, exported = (folder / f"{n}{layout.suffix}" for n in ("there", "here"))
    layout.write(pair, source, optimizer.state_dict(), BEFORE)
    run = _imported(pair, source, folder / "run")
    convert.export_run(name, run, exported)
    back = dataclasses.replace(pair, module=layout.load(pair, exported))
    another = pairs.adamw(back)
    held = torch.load(exported, weights_only=True)
    another.load_state_dict(held[layout.optimizer])
    config = run.config if layout.has_schedule else pair.system.config
    here = dataclasses.replace(pair, system=build_system(config))
    abstract = {"params": jax.eval_shape(run.system.init, jax.random.key(0))}
    chain = optimizers.make_optimizer(run.config)
    abstract["opt_state"] = jax.eval_shape(chain.init, abstract["params"])
    state = Checkpoints(run.workdir, read_only=True).restore(BEFORE, abstract)
    rest = tokens[BEFORE:], orders[BEFORE:]
    ours = list(pairs.train_here(here, run.params, state["opt_state"], *rest))
    theirs = list(pairs.train_there(pair, optimizer, *rest, first=BEFORE))
    again = list(pairs.train_there(back, another, *rest, first=BEFORE))
    apart = lambda one: worst(
        difference(a[0], b[0]) for a, b in zip(one, theirs, strict=True)
    )
    return {
        f"loss of {AFTER} steps after a checkpoint": apart(ours),
        f"loss of {AFTER} steps of PyTorch from our export of it": apart(again),
        f"matrices {AFTER} steps after a checkpoint": difference(
            matrices(ours[-1][2]), matrices(pair.params())
        ),
    }


def memory(mode: str) -> dict[str, Found]:
    """Documents read in segments, each with all earlier ones of its document stored."""
    pair = pairs.make_memory(mode)
    system, module, host = pair.system, pair.module, pair.system.host
    store, state = host.open(pairs.B)
    params, logits = pair.params(), []

    @jax.jit
    def read(params, state, batch):
        state, output, _ = host.read(params, state, batch, "on")
        return state, output.logits_BTV

    for batch, tokens in pairs.segments(pair):
        state, here = read(params, state, batch)
        store.update(state["entries"])
        with torch.no_grad():
            logits.append(difference(here, module(tokens).numpy()))
    found = {"logits": worst(logits)}
    if mode == "output":  # It is not trained.
        return found
    chain = optimizers.make_optimizer(system.config)
    optimizer, opt_state = pairs.adamw(pair), chain.init(params)
    carried = host.recurrent_state(pairs.B)
    host.on_restore(carried, {})

    @jax.jit
    def step(params, opt_state, batch, carried):
        find = jax.value_and_grad(system.objective, has_aux=True)
        (value, carried), grads = find(params, batch, carried, None)
        updates, opt_state = chain.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carried, value, grads

    losses, gradients = [], []
    for index, (batch, tokens) in enumerate(pairs.segments(pair)):
        batch = system.train_batch(batch, None, index)
        params, opt_state, carried, value, grads = step(
            params, opt_state, batch, carried
        )
        host.on_step_end(carried)
        loss, there = pairs.step_there(pair, optimizer, module.loss(tokens), index)
        losses.append(difference(value, loss))
        gradients.append(difference(grads, pair.to_ours(there)))
    return found | {
        "loss": worst(losses),
        "gradient": worst(gradients),
        f"matrices after {len(losses)} AdamW steps": difference(
            matrices(params), matrices(pair.params())
        ),
    }


def open_teeny(
    name: str, folder: pathlib.Path, sizes: dict = TEENY_SIZES
) -> tuple[dict, System, dict, list]:
    """Reads a recorded teenyGPT: its arrays, our system, parameters and table."""
    settings = folder / "settings.json"
    settings.write_text(json.dumps(teeny_settings(name, sizes)))
    source = GOLDEN / "teenygpt" / f"{name}.npz"
    original = formats.get_format("teenygpt").read(str(source), str(settings))
    with np.load(source) as archive:
        golden = dict(archive)
    table = formats.get_format("teenygpt").rules(original.config.model)
    return golden, build_system(original.config), original.params, table


def teeny_settings(name: str, sizes: dict = TEENY_SIZES) -> dict:
    """The original's own configuration of a recorded model."""
    values = name.removeprefix("train_").split("-")
    keys = [key for key, *_ in teenygpt.FORMAT.choices.values()]
    return sizes | dict(zip(keys, values, strict=True))


def recorded_tree(golden: dict, prefix: str, system: System, table: list) -> dict:
    """Recorded arrays under a prefix, as our tree of parameters."""
    abstract = jax.eval_shape(system.init, jax.random.key(0))
    names = {rule.name: golden[f"{prefix}/{rule.name}"] for rule in table}
    return rules.to_jax(names, table, abstract, prefix)


def teeny(name: str, folder: pathlib.Path) -> dict[str, Found]:
    """One of teenyGPT's 36 models, and what the original itself was recorded to say."""
    golden, system, params, table = open_teeny(name, folder)

    def loss(params):
        model = system.model(params)
        logits_BTV, _ = model(golden["ids"])
        nll = jnp.mean(model.nll(golden["ids"], golden["targets"]))
        return nll, logits_BTV

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    there = recorded_tree(golden, "grad__f64", system, table)
    return {
        "logits": difference(logits, golden["logits"]),
        "loss": difference(value, golden["loss"]),
        "gradient": worst(jax.tree.leaves(jax.tree.map(difference, grads, there))),
    }


def gssm(name: str, dtype: str = "float32") -> dict[str, Found]:
    """The exact log-likelihood of a recorded graph's tokens, in nats.

    Beside the original's in float64, or one computed independently of both.
    """
    spec = GRAPHS[name]
    with np.load(GOLDEN / "gssm" / name) as archive:
        golden = dict(archive)
    nodes = graph.parse_graph(spec["nodes"], name)
    tables = kernels.read_tables(nodes, str(GOLDEN / "gssm" / name))
    tokens, first = golden["obs"], spec["first_token"]
    ours = likelihood.forward(nodes, tables, tokens, first, dtype)
    if "nll_pos_f64" in golden:
        theirs = golden["nll_pos_f64"]
    else:
        theirs = golden["nll_pos_f64_independent"][:, 1:]
    largest = lambda a, b: Found(float(np.abs(a - b).max()))
    return {
        "nats of a token": largest(ours, theirs),
        "nats of a sequence": largest(ours.cumsum(1), theirs.cumsum(1)),
    }
