"""The defects of the original σ-GPT's text program, each as a check on this one.

    python -m parity_tests.sigma_defects      writes docs/sigma-defects.md

A check returns what it found, in words, and fails by an assertion.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config as configs
from jaxgpt.data.tokenizers import CharTokenizer
from jaxgpt.errors import UserError
from jaxgpt.sampling.state import Draws, ModelDecoder, SamplingParams, prefill
from jaxgpt.systems.registry import build_system
from jaxgpt.systems.sigma import orders
from jaxgpt.systems.sigma.samplers import best_of, speculative, window
from tests.systems.sigma import tables
from tests.systems.sigma.test_samplers import counts, draw_texts

T, V = 11, 7


@functools.cache
def model(begin: bool = False):
    """A small random σ-GPT: (system, parameters)."""
    fields = {"model.n_layer": 2, "model.n_head": 2, "model.n_embd": 16}
    fields |= {"model.block_size": T, "model.vocab_size": V}
    fields |= {"sigma.begin_token": begin}
    system = build_system(configs.override(configs.base(), fields))
    params = system.init(jax.random.key(0))
    return system, jax.tree.map(lambda a: a * 8 if a.ndim > 1 else a, params)


def fill(known, sampling, begin=False, seed=0):
    system, params = model(begin)
    known = np.asarray(known)
    tokens = np.arange(known.size, dtype=np.int32).reshape(known.shape) % V
    filled = system.sample(params, tokens, known, jax.random.key(seed), sampling)
    assert filled.decoded_BT.all()
    assert (filled.tokens_BT[known] == tokens[known]).all()
    return filled


def drafts(garbage: int):
    """Logits of the drafts of slots 4.., the slots beyond holding some token."""
    system, params = model()
    decoder = ModelDecoder(system.graphdef)
    tokens = jnp.arange(T, dtype=jnp.int32)[None] % V
    tokens = jnp.where(jnp.arange(T) < 4, tokens, garbage)
    own = orders.random(jax.random.key(2), 1, T)
    given = jnp.array([4])
    state = prefill(decoder, params, tokens, own, jnp.roll(own, -1, 1), given)
    uniform = jnp.zeros((1, T - 4))
    task = SamplingParams().decode_params(T, Draws.of(jax.random.key(0), 1))
    draft = jax.jit(lambda *arguments: window.draft(decoder, *arguments).logits_BWV)
    return tokens, own, draft(params, state, task, uniform)[0]


def draft_positions():
    system, params = model()
    tokens, own, logits = drafts(0)
    plain_pass = jax.jit(lambda params, *args: system.model(params)(*args)[0][0, -1])
    worst = 0.0
    for slot in range(4, T):
        target = jnp.concatenate([own[:, 1:4], own[:, slot : slot + 1]], 1)
        plain = plain_pass(params, tokens[:, :4], (own[:, :4], target))
        worst = max(worst, float(abs(plain - logits[slot - 4]).max()))
    assert worst < 1e-4
    return f"largest difference of a draft's logits from a plain pass {worst:.0e}"


def stale_tokens():
    one, other = drafts(0)[2], drafts(5)[2]
    assert (one == other).all()
    return "drafts are bit-equal whatever the unsettled slots hold"


def progress():
    p = np.random.default_rng(0).dirichlet(np.full(64, 0.3))
    joint = tables.joint(p.reshape(4, 4, 4))
    known = np.zeros((8, 3), bool)
    advance = functools.partial(speculative.advance, max_draft_length=4)
    _, calls, _ = draw_texts(joint, advance, 1000, known)
    assert calls.max() <= 3
    return f"at most {calls.max()} calls for 3 tokens, in 8,000 texts of batches of 8"


def worst_case():
    n = 6
    p = np.zeros((2,) * n)
    p[(0,) * n] = p[(1,) * n] = 0.5
    known = np.zeros((1, n), bool)
    advance = functools.partial(speculative.advance, max_draft_length=8)
    _, calls, _ = draw_texts(tables.joint(p), advance, 500, known)
    assert calls.max() <= n
    return f"at most {calls.max()} calls for {n} wholly dependent tokens"


def exact_law():
    pair = np.array([[0.45, 0.05], [0.05, 0.45]])
    distance = {}
    known = np.zeros((1, 2), bool)
    for name, advance in (
        ("exact burst", functools.partial(speculative.advance, max_draft_length=4)),
        ("best of 5", functools.partial(best_of.advance, num_orders=5)),
    ):
        texts = draw_texts(tables.joint(pair), advance, 50_000, known)[0]
        distance[name] = abs(counts(texts, 2) / 50_000 - pair.ravel()).sum() / 2
    assert distance["exact burst"] < 0.01 < distance["best of 5"]
    return ", ".join(f"{name}: {d:.4f} from the law" for name, d in distance.items())


def every_slot():
    known = np.arange(T) < np.array([[1], [4]])
    one = fill(known, SamplingParams("ar", order="left-to-right"))
    naive = fill(known, SamplingParams("ar", order="left-to-right", cached=False))
    assert (one.tokens_BT == naive.tokens_BT).all()
    assert ((one.decode_step_BT > 0) == ~known).all()
    return "the cached sampler fills every slot, with the tokens of the uncached one"


def edges():
    for sampler in ("ar", "exact-burst", "burst"):
        fill(np.zeros((2, T), bool), SamplingParams(sampler), begin=True)
        fill(np.ones((2, T), bool), SamplingParams(sampler))
        fill(np.arange(T)[None] != 3, SamplingParams(sampler))
    return "three samplers, from nothing, with nothing to fill, and with one gap"


def ragged():
    known = np.arange(T) < np.array([[1], [5], [9]])
    for sampler in ("ar", "exact-burst", "burst"):
        fill(known, SamplingParams(sampler))
    fill(np.arange(T)[None] % 3 == 0, SamplingParams("ar", order="left-to-right"))
    fill(np.arange(T)[None] % 3 == 0, SamplingParams("ar", order="fractal"))
    return "rows with 1, 5 and 9 known tokens keep them; so do gaps in the middle"


def numbers_in_prompts():
    from jaxgpt.sampling.prompts import GAP

    assert GAP.split("42") == ["42"]
    assert GAP.split("4<missing:42>2") == ["4", "42", "2"]
    return "'42' is text; a gap is written <missing:42>"


def fixed_evaluation():
    fields = {"model.vocab_size": V, "model.block_size": T, "model.n_layer": 1}
    fields |= {"sigma.order": "curriculum", "model.n_head": 2, "model.n_embd": 16}
    system = build_system(configs.override(configs.base(), fields))
    tokens = jnp.zeros((64, T), jnp.int32)
    batches = system.eval_batches(tokens, jax.random.key(0))
    straight = (np.asarray(batches[""]["order"]) == np.arange(T)).all(1).mean()
    assert straight < 0.1
    return "validation orders depend on the seed alone, and are random at every step"


def fractal_training():
    drawn = orders.training(jax.random.key(0), 5, T, "fractal", 0.0, jnp.float32(0))
    assert (np.asarray(drawn) == orders.fractal(T)).all()
    return "every row of a fractal batch is in the fractal order"


def options_heard():
    known = np.arange(T)[None] < 1
    for sampler in ("ar", "exact-burst", "burst"):
        greedy = fill(known, SamplingParams(sampler, top_k=1), seed=3)
        again = fill(known, SamplingParams(sampler, top_k=1), seed=4)
        if sampler != "burst":
            sampling = SamplingParams(sampler, order="left-to-right", top_k=1)
            greedy, again = fill(known, sampling, seed=3), fill(known, sampling, seed=4)
            assert (greedy.tokens_BT == again.tokens_BT).all()
    try:
        fill(known, SamplingParams("burst", order="fractal"))
    except UserError as error:
        return f"top-k reaches every sampler; an order burst cannot keep: '{error}'"
    raise AssertionError("an order was swallowed")


def names():
    from jaxgpt.train import default_workdir

    try:
        configs.override(configs.base(), {"sigma.order": "randomcurriculum"})
    except UserError as error:
        assert default_workdir("configs/a.py:b") == "runs/a-b"
        return f"'{error}'; training ends with the command that samples from its folder"
    raise AssertionError("an unknown order was taken")


def unknown_characters():
    try:
        CharTokenizer("abc").encode("abz")
    except UserError as error:
        return f"'{error}'"
    raise AssertionError("an unknown character was taken")


def first_step():
    from jaxgpt.training import optimizers

    rate = float(optimizers.learning_rate_schedule(configs.base())(0))
    assert rate > 0
    return f"the first step's learning rate is {rate:.1e}, not 0"


def plain_install():
    text = pathlib.Path("pyproject.toml").read_text()
    assert not re.search(r"git\+|ssh://|git@", text)
    return "every dependency is a released package"


@dataclasses.dataclass(frozen=True)
class Defect:
    """What the original does, and the check that this project does not."""

    original: str
    check: Callable[[], str]


DEFECTS = (
    Defect(
        "Burst drafts all but the first slot with the last token at a wrong position",
        draft_positions,
    ),
    Defect(
        "The non-text burst feeds rejected tokens into the next draft", stale_tokens
    ),
    Defect("A burst round may accept nothing, more often in a batch", progress),
    Defect("The worst case takes two passes a token", worst_case),
    Defect(
        "Rejected tokens are drawn anew, not from the residual, and the best of N "
        "orders is kept: samples do not follow the model",
        exact_law,
    ),
    Defect("The cached sampler leaves one slot of every text unfilled", every_slot),
    Defect(
        "No prompt, nothing to generate or one token to generate crash samplers", edges
    ),
    Defect(
        "Rows with more known tokens, and gaps filled left to right, lose known tokens",
        ragged,
    ),
    Defect(
        "A prompt that reads as a number becomes that many gaps", numbers_in_prompts
    ),
    Defect(
        "Validation follows the curriculum, so the best checkpoint is an early one",
        fixed_evaluation,
    ),
    Defect("Fractal training (non-text) silently shuffles", fractal_training),
    Defect(
        "Burst swallows top-k and the order; fractal infilling raises", options_heard
    ),
    Defect(
        "train and sample look in different folders; the documented curriculum's name "
        "is unknown",
        names,
    ),
    Defect("An unknown character silently becomes token 0", unknown_characters),
    Defect("The first step has learning rate 0", first_step),
    Defect("Installing needs SSH access to submodules", plain_install),
)
STILL_TRUE = (
    "Attention materialises T x T scores: here too, in training (the CPU kernel skips "
    "the masked half)."
)


def main():
    lines = [
        "# Defects of the original σ-GPT, as checks",
        "",
        "Made by `python -m parity_tests.sigma_defects`; the tests run every check.",
        "The left column is about the text program of idiap/sigma-gpt at 46c4a86, or",
        "its non-text program where it says so, as read and run.",
        "",
        "| the original | here |",
        "|---|---|",
    ]
    for defect in DEFECTS:
        found = defect.check()
        print(f"{defect.check.__name__}: {found}", flush=True)
        lines.append(f"| {defect.original} | {found} |")
    lines += ["", f"Not different: {STILL_TRUE}", ""]
    pathlib.Path("docs/sigma-defects.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
