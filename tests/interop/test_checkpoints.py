"""Checkpoints as programs of nanoGPT's kind write them, and their copies."""

import argparse
import dataclasses
import json
import pathlib

import numpy as np
import pytest
import torch

from jaxgpt import convert
from jaxgpt.errors import UserError
from jaxgpt.interop import formats
from jaxgpt.run import load, open_run
from jaxgpt.training.checkpoint import Checkpoints, DamagedError
from tests.interop.conftest import NANO, assert_equal


@pytest.fixture
def read(tmp_path):
    """Saves a checkpoint and reads it."""

    def read(checkpoint, settings=None, name="nanogpt"):
        path, file = tmp_path / "ckpt.pt", tmp_path / "settings.json"
        torch.save(checkpoint, path)
        file.write_text(json.dumps(settings))
        used = None if settings is None else str(file)
        return formats.get_format(name).read(str(path), used)

    return read


# Values beside the weights that are no tensors.


@dataclasses.dataclass
class GPTConfig:
    block_size: int = 32
    vocab_size: int = 65
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 32


def test_a_configuration_of_a_class_gives_the_sizes(nano, nano_params, read):
    checkpoint = {"model": nano["model"], "config": GPTConfig(), "step": 100}
    original = read(checkpoint)
    assert_equal(original.params, nano_params)
    assert original.config.model.n_head == 4


def test_a_class_without_its_values_is_passed_over_and_named(nano, read):
    class_only = GPTConfig.__new__(GPTConfig)
    checkpoint = {"model": nano["model"], "config": class_only}
    with pytest.raises(UserError, match="does not give its n_layer"):
        read(checkpoint)
    original = read(checkpoint, dataclasses.asdict(GPTConfig()))
    assert original.notes[0] == f"skipped: config ({__name__}.GPTConfig)"


def test_numpy_numbers_and_a_namespace_are_read(nano, read):
    config = argparse.Namespace(**nano["config"])
    config.out_dir, config.min_lr = pathlib.PurePosixPath("out"), np.float64(1e-5)
    original = read(nano | {"config": config, "best_val_loss": np.float64(2.5)})
    assert original.config.optimizer.min_learning_rate == 1e-5
    assert original.notes[0] == "skipped: config.out_dir (pathlib.PurePosixPath)"


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "module"])
def test_other_keys_of_the_state_dict(nano, nano_params, read, key):
    checkpoint = {key: nano["model"], "hyper_parameters": nano["model_args"]}
    assert_equal(read(checkpoint).params, nano_params)


def test_a_head_of_its_own_if_it_is_meant(nano, tmp_path, capsys):
    path, file = tmp_path / "ckpt.pt", tmp_path / "settings.json"
    head = nano["model"]["lm_head.weight"].flip(0)
    torch.save(nano | {"model": dict(nano["model"]) | {"lm_head.weight": head}}, path)
    file.write_text('{"tie_word_embeddings": false}')
    tokens = [np.arange(20)]
    found = load(str(path), source_config=str(file)).logits(tokens)[0]
    assert "its optimizer state is left out" in capsys.readouterr().err
    tied = load(str(NANO)).logits(tokens)[0]
    np.testing.assert_allclose(found, tied[:, ::-1], atol=1e-6)


def test_notes_are_printed_once_the_run_is_written(nano, tmp_path, capsys):
    path = tmp_path / "ckpt.pt"
    torch.save(nano | {"when": pathlib.PurePosixPath("x")}, path)
    convert.command(
        ["--format=nanogpt", f"--source={path}", f"--workdir={tmp_path / 'run'}"]
    )
    line = f"note: '{path}': skipped: when (pathlib.PurePosixPath)\n"
    assert line in capsys.readouterr().err


def test_a_checkpoint_of_a_whole_module_is_refused(read):
    with pytest.raises(UserError, match=r"a torch\.nn.*Linear: save its state_dict"):
        read(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"model is not .* but of class torch\.nn"):
        read({"model": torch.nn.Linear(2, 2)})


def test_numbers_as_text_or_of_another_type_are_read(nano, read):
    changes = {"batch_size": 4.0, "gradient_accumulation_steps": "2"}
    changes |= {"learning_rate": "6e-4", "min_lr": torch.tensor(1e-5)}
    config = read(nano | {"config": nano["config"] | changes}).config
    assert (config.batch_size, config.accumulation) == (8, 2)
    assert config.optimizer.learning_rate == 6e-4
    assert config.optimizer.min_learning_rate == pytest.approx(1e-5)


# An optimizer's state.


def test_nothing_is_asked_whether_it_is_true_that_may_be_an_array(nano, read):
    array = torch.zeros(3)
    with pytest.raises(UserError, match="expected 28 entries, one per array"):
        read(nano | {"optimizer": nano["optimizer"] | {"state": array}})
    with pytest.raises(UserError, match="decay_lr must be true or false, got array"):
        read(nano | {"config": nano["config"] | {"decay_lr": array}})


@pytest.mark.parametrize("optimizer", [None, {}, {"state": {}, "param_groups": []}])
def test_weights_alone_where_there_is_no_optimizer_state(
    nano, nano_params, read, optimizer
):
    original = read(nano | {"optimizer": optimizer})
    assert_equal(original.params, nano_params)
    assert original.moments is None
    line = "it has no optimizer state: only its weights are imported"
    assert original.notes == (line,)


def test_groups_that_no_version_had_are_left_out(nano, nano_params, read):
    names = [*range(28)]
    groups = [{"params": names[:5]}, {"params": names[5:]}]
    original = read(nano | {"optimizer": nano["optimizer"] | {"param_groups": groups}})
    assert_equal(original.params, nano_params)
    assert original.moments is None
    assert "its groups of (5, 23) parameters are not nanoGPT's" in original.notes[0]


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"amsgrad": True}, "its optimizer has amsgrad True, training here False"),
        ({"maximize": True}, "its optimizer has maximize True, training here False"),
        ({"eps": 1e-6}, "its optimizer has eps 1e-06, training here 1e-08"),
        (
            {"decoupled_weight_decay": False, "weight_decay": 0.1},
            "its optimizer has decoupled_weight_decay False, training here True",
        ),
        ({"decoupled_weight_decay": False, "weight_decay": 0.0}, None),
    ],
)
def test_an_optimizer_that_goes_on_otherwise_here(nano, read, setting, said):
    groups = [group | setting for group in nano["optimizer"]["param_groups"]]
    original = read(nano | {"optimizer": nano["optimizer"] | {"param_groups": groups}})
    assert original.moments is not None
    assert original.notes[1:] == ((said,) if said else ())  # The first: its warmup.


def test_arrays_that_were_not_updated_as_often(nano, read):
    state = nano["optimizer"]["state"]
    state = state | {3: state[3] | {"step": torch.tensor(2.0)}}
    original = read(nano | {"optimizer": nano["optimizer"] | {"state": state}})
    line = "not all its arrays were updated 5 times, as is assumed"
    assert original.notes[1:] == (line,)


def test_a_rate_that_no_version_had_in_its_warmup(nano, read):
    config = nano["config"] | {"warmup_iters": 100, "learning_rate": 0.123}
    original = read(nano | {"config": config})
    assert "optimizer.warmup_from_zero is False" in original.notes[0]


def test_damaged_moments_are_one_line_and_not_needed_for_an_npz(
    nano, tmp_path, monkeypatch
):
    path, workdir = tmp_path / "ckpt.pt", tmp_path / "run"
    torch.save(nano, path)
    argv = ["--format=nanogpt", f"--workdir={workdir}"]
    convert.command([*argv, f"--source={path}"])
    restore = Checkpoints.restore

    def damaged(self, step, abstract, with_host=False):
        if "opt_state" in abstract:
            raise DamagedError("array opt_state/1 differs from its digest")
        return restore(self, step, abstract, with_host)

    monkeypatch.setattr(Checkpoints, "restore", damaged)
    with pytest.raises(UserError, match=r"checkpoint 5 .* is damaged .*opt_state/1"):
        convert.command([*argv, f"--output={tmp_path / 'out.pt'}"])
    convert.command([*argv, f"--output={tmp_path / 'out.npz'}"])


# The vocabulary of another person's text.


def test_a_vocabulary_is_given_as_nanogpt_s_meta_in_json(nano, tmp_path):
    path, meta, workdir = (tmp_path / n for n in ("ckpt.pt", "meta.json", "run"))
    torch.save(nano, path)
    letters = [chr(ord("0") + i) for i in range(65)]
    itos = {str(i): letter for i, letter in enumerate(letters)}
    stoi = {letter: i for i, letter in enumerate(letters)}
    meta.write_text(json.dumps({"vocab_size": 65, "itos": itos, "stoi": stoi}))
    argv = ["--format=nanogpt", f"--source={path}", f"--workdir={workdir}"]
    convert.command([*argv, f"--tokenizer={meta}"])
    assert open_run(str(workdir)).tokenizer.decode([3, 0, 1]) == "301"


# Which GELU.


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [
        ({"bias": True}, None, "gelu"),
        ({}, None, "gelu_tanh"),
        ({}, {"activation_function": "gelu"}, "gelu"),
        ({"bias": True}, {"activation_function": "gelu_new"}, "gelu_tanh"),
    ],
)
def test_checkpoints_from_before_there_was_a_bias_have_the_old_gelu(
    nano, read, arguments, settings, expected
):
    kept = {k: v for k, v in nano["model_args"].items() if k != "bias"}
    original = read(nano | {"model_args": kept | arguments}, settings)
    assert original.config.model.activation == expected
    said = [note for note in original.notes if "GELU" in note]
    assert len(said) == (expected == "gelu_tanh" and settings is None)


@pytest.mark.parametrize(
    "order", ["randcur", "randcur:x", "randcur:200", "random:5", 3]
)
def test_orders_that_no_sigma_gpt_knows(nano, read, order):
    checkpoint = nano | {"config": nano["config"] | {"order_type": order}}
    state = dict(nano["model"])
    state["transformer.wpe.weight"] = state["transformer.wpe.weight"][:, :16]
    with pytest.raises(UserError, match="order_type must be one of random"):
        read(checkpoint | {"model": state}, name="sigma-gpt")
