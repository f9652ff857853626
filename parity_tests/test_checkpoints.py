"""The originals' checkpoints: going on from theirs here, and from ours there.

The programs themselves cannot be shipped. `Train` is what they do to a checkpoint: its
keys, shapes and dtypes, a strict state dict, the optimizer's groups, and the schedule.
"""

import itertools
import json
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
from jaxgpt.data import tokenizer_files, tokenizers
from jaxgpt.errors import UserError
from jaxgpt.interop import formats
from jaxgpt.run import open_run
from jaxgpt.systems.registry import build_system
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import Checkpoints
from parity_tests.conftest import GOLDEN, relative
from parity_tests.torch_gpt import GPT, GPTConfig
from parity_tests.torch_nanollama import NanoLlama
from parity_tests.torch_teeny import Teeny
from tests.conftest import source_config

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


def descend(model, optimizer, loss, clip=None):
    """A step of PyTorch's optimizer; returns the loss."""
    optimizer.zero_grad()
    loss.backward()
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


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
            loss, clip = self.loss(tokens, order), self.config["grad_clip"]
            losses.append(descend(self.model, self.optimizer, loss, clip))
            self.it += 1
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


def restored(workdir, changes=()):
    """A run, its optimizer, and the optimizer's state."""
    run = open_run(str(workdir))
    configs.override(run.config, dict(changes))
    optimizer = optimizers.make_optimizer(run.config)
    abstract = {"opt_state": jax.eval_shape(optimizer.init, run.params)}
    checkpoints = Checkpoints(workdir, read_only=True)
    return run, optimizer, checkpoints.restore(run.step, abstract)["opt_state"]


def go_on(workdir, data, changes=()):
    """The losses of further steps of an imported run."""
    run, optimizer, state = restored(workdir, changes)
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
    assert "its GELU is taken to be OpenAI's, with tanh" in printed.err
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
    tokenizer_files.save(vocabulary, tmp_path / "tokenizer.json")
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
    line = "reads the vocabulary of its data from data/run/meta.pkl"
    assert line in capsys.readouterr().err
    assert held["config"]["dataset"] == "run"
    # Once it is trained here, it is named after its data.
    (workdir / "metrics.jsonl").touch()
    config = open_run(str(workdir)).config
    configs.override(config, {"data.path": str(tmp_path / "letters.txt")})
    configs.save(config, workdir / "config.json")
    held = export("nanogpt", workdir, tmp_path / "again.pt")
    assert held["config"]["dataset"] == "letters"


# nanollama's Checkpointer, of both versions.

LLAMA = {"nb_layers": 2, "nb_heads": 2, "emb_dim": 16, "ffn_dim": 24, "vocab_size": 11}
LLAMA |= {"seq_len": 12, "rope_theta": 1e4}
SCHEDULE = {
    "steps": 20,
    "optimizer.warmup_steps": 5,
    "optimizer.min_learning_rate": 1e-3,
}


class LlamaTrain:
    """Its model, one group of AdamW, LambdaLR, and what it loads from a checkpoint."""

    def __init__(self, later, checkpoint=None):
        torch.manual_seed(0)
        self.model = NanoLlama(LLAMA, later)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.factor)
        if checkpoint:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optim"])
            self.scheduler.load_state_dict(checkpoint["scheduler"])

    @staticmethod
    def factor(step):
        done = (step - 5) / 15
        return step / 5 if step < 5 else 0.1 + 0.45 * (1 + math.cos(math.pi * done))

    def steps(self, data):
        losses = []
        for tokens, _ in data:
            loss = self.model.loss(torch.tensor(tokens).long())
            losses.append(descend(self.model, self.optimizer, loss))
            self.scheduler.step()
        return losses

    def checkpoint(self):
        return {
            "model": self.model.state_dict(),
            "optim": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }


@pytest.fixture
def llama_settings(tmp_path):
    """--source_config of the earlier version, and of the later."""
    block = {"seq_len": 12, "nb_heads": 2, "hidden_dim": 24, "rope_theta": 1e4}
    later = {k: LLAMA[k] for k in ("nb_layers", "emb_dim", "vocab_size")}
    options = []
    for name, settings in (("earlier", LLAMA), ("later", later | {"block": block})):
        (tmp_path / name).write_text(json.dumps(settings))
        options.append(f"--source_config={tmp_path / name}")
    return options


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("before", [3, 6])
def test_nanollama_goes_on_alike(tmp_path, llama_settings, later, before):
    there = LlamaTrain(later)
    there.steps(batches("nanogpt", before))
    name = "nanollama-later" if later else "nanollama"
    # Either version is read by either name.
    workdir = import_checkpoint(
        "nanollama", there.checkpoint(), tmp_path / "one", llama_settings[later]
    )
    run = open_run(str(workdir))
    assert run.step == before
    configs.save(configs.override(run.config, SCHEDULE), workdir / "config.json")
    expected = there.steps(batches("nanogpt", 5, seed=1))
    found = go_on(workdir, batches("nanogpt", 5, seed=1))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    back = LlamaTrain(later, export(name, workdir, tmp_path / "checkpoint.pth"))
    again = back.steps(batches("nanogpt", 5, seed=1))
    np.testing.assert_allclose(again, expected, atol=1e-6)


@pytest.mark.parametrize("length", [64, 512, 2048])
def test_nanollama_far_positions_in_float64(tmp_path, length):
    """Both sides have its angles, which are made in float32."""
    settings = LLAMA | {"seq_len": length}
    torch.manual_seed(0)
    module = NanoLlama(settings)
    option = source_config(tmp_path, settings)
    checkpoint = {"model": module.state_dict()}
    workdir = import_checkpoint("nanollama", checkpoint, tmp_path / "one", option)
    tokens = np.random.default_rng(0).integers(0, 11, (1, length))
    run = open_run(str(workdir))
    with jax.enable_x64(True):
        config = configs.override(run.config, {"model.dtype": "float64"})
        system = build_system(config)
        params = jax.tree.map(lambda a: np.asarray(a, np.float64), run.params)
        logits = system.model(params)(tokens)[0]
    with torch.no_grad():
        expected = module.double()(torch.tensor(tokens)).numpy()
    assert logits.dtype == np.float64
    assert relative(logits, expected) < 1e-6


def test_nanollama_angles_of_another_theta_are_refused(tmp_path):
    there = LlamaTrain(False)
    option = source_config(tmp_path, LLAMA | {"rope_theta": 500})
    with pytest.raises(UserError, match="rope_modulator is not of rope_theta 500"):
        import_checkpoint("nanollama", there.checkpoint(), tmp_path / "one", option)


# teenyGPT's train.py and generate.py.

TEENY = {"n_attn_layers": 2, "n_attn_heads": 2, "n_dim": 16, "n_context_max": 12}
TEENY |= {"n_vocab": 11, "positional_encoding_type": "ALIBI"}
TEENY |= {"ffn_type": "SWISH_GLU", "layer_norm_type": "CLASSIC"}


def test_teenygpt_both_ways_with_its_key_and_an_optimizer(tmp_path):
    option = source_config(tmp_path, TEENY)
    torch.manual_seed(0)
    module = Teeny(2, 2, 16, 12, 11)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, betas=(0.9, 0.95))

    def step(tokens):
        tokens = torch.tensor(tokens).long()
        loss = module.loss(tokens[:, :-1], tokens[:, 1:])
        return descend(module, optimizer, loss)

    for tokens, _ in batches("nanogpt", 3):
        step(tokens)
    # What its train.py writes.
    plain = {"model_state_dict": module.state_dict()}
    workdir = import_checkpoint("teenygpt", plain, tmp_path / "plain", option)
    held = export("teenygpt", workdir, tmp_path / "plain.pt")
    for name, tensor in module.state_dict().items():
        assert torch.equal(held["model_state_dict"][name], tensor)
        assert held["model_state_dict"][name].dtype == tensor.dtype
    # And with the key under which PyTorch's tutorials keep an optimizer.
    full = plain | {"optimizer_state_dict": optimizer.state_dict()}
    workdir = import_checkpoint("teenygpt", full, tmp_path / "full", option)
    held = export("teenygpt", workdir, tmp_path / "full.pt")
    expected = [step(t) for t, _ in batches("nanogpt", 5, seed=1)]
    rate = {"optimizer.warmup_steps": 0, "optimizer.min_learning_rate": 1e-2}
    found = go_on(workdir, batches("nanogpt", 5, seed=1), rate)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert held["optimizer_state_dict"]["param_groups"][0]["weight_decay"] == 0.01


@pytest.mark.parametrize("path", sorted((GOLDEN / "teenygpt").glob("[A-Z]*.npz")))
def test_teenygpt_parameters_have_the_order_of_its_optimizer(path):
    kinds = path.stem.split("-")
    with np.load(path) as golden:
        names = [n.removeprefix("param/") for n in golden.files if n[:6] == "param/"]
    form = formats.get_format("teenygpt")
    fields = {"n_layer": len({n.split(".")[1] for n in names if ".linear_q" in n})}
    fields |= {
        field: values[kind]
        for (field, (_, values, _)), kind in zip(
            form.choices.items(), kinds, strict=True
        )
    }
    config = configs.override(
        configs.base(), {f"model.{field}": value for field, value in fields.items()}
    )
    assert [rule.name for rule in form.rules(config.model)] == names
