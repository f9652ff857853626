"""Import, export, and the commands on imported runs, against golden models."""

import json
import pathlib

import jax
import numpy as np
import pytest
import torch

from jaxgpt import convert, evaluate, sample
from jaxgpt.run import open_run
from parity_tests.conftest import GOLDEN, relative
from parity_tests.tolerances import FLOAT32
from tests.conftest import last_json

pytestmark = pytest.mark.unoptimised


@pytest.fixture
def imported(tmp_path):
    def run(name, source, *more):
        workdir = tmp_path / "imported"
        argv = [f"--format={name}", f"--source={GOLDEN / source}"]
        convert.command([*argv, f"--workdir={workdir}", *more])
        return workdir

    return run


def test_nanogpt_character_model_scores_its_200_windows(imported, tmp_path, capsys):
    workdir = imported("nanogpt", "nanogpt/char_d128.pt")
    golden = np.load(GOLDEN / "nanogpt/char_d128_eval.npz")
    # The block is one shorter than a window: its last token is only a target.
    run = open_run(str(workdir))
    tokens = golden["win_tokens"].astype(np.int32)
    nll = run.system.nll(run.params, {"tokens": tokens})
    assert abs(float(nll.mean()) - float(golden["val_loss"])) < 1e-5
    np.save(tmp_path / "t.npy", tokens[:4, :64])
    capsys.readouterr()
    logits = tmp_path / "l.npy"
    evaluate.command(
        [
            f"--workdir={workdir}",
            f"--tokens={tmp_path / 't.npy'}",
            f"--logits={logits}",
            "--json=-",
        ]
    )
    assert np.array(last_json(capsys)["nll"]).shape == (4, 63)
    assert relative(np.load(logits), golden["logits8"]) < FLOAT32["logits"]


def test_nanogpt_greedy_text_token_for_token(imported, capsys):
    workdir = imported("nanogpt", "nanogpt/char_d128.pt")
    golden = np.load(GOLDEN / "nanogpt/char_d128_eval.npz")
    capsys.readouterr()
    sample.command(
        [f"--workdir={workdir}", "--prompt_ids=0", "--temperature=0", "--json=-"]
    )
    tokens = last_json(capsys)["samples"][0]["tokens"]
    assert tokens == golden["gen_greedy"][0, :64].tolist()


def test_nanogpt_greedy_text_goes_on_past_the_block(imported, capsys):
    workdir = imported("nanogpt", "nanogpt/char_d128.pt")
    golden = np.load(GOLDEN / "nanogpt/char_d128_eval.npz")
    capsys.readouterr()
    options = ["--prompt_ids=0", "--temperature=0", "--max_new_tokens=200", "--json=-"]
    sample.command([f"--workdir={workdir}", *options])
    tokens = last_json(capsys)["samples"][0]["tokens"]
    # Up to the first step whose two likeliest tokens are closer than rounding.
    close = np.flatnonzero(golden["gen_gap"] < 1e-4)
    sure = 1 + (int(close[0]) if len(close) else 200)
    assert sure > 100
    assert tokens[:sure] == golden["gen_greedy"][0, :sure].tolist()


def test_gpt2_greedy_tokens_are_transformers(imported, capsys):
    from transformers import GPT2LMHeadModel

    folder = "gpt2/tiny_perturbed_pretrained"
    workdir = imported("gpt2", folder)
    model = GPT2LMHeadModel.from_pretrained(GOLDEN / folder).eval()
    golden = np.load(GOLDEN / "gpt2/tiny_perturbed.npz")
    for row, prompt in enumerate(golden["gen_prompt"]):
        there = prompt.tolist()
        while len(there) < 24:
            with torch.no_grad():
                there.append(int(model(torch.tensor([there])).logits[0, -1].argmax()))
        # Row 0 begins with id 0, and the recorded generate() differs from its own
        # model's likeliest tokens there, as if it had masked that id as padding.
        if row:
            assert there == golden["gen_greedy"][row].tolist()
        capsys.readouterr()
        ids = ",".join(map(str, prompt))
        options = ["--temperature=0", "--max_new_tokens=20", "--json=-"]
        sample.command([f"--workdir={workdir}", f"--prompt_ids={ids}", *options])
        assert last_json(capsys)["samples"][0]["tokens"] == there


def test_sigma_character_model_scores_its_200_windows(imported, tmp_path, capsys):
    workdir = imported("sigma-gpt", "sigma/char_sigma_d128.pt")
    golden = np.load(GOLDEN / "sigma/char_sigma_d128_eval.npz")
    np.save(tmp_path / "t.npy", golden["win_tokens"].astype(np.int64))
    np.save(tmp_path / "o.npy", golden["win_orders"].astype(np.int64))
    for order, name in (("o.npy", "random"), (None, "ltr")):
        capsys.readouterr()
        argv = [f"--workdir={workdir}", f"--tokens={tmp_path / 't.npy'}", "--json=-"]
        argv += [f"--logits={tmp_path / 'l.npy'}"]
        evaluate.command(argv + ([f"--order={tmp_path / order}"] if order else []))
        found = last_json(capsys)
        there = float(golden[f"val_loss_{name}"])
        assert abs(found["loss"] - there) < FLOAT32["loss of a trained model"]
        logits = np.load(tmp_path / "l.npy")
        assert logits.shape == (200, 63, 65)
        assert relative(logits[:2], golden[f"logits2_{name}"]) < FLOAT32["logits"]
        tokens = np.array(found["nll"])[:8]
        assert relative(tokens, golden[f"tok_loss_{name}"]) < 1e-5


def test_a_compiled_checkpoint_with_moments_imports_at_its_step(imported):
    workdir = imported("nanogpt", "nanogpt/trainpy_tiny_compiled.pt")
    run = open_run(str(workdir), "20")
    golden = torch.load(GOLDEN / "nanogpt/trainpy_tiny_compiled.pt", weights_only=True)
    assert run.step == golden["iter_num"] == 20
    wte = golden["model"]["_orig_mod.transformer.wte.weight"].numpy()
    np.testing.assert_array_equal(run.params["table"], wte)
    assert run.config.optimizer.warmup_steps == 2
    assert run.config.steps == 20


def test_moments_equal_the_original_s(imported):
    from jaxgpt.training import optimizers
    from jaxgpt.training.checkpoint import Checkpoints

    workdir = imported("nanogpt", "nanogpt/tiny_bias_perturbed_ckpt_step5.pt")
    golden = np.load(GOLDEN / "nanogpt/tiny_bias_perturbed.npz")
    run = open_run(str(workdir))
    abstract = {"params": jax.eval_shape(run.system.init, jax.random.key(0))}
    optimizer = optimizers.make_optimizer(run.config)
    abstract["opt_state"] = jax.eval_shape(optimizer.init, abstract["params"])
    state = Checkpoints(workdir, read_only=True).restore(5, abstract)["opt_state"]
    adam = state[1][0]
    assert int(adam.count) == 5
    qkv = "transformer.h.1.attn.c_attn.weight"
    found = adam.mu["transformer"]["blocks"][1]["attn"]["qkv"]["kernel"]
    assert relative(found.T, golden[f"exp_avg5/{qkv}"]) < 1e-6
    found = adam.nu["transformer"]["blocks"][1]["attn"]["qkv"]["kernel"]
    assert relative(found.T, golden[f"exp_avg_sq5/{qkv}"]) < 1e-6


@pytest.mark.parametrize("source", ["tiny_perturbed_pretrained", "model.safetensors"])
def test_gpt2_folder_gives_its_logits(imported, tmp_path, capsys, source):
    folder = "gpt2/tiny_perturbed_pretrained"
    more = ()
    if source != "tiny_perturbed_pretrained":
        more = (f"--source_config={GOLDEN / folder / 'config.json'}",)
        folder = f"{folder}/{source}"
    workdir = imported("gpt2", folder, *more)
    golden = np.load(GOLDEN / "gpt2/tiny_perturbed.npz")
    np.save(tmp_path / "t.npy", golden["ids"])
    evaluate.command(
        [
            f"--workdir={workdir}",
            f"--tokens={tmp_path / 't.npy'}",
            f"--logits={tmp_path / 'l.npy'}",
            "--json=-",
        ]
    )
    logits = np.load(tmp_path / "l.npy")
    assert relative(logits, golden["logits"]) < FLOAT32["logits"]


def test_gpt2_export_loads_in_transformers_with_the_same_logits(imported, tmp_path):
    from transformers import GPT2LMHeadModel

    workdir = imported("gpt2", "gpt2/tiny_perturbed_pretrained")
    output = tmp_path / "exported"
    convert.command(["--format=gpt2", f"--workdir={workdir}", f"--output={output}"])
    model, report = GPT2LMHeadModel.from_pretrained(output, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    golden = np.load(GOLDEN / "gpt2/tiny_perturbed.npz")
    with torch.no_grad():
        logits = model.eval()(torch.tensor(golden["ids"]).long()).logits.numpy()
    assert relative(logits, golden["logits"]) < FLOAT32["logits"]


@pytest.mark.parametrize(
    ("name", "source"),
    [("nanogpt", "nanogpt/char_d128.pt"), ("sigma-gpt", "sigma/char_sigma_d128.pt")],
)
def test_import_export_import_is_the_identity(imported, tmp_path, name, source):
    workdir = imported(name, source)
    output = tmp_path / "out.pt"
    convert.command([f"--format={name}", f"--workdir={workdir}", f"--output={output}"])
    there = torch.load(GOLDEN / source, weights_only=True)
    back = torch.load(output, weights_only=True)
    assert back["model"].keys() >= there["model"].keys()
    for key, tensor in there["model"].items():
        assert torch.equal(back["model"][key], tensor)
    for key in ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size"):
        assert back["model_args"][key] == there["model_args"][key]
    again = tmp_path / "again"
    argv = [f"--format={name}", f"--source={output}", f"--workdir={again}"]
    convert.command(argv)
    one, two = open_run(str(workdir)).params, open_run(str(again)).params
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_npz_of_a_state_dict_with_its_configuration(imported, tmp_path):
    settings = tmp_path / "config.json"
    settings.write_text(
        json.dumps(
            {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24}
            | {"vocab_size": 65, "bias": True, "of_no_use": 1}
        )
    )
    workdir = imported(
        "sigma-gpt", "sigma/tiny_bias_perturbed.npz", f"--source_config={settings}"
    )
    run = open_run(str(workdir))
    golden = np.load(GOLDEN / "sigma/tiny_bias_perturbed.npz")
    logits, _ = run.system.score(run.params, golden["tokens"], golden["order"])
    assert relative(logits, golden["logits"]) < FLOAT32["logits"]
    assert pathlib.Path(workdir, "config.json").exists()
