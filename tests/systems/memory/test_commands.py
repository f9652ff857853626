"""Training, evaluation and sampling with a memory, as commands."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import evaluate, sample
from jaxgpt.commands.setup import open_setup
from jaxgpt.commands.train import train
from jaxgpt.errors import UserError
from jaxgpt.run import open_run
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory import evaluation, system
from jaxgpt.systems.memory.documents import Memory
from jaxgpt.systems.memory.ingestion import recent
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.loop import Trainer
from tests.conftest import ROOT, last_json
from tests.systems.memory.conftest import PLAYS, RECALL
from tests.systems.memory.test_model import T, V, make, random_like

pytestmark = pytest.mark.unoptimised


def digests_of(workdir, step):
    folder = workdir / "checkpoints" / str(step) / "digests"
    return json.loads(next(folder.rglob("metadata")).read_text())["arrays"]


@pytest.mark.trains
@pytest.mark.parametrize("kind", ["flat", "graph"])
def test_restore_and_continue_is_bit_equal(tmp_path, kind):
    changes = {"memory.index_type": kind, "steps": "10", "memory.memory_size": "64"}
    changes |= {"memory.forgetfulness_factor": "0.01"}
    every = {"checkpoint_interval": "5"}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert train(configs.load(RECALL, changes), straight) == 0
    assert train(configs.load(RECALL, changes | every), broken) == 0
    shutil.rmtree(broken / "checkpoints" / "10")
    assert train(configs.load(RECALL, changes | every), broken) == 0
    one, other = (digests_of(folder, 10) for folder in (straight, broken))
    assert any(name.startswith("carried/entries/key") for name in one)
    assert any(name.startswith("host/") for name in one) == (kind == "graph")
    assert one == other


@pytest.mark.trains
def test_evaluation_leaves_the_training_memory_as_it_is(tmp_path):
    (tmp_path / "run").mkdir()
    trainer = Trainer(open_setup(configs.load(RECALL, {}), tmp_path / "run"))
    for _ in range(3):
        trainer.train_state.run_step()
    before = jax.tree.map(np.array, trainer.train_state.arrays["carried"])
    trainer.evaluate()
    for a, b in zip(
        jax.tree.leaves(before),
        jax.tree.leaves(trainer.train_state.arrays["carried"]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    trainer.train_state.run_step()
    trainer.checkpoints.close()


def test_evaluate_reports_the_memory_on_off_and_shuffled(played, capsys, monkeypatch):
    read, ways = evaluation.read_documents, []

    def counted(*arguments):
        ways.append(arguments[-1])
        return read(*arguments)

    for module in (evaluation, system):
        monkeypatch.setattr(module, "read_documents", counted)
    evaluate.command([f"--workdir={played}", "--json=-"])
    figures = last_json(capsys)
    assert ways == ["on", "off", "shuffled"]
    assert figures["loss"] == figures["loss_on"]
    for way in ("on", "off", "shuffled"):
        assert 0 <= figures[f"f1_{way}"] <= 1
        assert 0 <= figures[f"accuracy_{way}"] <= 1
    assert set(figures["loss_by_distance_on"]) == set(figures["loss_by_distance_off"])
    assert len(figures["loss_by_position_on"]) == 16
    evaluate.command([f"--workdir={played}", "--config.memory.reading=off"])
    assert f"{figures['loss_off']:.6g}" in capsys.readouterr().out


@pytest.mark.trains
def test_output_mode_reads_any_causal_run(tmp_path, capsys):
    workdir = tmp_path / "run"
    config = configs.load(f"{ROOT}/configs/teeny_char.py:tiny", {"steps": "3"})
    assert train(config, workdir) == 0
    command = [f"--workdir={workdir}", "--json=-", "--split=test"]
    evaluate.command(command)
    base = last_json(capsys)["loss"]
    command += ["--config.system=memory", "--config.memory.mode=output"]
    evaluate.command([*command, "--config.memory.weight=0"])
    assert last_json(capsys)["loss"] == pytest.approx(base, abs=0.02)
    with pytest.raises(UserError, match="without a memory: add"):
        evaluate.command([*command[:3], "--config.memory.weight=0"])
    with pytest.raises(UserError, match="is for training"):
        evaluate.command([*command, "--config.steps=3"])
    with pytest.raises(UserError, match="no parameters of a memory"):
        evaluate.command([*command, "--config.memory.mode=associative"])


def test_sample_continues_segments_of_documents(played, capsys):
    options = ["--split=val", "--max_new_tokens=2", "--num_samples=2", "--json=-"]
    sample.command([f"--workdir={played}", *options])
    one, two = last_json(capsys)["samples"]
    half = configs.load_frozen(played).model.block_size // 2
    assert len(one["tokens"]) == len(two["tokens"]) == half + 2
    assert one["prompt"] != two["prompt"]


def test_sample_carries_explains_and_forgets(played, tmp_path, capsys):
    file = tmp_path / "memory.safetensors"
    common = [f"--workdir={played}", f"--memory={file}", "--json=-"]
    common += ["--config.memory.memory_size=256"]
    prompt = "the queen of night sings and no king dares speak the queen"
    ask = [*common, f"--prompt={prompt}", "--max_new_tokens=12", "--explain"]
    sample.command([*ask, "--document=first"])
    one = last_json(capsys)["samples"][0]
    assert one["text"].startswith(prompt) and len(one["memories"]) == 12
    sample.command([*ask, "--document=second"])
    two = last_json(capsys)["samples"][0]
    named = {m["document"] for token in two["memories"] for m in token["memories"]}
    assert "first" in named <= {"first", "second"}
    for token in two["memories"]:
        for memory in token["memories"]:
            assert memory["text"] in one["text"] + two["text"]
    sample.command([*common, "--forget=first"])
    forgotten = last_json(capsys)
    # All 58 tokens of the prompt and the 12 new ones.
    assert forgotten == {"forgotten": 70, "left": 70}
    with pytest.raises(UserError, match="no document 'first'"):
        sample.command([*common, "--forget=first"])
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match="is damaged"):
        sample.command(ask)
    file.write_bytes(b"xx")
    with pytest.raises(UserError, match="is not a memory, or damaged"):
        sample.command(ask)


def test_what_comes_after_the_stop_text_is_not_stored(played, tmp_path, capsys):
    prompt, file, new = "the queen", tmp_path / "memory", 11
    common = [f"--workdir={played}", f"--prompt={prompt}", "--max_new_tokens=40"]
    common += ["--config.memory.memory_size=128", "--json=-"]
    sample.command(common)
    whole = last_json(capsys)["samples"][0]["text"]
    stop = whole[len(prompt) :][:new]
    sample.command([*common, f"--stop={stop}", f"--memory={file}", "--explain"])
    cut = last_json(capsys)["samples"][0]
    assert cut["text"] == whole[: len(prompt) + new]
    assert len(cut["memories"]) == new
    run = open_run(str(played), overrides={"memory.memory_size": "128"})
    memory = Memory.load(file, run.system.host)
    assert memory.texts[0].tolist() == cut["tokens"]
    assert memory.documents()[0].entries == len(cut["tokens"])


def test_a_memory_of_other_settings_is_refused(played, tmp_path):
    run = open_run(str(played))
    file = tmp_path / "memory.safetensors"
    Memory.empty(run.system.host).save(file)
    for change, expected in (
        ("context=1", "memory.context 3: this one has 1"),
        ("store_layer=0", "memory.store_layer -2: this one has 0"),
    ):
        with pytest.raises(UserError, match=expected):
            sample.command(
                [f"--workdir={played}", f"--memory={file}", f"--config.memory.{change}"]
            )
    with pytest.raises(UserError, match="--forget needs --memory"):
        sample.command([f"--workdir={played}", "--forget=x"])


@pytest.mark.parametrize(
    "mode, changes, exact",
    [
        ("associative", {}, True),
        # What was read of b lives on in the hidden states of c.
        ("associative", {"memory.store_layer": 0}, False),
        ("associative", {"memory.delete": True}, False),
        ("attention", {}, True),
        ("attention", {"memory.layer": 0}, True),
        ("output", {}, True),
    ],
)
def test_forgetting_restores_the_logits(mode, changes, exact):
    system, params = make(mode, **{"memory.memory_size": 64}, **changes)
    if mode != "output":
        params["memory"] = random_like(params["memory"])
    texts = np.random.default_rng(0).integers(0, V, (4, 2 * T + 1)).astype(np.int32)

    def memory_of(*names):
        memory, known = Memory.empty(system.host), np.ones((1, 2 * T + 1), bool)
        for name in names:
            text_1T, key = texts["abc".index(name)][None], jax.random.key(0)
            system.sample(params, text_1T, known, key, memory=memory, document=name)
        return memory

    def logits(memory):
        before = np.full((1, system.host.format.context), -1)
        state = {"entries": memory.store.entries, "recent": before}
        lookup = system.host.lookup(state, "on")
        module = system.model(params)
        return module.read(texts[3][None, :T], before, lookup).logits_BTV

    def entries_of(memory, number):
        entries = memory.store.entries
        at = (np.asarray(entries["document"]) == number) & np.asarray(ops.used(entries))
        kept = {name: entries[name] for name in ("key", "values", "token", "position")}
        return jax.tree.map(lambda array: np.asarray(array)[at], kept)

    with_it, without = memory_of("a", "b", "c"), memory_of("a", "c")
    assert np.abs(logits(with_it) - logits(without)).max() > 1e-6
    same = jax.tree.map(np.array_equal, entries_of(with_it, 2), entries_of(without, 1))
    assert all(jax.tree.leaves(same)) == exact
    assert system.host.format.entangled != exact
    # Nothing came after the last token.
    assert with_it.forget("b", params) == 2 * T + (mode != "output")
    assert np.array_equal(logits(with_it), logits(without))


def test_generation_through_the_cache_equals_the_forward_pass(played):
    run = open_run(str(played))
    tokens = np.zeros((2, 40), np.int32)
    tokens[:, :9] = np.random.default_rng(1).integers(0, 9, (2, 9))
    known = np.tile(np.arange(40) < 9, (2, 1))
    sampling = SamplingParams(temperature=0.0)
    filled = run.system.sample(run.params, tokens, known, jax.random.key(1), sampling)
    assert filled.decoded_BT.all()
    memory, W = Memory.empty(run.system.host, 2), run.system.host.format.context
    whole = np.ones((2, 40), bool)
    texts = filled.tokens_BT
    # Fed as a given text, each token's forward pass must choose it.
    module = run.system.model(run.params)
    for start in (0, 16):
        before = np.stack([recent(text_T[:start], W) for text_T in texts])
        state = {"entries": memory.store.entries, "recent": before}
        lookup = run.system.host.lookup(state, "on")
        part = texts[:, start : start + 17]
        read = module.read(part[:, :-1], state["recent"], lookup)
        likeliest = np.asarray(read.logits_BTV.argmax(-1))
        free = slice(max(8 - start, 0), None)
        np.testing.assert_array_equal(likeliest[:, free], part[:, 1:][:, free])
        key = jax.random.key(0)
        run.system.sample(run.params, part[:, :-1], whole[:, :16], key, memory=memory)


@pytest.mark.trains
def test_patience_ends_a_run_and_it_stays_ended(documents, tmp_path, capsys):
    changes = {"data.path": str(documents), "patience": "2", "steps": "1000"}
    changes |= {"optimizer.learning_rate": "0", "optimizer.min_learning_rate": "0"}
    changes |= {"eval_interval": "2", "checkpoint_interval": "1000"}
    config = configs.load(PLAYS, changes)
    assert train(config, tmp_path / "run") == 0
    assert "no better than the best" in capsys.readouterr().err
    last = Checkpoints(tmp_path / "run", read_only=True).steps()[-1]
    assert last < 20
    assert train(configs.load(PLAYS, changes), tmp_path / "run") == 0
    assert Checkpoints(tmp_path / "run", read_only=True).steps()[-1] == last


@pytest.mark.trains
def test_a_memory_is_added_to_a_trained_run(documents, played, tmp_path):
    start = tmp_path / "causal"
    changes = {"data.path": str(documents), "memory.mode": "output", "steps": "2"}
    assert train(configs.load(PLAYS, changes), start) == 0
    changes = {"data.path": str(documents), "init_from": str(start), "steps": "1"}
    assert train(configs.load(PLAYS, changes), tmp_path / "run") == 0
    changes |= {"init_from": str(played), "memory.memory_dim": "8"}
    with pytest.raises(UserError, match="parameters of other shapes"):
        train(configs.load(PLAYS, changes), tmp_path / "other")


# Addresses of one token come again, and rounding decides between equal ones: without
# `deterministic` those of four, all of them different here, are compared.
@pytest.mark.process
@pytest.mark.parametrize(
    "exact, mode, context, counts",
    [
        ("false", "associative", "4", (1, 2, 8)),
        ("true", "associative", "1", (1, 2, 4, 8)),
        ("true", "attention", "1", (1, 8)),
    ],
)
def test_devices_change_no_loss_and_rows_stay(tmp_path, exact, mode, context, counts):
    found = {}
    for count in counts:
        flags = f"--xla_force_host_platform_device_count={count}"
        env = {**os.environ, "XLA_FLAGS": flags}
        if exact == "false":  # Equal to 1e-5, however it is compiled.
            env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        workdir = tmp_path / str(count)
        command = [sys.executable, "-m", "jaxgpt.train", f"--config={RECALL}"]
        command += [f"--workdir={workdir}", "--config.steps=6"]
        command += ["--config.eval_interval=6", "--config.log_interval=1"]
        command += [f"--config.deterministic={exact}", f"--config.memory.mode={mode}"]
        command += [f"--config.memory.context={context}", "--config.model.n_layer=1"]
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=200)
        rows = (workdir / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(row) for row in rows]
        losses = [row["loss"] for row in rows if "loss" in row]
        losses += [row["val_loss"] for row in rows if "val_loss" in row]
        assert len(losses) == 6 + 2
        found[count] = losses, digests_of(workdir, 6)
    for count in counts[1:]:
        np.testing.assert_allclose(found[1][0], found[count][0], atol=1e-5)
        assert (found[1] == found[count]) == (exact == "true")


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"accumulation": "2"}, "accumulation must be 1 for system=memory, got 2"),
        (
            {"deterministic": "true", "memory.shared": "true"},
            "incompatible with memory.shared",
        ),
        (
            {"deterministic": "true", "memory.reading": "shuffled"},
            "deterministic is incompatible with memory.reading=shuffled",
        ),
        ({"memory.layer": "9"}, r"memory.layer must be in \[-1, 1\], got 9"),
        ({"memory.mode": "none"}, "must be one of associative, attention, output"),
        (
            {"memory.mode": "attention", "model.positions": "rope"},
            "is incompatible with model.positions=rope",
        ),
        ({"model.block_size": "16"}, "model.block_size must be 32 for the recall task"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected):
        train(configs.load(RECALL, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_documents_are_split_and_read_in_order(documents):
    from jaxgpt.data.documents import open_documents

    config = configs.load(PLAYS, {"data.path": str(documents)})
    data = open_documents(config, 17)
    assert len(data.splits["train"].ends) == 3
    segments = data.eval_windows("val", 17)
    for stream in segments.streams():
        np.testing.assert_array_equal(
            segments.tokens_NT[stream][1:, 0], segments.tokens_NT[stream][:-1, -1]
        )
        np.testing.assert_array_equal(
            segments.start_N[stream], 16 * np.arange(len(stream))
        )
    before = data.batch_at(1, "train", 0, 3, 17)
    for step in range(1, 120):
        batch = data.batch_at(1, "train", step, 3, 17)
        again = data.batch_at(1, "train", step, 3, 17)
        np.testing.assert_array_equal(batch["tokens"], again["tokens"])
        for row in range(3):
            if batch["start"][row]:
                assert batch["start"][row] == before["start"][row] + 16
                assert batch["tokens"][row, 0] == before["tokens"][row, -1]
        before = batch
    with pytest.raises(UserError, match="the 100000 tokens of a segment"):
        open_documents(config, 100000)
