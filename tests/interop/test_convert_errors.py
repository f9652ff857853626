import json
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch

from jaxgpt import convert
from jaxgpt.errors import UserError
from jaxgpt.interop import formats
from jaxgpt.run import open_run
from tests.conftest import refusal, source_config
from tests.interop.conftest import GOLDEN, GPT2, NANO, assert_equal, sharded

SIGMA = GOLDEN / "sigma" / "tiny_bias_perturbed.npz"
SIGMA_SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24}
SIGMA_SIZES |= {"vocab_size": 65, "bias": True}
WTE = "transformer.wte.weight"


@pytest.fixture
def refused(tmp_path, capfd):
    """Runs an import that must refuse: returns its one line; nothing is written."""

    def refused(*options):
        workdir = tmp_path / "new" / "run"
        argv = [str(option) for option in options]
        if not any(option.startswith("--workdir") for option in argv):
            argv.append(f"--workdir={workdir}")
        capfd.readouterr()
        message = refusal(convert.command, argv)
        assert len(message) < 700
        printed = capfd.readouterr()
        assert (printed.out, printed.err) == ("", "")
        assert not workdir.parent.exists()
        return message

    return refused


@pytest.fixture
def nano_refused(refused, tmp_path, nano):
    """Imports a nanoGPT checkpoint with some of its parts changed."""

    def nano_refused(*options, name="nanogpt", **changes):
        path = tmp_path / "changed.pt"
        torch.save(nano | changes, path)
        message = refused(f"--format={name}", f"--source={path}", *options)
        assert str(path) in message
        return message

    return nano_refused


@pytest.fixture
def gpt2_refused(refused, folder):
    def gpt2_refused(settings=(), arrays=()):
        path = folder(settings, arrays)
        message = refused("--format=gpt2", f"--source={path}")
        assert str(path) in message
        return message

    return gpt2_refused


def replaced(nano, name, tensor):
    return {"model": dict(nano["model"]) | {name: tensor}}


def arguments(nano, **changes):
    return {"model_args": nano["model_args"] | changes}


# Options.


def test_an_unknown_format(refused):
    message = refused("--format=llama", f"--source={NANO}")
    assert "invalid choice: 'llama'" in message


def test_no_format_and_no_workdir(refused):
    assert "--format" in refused(f"--source={NANO}")
    with pytest.raises(UserError, match="--workdir"):
        convert.command(["--format=gpt2", f"--source={GPT2}"])


def test_neither_or_both_of_source_and_output(refused, tmp_path):
    assert "--source --output is required" in refused("--format=gpt2")
    output = tmp_path / "output"
    message = refused("--format=gpt2", f"--source={GPT2}", f"--output={output}")
    assert "not allowed with argument" in message
    assert not output.exists()


@pytest.mark.parametrize("name", ["none", "none.pt", "none.npz", "none.safetensors"])
def test_a_source_that_is_missing(refused, tmp_path, name):
    message = refused("--format=nanogpt", f"--source={tmp_path / name}")
    assert f"'{tmp_path / name}' does not exist" in message


def test_a_source_of_an_unknown_kind(refused, tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"x")
    message = refused("--format=gpt2", f"--source={path}")
    assert "is not a .pt, .ckpt, .bin, .safetensors or .npz file or a folder" in message


def test_a_folder_without_weights_or_configuration(refused, tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    message = refused("--format=gpt2", f"--source={path}")
    assert message == (
        f"'{path}' holds no config.json: name a folder that does, or a file of weights"
    )
    (path / "ckpt.pt").touch()
    message = refused("--format=gpt2", f"--source={path}")
    assert message.endswith(f"a file of weights, such as '{path / 'ckpt.pt'}'")
    (path / "config.json").write_text("{}")
    message = refused("--format=gpt2", f"--source={path}")
    assert "has neither model.safetensors nor pytorch_model.bin" in message


def test_workdirs_that_are_taken(refused, tmp_path):
    for path in (tmp_path / "taken", tmp_path / "file"):
        if path.name == "file":
            path.write_text("mine")
        else:
            path.mkdir()
            (path / "mine").write_text("mine")
        options = ["--format=nanogpt", f"--source={NANO}", f"--workdir={path}"]
        assert f"--workdir '{path}' is not empty" in refused(*options)
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine"]


def test_a_workdir_inside_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    workdir = tmp_path / "file" / "run"
    options = ["--format=nanogpt", f"--source={NANO}", f"--workdir={workdir}"]
    assert f"--workdir '{workdir}' cannot be written" in refused(*options)


# The wrong --format.


def test_a_nanogpt_checkpoint_as_gpt2(refused):
    message = refused("--format=gpt2", f"--source={NANO}")
    assert "does not give its n_positions" in message
    assert "--format" in message


def test_a_nanogpt_checkpoint_as_gpt2_with_its_configuration(refused, tmp_path):
    options = [f"--source={NANO}", source_config(tmp_path, {"n_positions": 32})]
    message = refused("--format=gpt2", *options)
    assert "has shape [96, 32], the configuration implies [32, 96]" in message
    assert "is --format right?" in message


def test_a_nanogpt_checkpoint_as_sigma_gpt(refused):
    message = refused("--format=sigma-gpt", f"--source={NANO}")
    assert "transformer.wpe.weight has shape [32, 32]" in message
    assert "is --format right?" in message


def test_a_gpt2_folder_as_nanogpt(refused, tmp_path):
    message = refused("--format=nanogpt", f"--source={GPT2}")
    assert "does not give its block_size" in message
    options = [f"--source={GPT2}", source_config(tmp_path, {"block_size": 32})]
    assert "is --format right?" in refused("--format=nanogpt", *options)


def test_a_sigma_gpt_state_dict_as_nanogpt(refused, tmp_path):
    options = [f"--source={SIGMA}", source_config(tmp_path, SIGMA_SIZES)]
    message = refused("--format=nanogpt", *options)
    assert "transformer.wpe.weight has shape [24, 16]" in message


# State dicts.


def test_another_architecture(nano_refused, nano):
    other = {"model": {"model.layers.0.q_proj.weight": torch.zeros(3, 3)}}
    assert "has another architecture" in nano_refused(**other)
    changed = replaced(nano, "transformer.h.0.attn.rotary.weight", torch.zeros(3))
    message = nano_refused(**changed)
    assert "has unknown transformer.h.0.attn.rotary.weight" in message


def test_a_parameter_that_is_missing(nano_refused, nano):
    state = dict(nano["model"])
    del state["transformer.h.1.mlp.c_fc.weight"]
    message = nano_refused(model=state)
    assert "lacks transformer.h.1.mlp.c_fc.weight" in message
    del state[WTE], state["lm_head.weight"]
    assert f", {WTE}" in nano_refused(model=state)


@pytest.mark.parametrize(
    "key, expected",
    [
        ("two\nlines", r"has unknown 'two\nlines'"),
        ("\x1b[2J", r"unknown '\x1b[2J'"),
        ("k" * 9999, "unknown kkk"),
        (3, "3 is not an array of numbers"),
        ((1, 2), "(1, 2) is not an array of numbers"),
        (None, "None is not an array of numbers"),
        (f"_orig_mod.{WTE}", f"holds {WTE} under two names"),
        ("wte.weight", f"holds {WTE} under two names"),
        (f"module.{WTE}", f"holds {WTE} under two names"),
    ],
    ids=range(9),
)
def test_keys_that_no_state_dict_has(nano_refused, nano, key, expected):
    assert expected in nano_refused(**replaced(nano, key, torch.zeros(3)))


@pytest.mark.parametrize("value", [None, 3, "text", [1.0], {"a": torch.zeros(3)}, 1.5])
def test_values_that_no_state_dict_has(nano_refused, nano, value):
    message = nano_refused(**replaced(nano, WTE, value))
    assert f"{WTE} is not an array of numbers" in message


def test_no_state_dict_at_all(refused, nano_refused, tmp_path):
    assert "it is empty" in nano_refused(model={})
    assert "model is not an array of numbers" in nano_refused(model=[1, 2])
    path = tmp_path / "list.pt"
    torch.save([torch.zeros(3)], path)
    message = refused("--format=nanogpt", f"--source={path}")
    assert "holds no state dict" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [WTE, "transformer.h.1.ln_2.bias"])
def test_weights_that_are_not_finite(nano_refused, nano, name, value):
    bad = nano["model"][name].clone()
    bad.view(-1)[5] = value
    state = dict(nano["model"]) | {name: bad}
    if name == WTE:
        state["lm_head.weight"] = bad
    assert f"{name} is not finite everywhere" in nano_refused(model=state)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_weights_that_are_no_floats(nano_refused, nano, dtype):
    name = "transformer.h.0.mlp.c_fc.weight"
    message = nano_refused(**replaced(nano, name, nano["model"][name].to(dtype)))
    kind = str(dtype).removeprefix("torch.")
    assert f"{name} holds {kind} numbers" in message
    assert "save the weights as float32" in message


def test_a_head_of_its_own(nano_refused, gpt2_refused, nano):
    head = nano["model"]["lm_head.weight"] + 1e-6
    message = nano_refused(**replaced(nano, "lm_head.weight", head))
    assert "has an untied head: lm_head.weight differs from wte.weight" in message
    assert message.endswith('{"tie_word_embeddings": false}')
    head = nano["model"]["lm_head.weight"][:-1]
    assert "untied head" in nano_refused(**replaced(nano, "lm_head.weight", head))
    array = np.zeros((61, 32), np.float32)
    message = gpt2_refused((), {"lm_head.weight": array})
    assert 'wte.weight: if that is meant, pass --source_config=FILE.json with {"' in (
        message
    )


def test_a_shape_that_does_not_fit(nano_refused, nano):
    name = "transformer.h.0.mlp.c_fc.weight"
    message = nano_refused(**replaced(nano, name, torch.zeros(64, 32)))
    assert f"{name} has shape [64, 32], the configuration implies [128, 32]" in message
    assert "--format" not in message
    message = nano_refused(**replaced(nano, WTE, torch.zeros(())))
    assert "untied head" in message
    state = {k: v for k, v in nano["model"].items() if k != "lm_head.weight"}
    message = nano_refused(model=state | {WTE: torch.zeros(())})
    assert f"{WTE} has shape [], the configuration implies [65, 32]" in message


# Configurations.


@pytest.mark.parametrize("key", ["n_layer", "n_head", "n_embd", "block_size"])
@pytest.mark.parametrize(
    "value",
    [0, -1, -(10**30), 10**9, 10**30, 10**5000, True, 2.0, 2.5, "2", [2], {}, np.nan],
    ids=range(13),
)
def test_sizes_of_nanogpt_that_cannot_be(nano_refused, nano, key, value):
    message = nano_refused(**arguments(nano, **{key: value}))
    assert key in message


@pytest.mark.parametrize("key", ["n_layer", "n_head", "n_embd", "n_positions"])
@pytest.mark.parametrize(
    "value", [0, -1, 10**9, 10**30, True, 2.0, 2.5, "2", [2], {}, None], ids=str
)
def test_sizes_of_gpt2_that_cannot_be(gpt2_refused, key, value):
    assert key in gpt2_refused({key: value})


@pytest.mark.parametrize("key, value", [("n_layer", 3), ("n_layer", 1)])
def test_layers_that_are_not_the_weights(nano_refused, nano, key, value):
    message = nano_refused(**arguments(nano, **{key: value}))
    assert f"{key} is {value} in the configuration and 2 in the weights" in message


@pytest.mark.parametrize("value", [64, 66])
def test_a_vocabulary_that_is_not_the_weights(nano_refused, nano, value):
    message = nano_refused(**arguments(nano, vocab_size=value))
    assert f"vocab_size is {value} in the configuration and 65" in message


@pytest.mark.parametrize("heads", [3, 64, 31])
def test_heads_that_do_not_divide(refused, tmp_path, heads):
    options = [f"--source={NANO}", source_config(tmp_path, {"n_head": heads})]
    message = refused("--format=nanogpt", *options)
    assert f"must be divisible by model.n_head {heads}" in message


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"bias": False}, "has unknown transformer.h.0.attn.c_attn.bias"),
        ({"bias": "yes"}, "bias must be true or false, got 'yes'"),
        ({"bias": 1}, "bias must be true or false, got 1"),
        ({"dropout": "much"}, "dropout must be a number, got 'much'"),
        ({"dropout": None}, "dropout must be a number, got None"),
        ({"dropout": True}, "dropout must be a number, got True"),
        ({"dropout": float("nan")}, "dropout must be a number, got nan"),
        ({"dropout": 1.0}, "model.dropout must be < 1, got 1.0"),
        ({"dropout": -0.1}, "model.dropout"),
        ({"dropout": 10**400}, "dropout must be a number, got 1000"),
    ],
    ids=range(10),
)
def test_other_settings_that_cannot_be(nano_refused, nano, changes, expected):
    assert expected in nano_refused(**arguments(nano, **changes))


@pytest.mark.parametrize("value", [None, [1], "text", 3])
def test_arguments_that_are_no_dict(nano_refused, value):
    assert "model_args must be a dict" in nano_refused(model_args=value)


@pytest.mark.parametrize("name", ["sigma-gpt", "nanogpt", "gpt2"])
def test_a_state_dict_without_its_configuration(refused, name):
    message = refused(f"--format={name}", f"--source={SIGMA}")
    assert "does not give its n_layer, n_head, n_embd" in message
    assert "--source_config=FILE.json" in message


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "is not valid JSON: Expecting value"),
        (b"n_layer: 2", "is not valid JSON"),
        (b"[1, 2]", "is not a JSON object"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 10**6, "is not valid JSON"),
        (b'{"n_layer": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'{"n_layer": NaN}', "n_layer must be an integer >= 1, got nan"),
        (b'{"n_layer": null}', "does not give its n_layer"),
        (None, "cannot be read: No such file"),
    ],
    ids=range(9),
)
def test_a_configuration_that_is_damaged(refused, tmp_path, content, expected):
    settings = tmp_path / "config.json"
    if content is not None:
        settings.write_bytes(content)
    options = [f"--source={NANO}", f"--source_config={settings}"]
    assert expected in refused("--format=nanogpt", *options)


def test_a_configuration_that_is_a_folder(refused, tmp_path):
    options = [f"--source={NANO}", f"--source_config={tmp_path}"]
    assert f"'{tmp_path}' cannot be read" in refused("--format=nanogpt", *options)


def test_settings_of_another_program_are_refused_by_name(nano_refused, nano):
    message = nano_refused(**arguments(nano, n_kv_head=1, swiglu=True))
    assert "unknown settings: n_kv_head=1, swiglu=True" in message


def test_a_setting_is_passed_over_where_it_is_null_or_only_in_the_users_file(
    nano, nano_params, tmp_path
):
    path, settings = tmp_path / "ckpt.pt", tmp_path / "settings.json"
    torch.save(nano | arguments(nano, flash=True, alibi=None), path)
    settings.write_text(json.dumps({"flash": None, "learning_rate": 1.0}))
    original = formats.get_format("nanogpt").read(str(path), str(settings))
    assert_equal(original.params, nano_params)


def test_all_settings_that_transformers_writes_are_known(folder, gpt2_params):
    from transformers import GPT2Config

    plain = json.loads((GPT2 / "config.json").read_text())
    settings = GPT2Config(**plain).to_dict() | {"pruned_heads": {}}
    found = formats.get_format("gpt2").read(str(folder(settings))).params
    assert_equal(found, gpt2_params)


@pytest.mark.parametrize(
    "settings, expected",
    [
        (
            {"activation_function": "silu"},
            "gelu_pytorch_tanh, gelu_new, gelu_python, gelu, relu, got 'silu'",
        ),
        ({"activation_function": None}, "relu, got None"),
        ({"activation_function": ["gelu"]}, "relu, got ['gelu']"),
        ({"activation_function": "a\nb"}, r"relu, got ''a\nb''"),
        ({"n_inner": 64}, "n_inner is 64 in the configuration and 128 in the weights"),
        ({"n_inner": "128"}, "n_inner must be an integer >= 1, got '128'"),
        ({"n_inner": 0}, "n_inner must be an integer >= 1, got 0"),
        (
            {"model_type": "llama", "n_layer": None},
            "model_type must be 'gpt2', got 'llama'",
        ),
        ({"model_type": "llama"}, "model_type must be 'gpt2', got 'llama'"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon must be a number"),
        ({"layer_norm_epsilon": -1.0}, "model.norm_epsilon must be >= 0, got -1.0"),
        ({"architectures": ["GPTJForCausalLM"]}, "architectures must be GPT2*, got"),
        ({"architectures": {"a": 1}}, "architectures must be GPT2*, got {'a': 1}"),
        ({"resid_pdrop": 1.0}, "resid_pdrop must be a number in [0, 1), got 1.0"),
        ({"embd_pdrop": None}, "embd_pdrop must be a number in [0, 1), got None"),
        ({"scale_attn_weights": False}, "scale_attn_weights must be True, got False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"add_cross_attention": True}, "add_cross_attention must be False, got True"),
        (
            {"tie_word_embeddings": False},
            "another architecture: it lacks lm_head.weigh",
        ),
        (
            {"tie_word_embeddings": 0},
            "tie_word_embeddings must be true or false, got 0",
        ),
        ({"vocab_size": 60}, "vocab_size is 60 in the configuration and 61"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder must be False, got True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads must be {}, got {'0': [1]}"),
        (
            {"alibi": True, "rope_theta": 1e4},
            "has unknown settings: alibi=True, rope_theta=10000.0: if "
            'they change no logit, pass --source_config=FILE.json with {"alibi": null}',
        ),
        ({"b": 1, "d": 1, "a": 1, "c": 1, "e": 1}, "a=1, b=1, c=1 and 2 more: if they"),
    ],
    ids=range(25),
)
def test_gpt2_settings_that_would_change_numbers(gpt2_refused, settings, expected):
    assert expected in gpt2_refused(settings)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"batch_size": "many"}, "batch_size must be a number, got 'many'"),
        ({"batch_size": "nan"}, "batch_size must be a number, got 'nan'"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be an integer, got 1.5"),
        ({"gradient_accumulation_steps": 0}, "batch_size must be >= 1, got 0"),
        (
            {"gradient_accumulation_steps": None},
            "gradient_accumulation_steps must be a number, got None",
        ),
        ({"learning_rate": float("nan")}, "learning_rate must be a number, got nan"),
        ({"learning_rate": -1.0}, "optimizer.learning_rate must be >= 0, got -1.0"),
        (
            {"learning_rate": torch.zeros(3, 3)},
            "learning_rate must be a number, got array",
        ),
        ({"max_iters": 10**5000}, "max_iters must be a number, got of type int"),
        ({"max_iters": [1]}, "max_iters must be a number, got [1]"),
        ({"beta2": "a\nb"}, r"beta2 must be a number, got ''a\nb''"),
        ({"beta1": 1.5}, "optimizer.beta1 must be < 1, got 1.5"),
        ({"beta2": 1.0}, "optimizer.beta2 must be < 1, got 1.0"),
        ({"weight_decay": True}, "weight_decay must be a number, got True"),
        ({"eval_interval": {}}, "eval_interval must be a number, got {}"),
    ],
    ids=range(16),
)
def test_training_settings_that_cannot_be(nano_refused, nano, changes, expected):
    assert expected in nano_refused(config=nano["config"] | changes)


@pytest.mark.parametrize("value", ["5", None, -1, 1.5, 10**30, float("nan"), [5], True])
def test_a_step_that_cannot_be(nano_refused, value):
    assert "iter_num must be a number of steps, got " in nano_refused(iter_num=value)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda s: s | {0: {"momentum_buffer": torch.zeros(65, 32)}}, "no exp_avg"),
        (lambda s: s | {0: {"exp_avg": s[0]["exp_avg"]}}, "has no exp_avg_sq"),
        (lambda s: s | {0: None}, "another optimizer"),
        (
            lambda s: s | {0: s[0] | {"exp_avg": torch.zeros(3)}},
            "exp_avg of transformer.wte.weight is [3], not [65, 32]",
        ),
        (
            lambda s: s | {0: s[0] | {"exp_avg_sq": -s[0]["exp_avg_sq"]}},
            "exp_avg_sq of transformer.wte.weight must be >= 0",
        ),
        (lambda s: s | {0: s[0] | {"exp_avg": s[0]["exp_avg"] / 0}}, "not finite"),
        (
            lambda s: s | {0: s[0] | {"step": torch.zeros(3)}},
            "step must be a number of steps, got array",
        ),
        (
            lambda s: s | {0: s[0] | {"step": torch.tensor(-1.0)}},
            "step must be a number of steps, got -1.0",
        ),
        (lambda s: s | {0: {k: s[0][k] for k in ("exp_avg", "exp_avg_sq")}}, "None"),
        (lambda s: s | {99: s[0]}, "expected 28 entries, one per array"),
        (lambda s: s | {"x": s[0]}, "expected 28 entries, one per array"),
        (lambda s: {0: s[0]}, "expected 28 entries, one per array"),
        (lambda s: [s[0]], "expected 28 entries, one per array"),
        (lambda s: "state", "expected 28 entries, one per array"),
        (lambda s: 3, "expected 28 entries, one per array"),
    ],
    ids=range(15),
)
def test_an_optimizer_state_that_does_not_fit(nano_refused, nano, change, expected):
    optimizer = nano["optimizer"] | {"state": change(nano["optimizer"]["state"])}
    assert expected in nano_refused(optimizer=optimizer)


# Damaged files.


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_git_lfs_has_not_fetched(refused, folder, name):
    path = folder()
    (path / "model.safetensors").unlink()
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (path / name).write_text(text)
    message = refused("--format=gpt2", f"--source={path}")
    assert f"'{path / name}' is a pointer of Git LFS: fetch it with" in message


def test_a_safetensors_file_cut_anywhere(refused, folder):
    path = folder()
    file = path / "model.safetensors"
    content = file.read_bytes()
    for cut in (0, 3, 8, 100, 2000, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:cut])
        message = refused("--format=gpt2", f"--source={path}")
        assert f"'{file}' is damaged" in message


def safetensors(header, data=b"", size=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", size=4 << 30),
        safetensors(b"{}", size=2**64 - 1),
        safetensors(b"{}" + b" " * 200, size=99),
        safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        safetensors({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
        safetensors({"a": entry(0, 8)}, bytes(4)),
        safetensors({"a": entry(0, 8)}, bytes(80)),
        safetensors({"a": entry(8, 0)}, bytes(8)),
        safetensors({"a": entry(0, 8, (3,))}, bytes(8)),
        safetensors({"a": entry(0, 8, (2**62, 2**62))}, bytes(8)),
        safetensors({"a": entry(0, 8, dtype="X9")}, bytes(8)),
        safetensors({"a": entry(0, 8, (-2,))}, bytes(8)),
        safetensors({"a": 3}),
        safetensors([]),
        safetensors(b"{"),
        safetensors(b"\xff\xff"),
        safetensors(b"[" * 10**5),
        pickle.dumps({"a": 1}),
    ],
    ids=range(18),
)
def test_a_safetensors_file_that_lies(refused, folder, content):
    path = folder()
    (path / "model.safetensors").write_bytes(content)
    message = refused("--format=gpt2", f"--source={path}")
    assert f"'{path / 'model.safetensors'}' is damaged" in message


def test_a_bin_file_with_code(refused, folder, bomb):
    path = folder()
    (path / "model.safetensors").unlink()
    torch.save({WTE: torch.zeros(3), "x": bomb}, path / "pytorch_model.bin")
    message = refused("--format=gpt2", f"--source={path}")
    assert "is unsafe: it asks for 'posix.mkdir'" in message
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(bomb))
    assert "is not a PyTorch file" in refused("--format=gpt2", f"--source={path}")


@pytest.mark.parametrize("name", ["nanogpt", "sigma-gpt"])
def test_a_checkpoint_with_code(nano_refused, name, bomb):
    assert "it asks for 'posix.mkdir'" in nano_refused(name=name, config={"x": bomb})


def test_an_npz_with_code_or_damage(refused, tmp_path, bomb):
    path = tmp_path / "state.npz"
    np.savez(path, **{f"param/{WTE}": np.array([bomb], object)})
    message = refused("--format=nanogpt", f"--source={path}")
    assert f"'{path}' is damaged" in message
    content = SIGMA.read_bytes()
    for damaged in (b"", b"text", content[:999], content[:-30], pickle.dumps(bomb)):
        path.write_bytes(damaged)
        message = refused("--format=nanogpt", f"--source={path}")
        assert f"'{path}' is damaged" in message


def test_an_npz_with_a_member_that_would_lie_outside(refused, tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, **{f"param/{WTE}": np.zeros(3), "param/../../x": np.zeros(3)})
    message = refused("--format=nanogpt", f"--source={path}")
    assert "'param/../../x.npy' is a path outside it" in message


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1j]), np.array([b"a"])])
def test_an_npz_of_what_is_no_number(refused, tmp_path, array):
    path = tmp_path / "state.npz"
    np.savez(path, **{WTE: array})
    message = refused("--format=nanogpt", f"--source={path}")
    assert f"{WTE} is not an array of numbers" in message


# Shards.


@pytest.mark.parametrize(
    "weight_map, expected",
    [
        ({WTE: "../x"}, "names '../x': only files in its folder"),
        ({WTE: "/etc/passwd"}, "names '/etc/passwd': only files in its folder"),
        ({WTE: "sub/x.safetensors"}, "only files in its folder"),
        ({WTE: "two\nlines/x"}, r"names ''two\nlines/x''"),
        ({WTE: ".."}, "does not exist"),
        ({WTE: ""}, "does not exist"),
        ({WTE: "none.safetensors"}, "none.safetensors' does not exist"),
        ({WTE: "config.json"}, "is not a .pt, .ckpt, .bin, .safetensors"),
        ({WTE: 3}, "does not exist"),
        ({WTE: ["x"]}, "does not exist"),
        ({WTE: None}, "does not exist"),
        ([WTE], "has no weight_map"),
        ("x", "has no weight_map"),
        ({}, "it is empty"),
    ],
    ids=range(14),
)
def test_an_index_that_lies(refused, folder, tmp_path, weight_map, expected):
    path = folder()
    shutil.copy(path / "model.safetensors", tmp_path / "x")
    sharded(path, weight_map)
    message = refused("--format=gpt2", f"--source={path}")
    assert expected in message
    assert str(path) in message


def test_an_index_that_is_damaged_or_a_shard_that_is_missing(refused, folder):
    path = folder()
    _, second = sharded(path)
    (path / second).unlink()
    message = refused("--format=gpt2", f"--source={path}")
    assert f"'{path / second}' does not exist" in message
    (path / "model.safetensors.index.json").write_text("{")
    assert "is not valid JSON" in refused("--format=gpt2", f"--source={path}")


# Tokenizers.


@pytest.mark.parametrize(
    "content, expected",
    [
        (json.dumps({"kind": "char", "characters": "x" * 66}), "has 66 tokens, the"),
        (json.dumps({"kind": "gpt2"}), "has 50257 tokens, the model 65"),
        (json.dumps({"kind": "bpe"}), "cannot be used"),
        (json.dumps({"kind": "char", "characters": ""}), "cannot be used"),
        (json.dumps({"kind": "char", "characters": 3}), "cannot be used"),
        (json.dumps({"kind": "char", "characters": "\ud800"}), "cannot be used"),
        ("[]", "cannot be used"),
        ("{", "cannot be used"),
        ("", "cannot be used"),
        (None, "does not exist: name a tokenizer.json"),
    ],
    ids=range(10),
)
def test_a_tokenizer_that_does_not_fit(refused, tmp_path, content, expected):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    options = [f"--source={NANO}", f"--tokenizer={path}"]
    message = refused("--format=nanogpt", *options)
    assert expected in message
    assert str(path) in message


# Exports.


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Imported runs by name: not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    settings = root / "config.json"
    settings.write_text(json.dumps(SIGMA_SIZES))
    state = torch.load(NANO, weights_only=True)["model"]
    plain = {k: v.numpy() for k, v in state.items() if not k.endswith(".bias")}
    np.savez(root / "plain.npz", **plain)
    (root / "plain.json").write_text(
        json.dumps(SIGMA_SIZES | {"block_size": 32, "bias": False})
    )
    sources = {
        "sigma": ("sigma-gpt", SIGMA, settings),
        "nano": ("nanogpt", NANO, None),
        "gpt2": ("gpt2", GPT2, None),
        "plain": ("nanogpt", root / "plain.npz", root / "plain.json"),
    }
    for name, (form, source, config) in sources.items():
        argv = [f"--format={form}", f"--source={source}", f"--workdir={root / name}"]
        convert.command(argv + ([f"--source_config={config}"] if config else []))
    return root


@pytest.fixture
def export_refused(refused, runs, tmp_path):
    def export_refused(name, run, output, *options):
        before = sorted(tmp_path.rglob("*"))
        argv = [f"--format={name}", f"--workdir={runs / run}"]
        message = refused(*argv, f"--output={tmp_path / output}", *options)
        assert sorted(tmp_path.rglob("*")) == before
        return message

    return export_refused


@pytest.mark.parametrize(
    "name, run, expected",
    [
        (
            "sigma-gpt",
            "nano",
            "is not a sigma-gpt model: system must be 'sigma', got 'causal'",
        ),
        (
            "nanogpt",
            "sigma",
            "is not a nanogpt model: system must be 'causal', got 'sigma'",
        ),
        ("gpt2", "sigma", "is not a gpt2 model: system must be 'causal', got 'sigma'"),
        ("nanogpt", "gpt2", "model.activation must be 'gelu', got 'gelu_tanh'"),
        ("gpt2", "none", "holds no run"),
    ],
)
def test_runs_that_are_not_of_the_format(export_refused, name, run, expected):
    assert expected in export_refused(name, run, "output.npz")


def test_a_model_without_biases_has_zeros_there(runs, tmp_path, capsys):
    from transformers import GPT2LMHeadModel

    output, tokens = tmp_path / "output", np.arange(20)
    convert.command(
        ["--format=gpt2", f"--workdir={runs / 'plain'}", f"--output={output}"]
    )
    assert "its biases are 0: the run's model has none" in capsys.readouterr().err
    with torch.no_grad():
        there = GPT2LMHeadModel.from_pretrained(output)(torch.tensor(tokens)[None])
    expected = open_run(str(runs / "plain")).logits([tokens])[0]
    np.testing.assert_allclose(there.logits[0], expected, atol=1e-5)
    assert formats.get_format("gpt2").read(str(output)).config.model.bias


def test_outputs_that_exist(export_refused, tmp_path):
    (tmp_path / "file.pt").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name, run, output in (
        ("nanogpt", "nano", "file.pt"),
        ("sigma-gpt", "sigma", "folder"),
        ("gpt2", "gpt2", "folder"),
        ("gpt2", "gpt2", "file.pt"),
    ):
        message = export_refused(name, run, output)
        assert f"--output '{tmp_path / output}' exists: name a new path" in message
    assert (tmp_path / "file.pt").read_text() == "mine"


@pytest.mark.parametrize("name", ["out.pt", "out.npz"])
def test_outputs_that_cannot_be_written(export_refused, tmp_path, name):
    message = export_refused("nanogpt", "nano", f"none/{name}")
    assert "does not exist" in message
    (tmp_path / "file").write_text("mine")
    assert "does not exist" in export_refused("nanogpt", "nano", f"file/{name}")
    message = export_refused("gpt2", "gpt2", f"file/{name}")
    assert f"--output '{tmp_path / 'file' / name}' cannot be written" in message


@pytest.mark.parametrize("name", ["out", "out.bin", "out.safetensors", "out.pth"])
def test_outputs_of_another_kind(export_refused, name):
    message = export_refused("nanogpt", "nano", name)
    assert "must end in .pt or .npz" in message


def test_a_checkpoint_that_is_not_there(export_refused):
    assert "no checkpoint '7'" in export_refused("nanogpt", "nano", "o.pt", "--step=7")


@pytest.mark.parametrize("run, name", [("sigma", "sigma-gpt"), ("plain", "nanogpt")])
def test_npz_out_and_in_is_the_identity(runs, tmp_path, run, name):
    output = tmp_path / "out.npz"
    workdir = f"--workdir={runs / run}"
    convert.command([f"--format={name}", workdir, f"--output={output}"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]
    config = runs / ("config.json" if run == "sigma" else "plain.json")
    found = formats.get_format(name).read(str(output), str(config)).params
    assert_equal(found, open_run(str(runs / run)).params)
