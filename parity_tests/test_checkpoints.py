"""Checkpoints of nanoGPT's and σ-GPT's train.py: going on from theirs, and from ours.

The programs themselves cannot be shipped. `Train` is what they do to a checkpoint: its
keys, shapes and dtypes, a strict state dict, the optimizer's groups, and the schedule.
"""

import itertools
import math
import pickle
import shlex

import jax
import numpy as np
import optax
import pytest
import torch

from jaxgpt import config as configs
from jaxgpt import convert
from jaxgpt.data import tokenizers
from jaxgpt.run import open_run
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import Checkpoints
from parity_tests.torch_gpt import GPT, GPTConfig

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 11}
CONFIG = {
    "dataset": "mine",
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "min_lr": 1e-3,
    "warmup_iters": 5,
    "max_iters": 20,
    "lr_decay_iters": 18,
    "beta1": 0.9,
    "beta2": 0.95,
    "weight_decay": 0.1,
    "grad_clip": 1.0,
    "eval_interval": 3,
    "decay_lr": True,
}


def batches(name, count, seed=0):
    draw = np.random.default_rng(seed)
    for _ in range(count):
        tokens = draw.integers(0, 11, (4, 12 if name == "sigma-gpt" else 13))
        order = np.stack([draw.permutation(12) for _ in range(4)])
        yield tokens.astype(np.int32), order.astype(np.int32)


class Train:
    """PyTorch's side, from a checkpoint or from scratch."""

    def __init__(self, name, checkpoint=None, warmup_from_zero=False):
        self.name, self.zero = name, warmup_from_zero or name == "sigma-gpt"
        held = checkpoint or {
            "model_args": SIZES | {"bias": True, "dropout": 0.0},
            "config": dict(CONFIG),
            "iter_num": 0,
        }
        if name == "sigma-gpt":
            held["config"].setdefault("order_type", "randcur:25")
        self.args, self.config, self.it = (
            held[key] for key in ("model_args", "config", "iter_num")
        )
        torch.manual_seed(0)
        self.model = GPT(GPTConfig(**self.args, double=name == "sigma-gpt"))
        c = self.config
        self.optimizer = self.model.adamw(
            c["weight_decay"], c["learning_rate"], (c["beta1"], c["beta2"])
        )
        if checkpoint:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            assert checkpoint["best_val_loss"] > 0

    def rate(self):
        c, it = self.config, self.it
        peak, least, warmup = c["learning_rate"], c["min_lr"], c["warmup_iters"]
        if it < warmup:
            return peak * (it / warmup if self.zero else (it + 1) / (warmup + 1))
        if it > c["lr_decay_iters"]:
            return least
        done = (it - warmup) / (c["lr_decay_iters"] - warmup)
        return least + 0.5 * (1 + math.cos(math.pi * done)) * (peak - least)

    def set_rate(self):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()

    def loss(self, tokens, order):
        tokens, order = torch.tensor(tokens).long(), torch.tensor(order).long()
        if self.name == "sigma-gpt":
            tokens = tokens.gather(1, order)
            where = (order[:, :-1], order[:, 1:])
            return self.model.loss(tokens[:, :-1], tokens[:, 1:], where)
        return self.model.loss(tokens[:, :-1], tokens[:, 1:])

    def steps(self, data):
        losses = []
        for tokens, order in data:
            self.set_rate()
            loss = self.loss(tokens, order)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.config["grad_clip"]
            )
            self.optimizer.step()
            self.it += 1
            losses.append(loss.item())
        return losses

    def checkpoint(self):
        self.set_rate()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "model_args": self.args,
            "iter_num": self.it,
            "best_val_loss": torch.tensor(2.5),
            "config": self.config,
        }


def restored(workdir):
    """A run, its optimizer, and the optimizer's state."""
    run = open_run(str(workdir))
    optimizer = optimizers.make_optimizer(run.config)
    abstract = {"opt_state": jax.eval_shape(optimizer.init, run.params)}
    checkpoints = Checkpoints(workdir, read_only=True)
    return run, optimizer, checkpoints.restore(run.step, abstract)["opt_state"]


def go_on(workdir, data):
    """The losses of further steps of an imported run."""
    run, optimizer, state = restored(workdir)
    params = run.params
    gradient = jax.jit(
        jax.value_and_grad(lambda params, batch: run.system.nll(params, batch).mean())
    )
    losses = []
    for tokens, order in data:
        loss, grads = gradient(params, {"tokens": tokens, "order": order})
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return losses


def import_checkpoint(name, checkpoint, folder, *more):
    folder.mkdir()
    torch.save(checkpoint, folder / "ckpt.pt")
    argv = [f"--format={name}", f"--source={folder / 'ckpt.pt'}", *more]
    convert.command([*argv, f"--workdir={folder / 'run'}"])
    return folder / "run"


def export(name, workdir, path):
    convert.command([f"--format={name}", f"--workdir={workdir}", f"--output={path}"])
    return torch.load(path, weights_only=True)


CASES = [("nanogpt", False), ("nanogpt", True), ("sigma-gpt", True)]


@pytest.mark.parametrize(("name", "zero"), CASES)
@pytest.mark.parametrize("before", [3, 6], ids=["in the warmup", "after it"])
def test_both_sides_go_on_alike_from_a_checkpoint(tmp_path, name, zero, before):
    """Theirs goes on here, and what is exported again goes on there."""
    there = Train(name, warmup_from_zero=zero)
    there.steps(batches(name, before))
    workdir = import_checkpoint(name, there.checkpoint(), tmp_path / "one")
    run = open_run(str(workdir))
    assert run.step == before
    if before == 3:
        assert run.config.optimizer.warmup_from_zero is zero
    back = Train(name, export(name, workdir, tmp_path / "back.pt"), zero)
    expected = there.steps(batches(name, 5, seed=1))
    found = go_on(workdir, batches(name, 5, seed=1))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = back.steps(batches(name, 5, seed=1))
    np.testing.assert_allclose(again, expected, atol=1e-6)


def test_the_rate_goes_by_iter_num_where_adamw_counts_less(tmp_path):
    """A GradScaler leaves out the steps whose float16 gradients overflow."""
    there = Train("nanogpt")
    there.steps(batches("nanogpt", 2))
    there.it += 2
    workdir = import_checkpoint("nanogpt", there.checkpoint(), tmp_path / "one")
    held = export("nanogpt", workdir, tmp_path / "back.pt")
    assert held["iter_num"] == 4
    assert held["optimizer"]["state"][0]["step"] == 2
    expected = there.steps(batches("nanogpt", 5, seed=1))
    found = go_on(workdir, batches("nanogpt", 5, seed=1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["nanogpt", "sigma-gpt"])
def test_import_export_import_is_the_identity_with_moments(tmp_path, name):
    there = Train(name)
    there.steps(batches(name, 3))
    one = import_checkpoint(name, there.checkpoint(), tmp_path / "one")
    held = export(name, one, tmp_path / "back.pt")
    expected = there.checkpoint()
    for index, entry in expected["optimizer"]["state"].items():
        for key, tensor in entry.items():
            again = held["optimizer"]["state"][index][key]
            assert torch.equal(again, tensor)
            assert again.dtype == tensor.dtype
    theirs = expected["optimizer"]["param_groups"]
    for group, again in zip(theirs, held["optimizer"]["param_groups"], strict=True):
        assert again.keys() >= group.keys()
        for key in ("params", "weight_decay", "betas", "eps"):
            assert again[key] == pytest.approx(group[key])
        assert again["lr"] == pytest.approx(group["lr"])
    for key, value in there.config.items():
        if key != "dataset":
            assert held["config"][key] == value
    two = import_checkpoint(name, held, tmp_path / "two")
    first, second = restored(one), restored(two)
    assert configs.flatten(first[0].config) == configs.flatten(second[0].config)
    jax.tree.map(np.testing.assert_array_equal, first[0].params, second[0].params)
    jax.tree.map(np.testing.assert_array_equal, first[2], second[2])


@pytest.mark.parametrize(
    ("order_type", "order", "start"),
    [
        ("random", "random", 0.0),
        ("left-to-right", "left-to-right", 0.0),
        ("fractal", "fractal", 0.0),
        ("curriculumrandom", "curriculum", 0.0),
        ("randcur:25", "curriculum", 0.25),
        ("randcur:12.5", "curriculum", 0.125),
    ],
)
def test_orders_come_and_go(tmp_path, order_type, order, start):
    there = Train("sigma-gpt")
    there.config["order_type"] = order_type
    workdir = import_checkpoint("sigma-gpt", there.checkpoint(), tmp_path / "one")
    c = open_run(str(workdir)).config.sigma
    assert (c.order, c.order_start) == (order, start)
    held = export("sigma-gpt", workdir, tmp_path / "back.pt")
    assert held["config"]["order_type"] == order_type


def early_optimizer(model):
    """AdamW in the groups of nanoGPT before May 2023."""
    named = dict(model.named_parameters())
    linear = {n for n, p in named.items() if p.dim() > 1 and ".h." in n}
    groups = [sorted(linear), sorted(named.keys() - linear)]
    made = [{"params": [named[name] for name in group]} for group in groups]
    return torch.optim.AdamW(made, lr=1e-2), [*itertools.chain(*groups)]


def test_moments_of_old_groups_are_told_apart(tmp_path, capsys):
    there = Train("nanogpt")
    there.optimizer, names = early_optimizer(there.model)
    there.steps(batches("nanogpt", 3))
    workdir = import_checkpoint("nanogpt", there.checkpoint(), tmp_path / "one")
    printed = capsys.readouterr()
    assert "optimizer_state True" in printed.out
    assert "did not decay embeddings" in printed.err
    assert "its GELU is taken to be OpenAI's tanh form" in printed.err
    adam = optax.tree.get(restored(workdir)[2], "ScaleByAdamState")
    held = there.optimizer.state_dict()["state"]
    for name, path in (
        ("transformer.wpe.weight", ("positions", "table")),
        ("transformer.ln_f.bias", ("transformer", "norm_f", "bias")),
    ):
        found = adam.mu
        for key in path:
            found = found[key]
        expected = held[names.index(name)]["exp_avg"]
        np.testing.assert_array_equal(found, expected)


# What sample.py does with a checkpoint.


def test_its_sample_decodes_with_a_vocabulary_made_by_the_printed_command(
    tmp_path, monkeypatch, capsys
):
    there = Train("nanogpt")
    there.steps(batches("nanogpt", 1))
    vocabulary = tokenizers.CharTokenizer("\n 'abcdeéσ𝔘")
    tokenizers.save_tokenizer(vocabulary, tmp_path / "tokenizer.json")
    more = f"--tokenizer={tmp_path / 'tokenizer.json'}"
    workdir = import_checkpoint("nanogpt", there.checkpoint(), tmp_path / "one", more)
    capsys.readouterr()
    held = export("nanogpt", workdir, tmp_path / "ckpt.pt")
    note = capsys.readouterr().err.partition("python -c ")[2]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / held["config"]["dataset"]
    folder.mkdir(parents=True)
    exec(shlex.split(note)[0])
    meta = pickle.loads((folder / "meta.pkl").read_bytes())
    assert meta["vocab_size"] == held["model_args"]["vocab_size"] == 11
    ids = [meta["stoi"][letter] for letter in "bad σ𝔘"]
    assert ids == vocabulary.encode("bad σ𝔘").tolist()
    assert "".join(meta["itos"][i] for i in ids) == "bad σ𝔘"


def test_a_run_of_gpt2_tokens_names_no_dataset(tmp_path, capsys):
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": 50304, "n_embd": 2, "bias": False}
    checkpoint = {
        "model": GPT(GPTConfig(**sizes)).state_dict(),
        "model_args": sizes,
        "config": dict(CONFIG),
    }
    workdir = import_checkpoint("nanogpt", checkpoint, tmp_path / "one")
    capsys.readouterr()
    held = export("nanogpt", workdir, tmp_path / "ckpt.pt")
    assert "dataset" not in held["config"]
    printed = capsys.readouterr().err
    assert "meta.pkl" not in printed


def test_a_run_without_a_tokenizer_says_that_its_vocabulary_is_needed(tmp_path, capsys):
    there = Train("nanogpt")
    workdir = import_checkpoint("nanogpt", there.checkpoint(), tmp_path / "one")
    capsys.readouterr()
    held = export("nanogpt", workdir, tmp_path / "ckpt.pt")
    name = held["config"]["dataset"]
    line = f"reads the vocabulary of its data from data/{name}/meta.pkl"
    assert line in capsys.readouterr().err
