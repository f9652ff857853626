"""What a run remembers: its vocabulary, its data, its shape."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from jaxgpt import backend, evaluate, sample, train
from jaxgpt import config as configs
from jaxgpt.commands.setup import exclusive, prepare
from jaxgpt.commands.train import train as train_run
from jaxgpt.data import tokenizer_files, tokenizers
from jaxgpt.data.cache import cache_root
from jaxgpt.errors import UserError
from jaxgpt.interop import formats
from jaxgpt.run import open_run
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.loop import finished
from jaxgpt.training.train_state import abstract_state
from tests.conftest import ROOT, TINY, edit_config, refusal
from tests.interop.conftest import NANO, assert_equal

CAUSAL = f"{ROOT}/configs/teeny_char.py:tiny"
PLAYS = f"{ROOT}/configs/memory_gpt2.py:tiny"
SENTENCE = "the king of night sings, and no queen dares to speak.\n"
ENDS = {"data.split": "end", "data.test_fraction": "0"}


def begun(workdir, spec, **changes):
    """A run of untrained parameters, as training leaves it."""
    config = configs.load(spec, {k.replace("__", "."): v for k, v in changes.items()})
    setup = prepare(config, workdir)
    workdir.mkdir()
    setup.freeze()
    checkpoints = Checkpoints(workdir)
    params = setup.system.init(jax.random.key(0))
    checkpoints.save(0, {"params": params}, None)
    checkpoints.close()
    (workdir / "metrics.jsonl").write_text('{"step": 0, "val_loss": 4.0}\n')
    return workdir


def opened(spec, changes, workdir, *, allowed=(), given=None):
    """What training opens, with `changes` from the command line."""
    given = changes.keys() if given is None else given
    return prepare(configs.load(spec, changes), workdir, allowed, given)


def vocabulary(workdir):
    return json.loads((workdir / "tokenizer.json").read_text())


@pytest.fixture
def text(tmp_path):
    def write(content, name="text.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return str(path)

    return write


@pytest.fixture
def refused(tmp_path):
    """Opens a training that must refuse: returns its line; nothing is left behind."""

    def refused(*arguments, **options):
        with pytest.raises(UserError) as caught:
            opened(*arguments, **options)
        return str(caught.value)

    return refused


@pytest.fixture
def sentencepiece(tmp_path, text):
    """A run on SentencePiece tokens."""
    sizes = {"data__tokenizer": "sentencepiece", "data__vocab_size": "100"}
    path = text((ROOT / "data" / "shakespeare.txt").read_text()[:9000], "spoken.txt")
    return begun(tmp_path / "spoken", TINY, data__path=path, **sizes)


# A new run that starts from another.


def test_a_start_brings_its_characters(trained, text, tmp_path):
    path = text("".join(c for c in SENTENCE if c != "q") * 40)
    changes = {"init_from": str(trained), "data.path": path}
    setup = opened(TINY, changes, tmp_path / "new")
    assert setup.data.tokenizer.to_json() == vocabulary(trained)
    assert setup.config.model.vocab_size == 65


def test_a_start_brings_its_sentencepiece_model(sentencepiece, text, tmp_path):
    path = text("no king speaks of the queen.\n" * 40)
    changes = {"init_from": str(sentencepiece), "data.path": path}
    for asked in ({}, {"data.tokenizer": "sentencepiece"}):
        setup = opened(TINY, changes | asked, tmp_path / "new")
        assert setup.data.tokenizer.to_json() == vocabulary(sentencepiece)
        assert setup.config.data.tokenizer == "sentencepiece"


def test_a_start_of_documents_brings_its_tokenizer(text, tmp_path):
    for name in ("a", "b", "c"):
        text(SENTENCE * 10, f"first/{name}.txt")
        text("no king speaks of the queen.\n" * 10, f"second/{name}.txt")
    changes = {"data__tokenizer": "char", "data__val_fraction": "0.4"}
    start = begun(
        tmp_path / "start", PLAYS, data__path=str(tmp_path / "first"), **changes
    )
    changes = {"init_from": str(start), "data.path": str(tmp_path / "second")}
    changes |= {"data.val_fraction": "0.4"}
    setup = opened(PLAYS, changes, tmp_path / "new")
    assert setup.data.tokenizer.to_json() == vocabulary(start)
    assert setup.config.data.tokenizer == "char"


def test_a_start_is_a_checkpoint_of_nanogpt(text, tmp_path):
    path = text("".join(map(chr, range(48, 113))) * 40)  # 65 characters.
    changes = {"init_from": str(NANO), "data.path": path} | ENDS
    setup = opened(CAUSAL, changes, tmp_path / "new")
    fresh = setup.system.init(jax.random.key(0))
    there = formats.get_format("nanogpt").read(str(NANO)).params
    assert_equal(setup.initial_params(fresh), there)


def test_a_start_is_read_in_the_type_of_the_new_parameters(trained, tmp_path):
    setup = opened(TINY, {"init_from": str(trained)}, tmp_path / "new")
    fresh = setup.system.init(jax.random.key(0))
    fresh = jax.tree.map(lambda array: array.astype("bfloat16"), fresh)
    found = setup.initial_params(fresh)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"bfloat16"}


def test_a_start_without_its_configuration_is_to_be_imported(refused, tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, **{"transformer.h.0.ln_1.weight": np.ones(4)})
    message = refused(CAUSAL, {"init_from": str(path)}, tmp_path / "new")
    assert "or another --format: these are options of convert, which" in message


@pytest.mark.parametrize("kind", ["sentencepiece", "gpt2", "char"])
def test_a_tokenizer_file_of_any_kind(kind, sentencepiece, text, tmp_path):
    tokenizers_of = {
        "sentencepiece": vocabulary(sentencepiece),
        "gpt2": {"kind": "gpt2"},
        "char": {"kind": "char", "characters": "".join(sorted({*SENTENCE}))},
    }
    file = text(json.dumps(tokenizers_of[kind]), "tokenizer.json")
    fields = {"data.tokenizer": "huggingface", "data.tokenizer_file": file}
    fields |= {"data.path": text(SENTENCE * 40)} | ENDS
    flat = {key.replace(".", "__"): value for key, value in fields.items()}
    workdir = begun(tmp_path / "run", CAUSAL, **flat)
    for _ in range(2):  # New, and as a resumed run leaves its config.
        run = open_run(str(workdir), overrides={"data.path": fields["data.path"]})
        assert run.tokenizer.to_json()["kind"] == kind
        opened(CAUSAL, fields, workdir).freeze()
        prepare(configs.load_frozen(workdir), workdir).freeze()
    start = {"init_from": str(workdir), "data.path": fields["data.path"]} | ENDS
    setup = opened(CAUSAL, start, tmp_path / "new")
    assert setup.data.tokenizer.to_json() == vocabulary(workdir)


def test_text_that_a_start_cannot_encode_is_named(trained, refused, text, tmp_path):
    path = text(SENTENCE * 3 + "Molière, naïve\n" + SENTENCE * 40)
    changes = {"init_from": str(trained), "data.path": path}
    message = refused(TINY, changes, tmp_path / "new")
    assert f"'{path}', line 4, column 5: character 'è' is not in the vocab" in message
    assert not (tmp_path / "new").exists()


def test_sentencepiece_text_that_a_start_cannot_encode(
    sentencepiece, refused, text, tmp_path
):
    path = text(SENTENCE * 40 + "naïve\n")
    changes = {"init_from": str(sentencepiece), "data.path": path}
    message = refused(TINY, changes, tmp_path / "new")
    assert f"'{path}', line 41, column 3: " in message


def test_another_tokenizer_is_taken_by_name_only(
    trained, sentencepiece, refused, capsys, text, tmp_path
):
    path = text(SENTENCE * 40)
    changes = {"init_from": str(trained), "data.path": path, "data.tokenizer": "gpt2"}
    setup = opened(TINY, changes, tmp_path / "new", given=())
    assert setup.data.tokenizer.to_json() == vocabulary(trained)
    message = refused(TINY, changes, tmp_path / "new")
    assert "model.vocab_size 65 is less than the 50257 of the data" in message
    assert f"init_from '{trained}'" in message
    changes |= {"data.tokenizer": "char", "init_from": str(sentencepiece)}
    capsys.readouterr()
    setup = opened(TINY, changes, tmp_path / "new")
    assert setup.data.tokenizer.to_json()["kind"] == "char"
    assert setup.config.model.vocab_size == 100
    assert "another vocabulary (sentencepiece): data.tokenizer=char" in (
        capsys.readouterr().err
    )


def test_a_tokenizer_larger_than_the_model_is_not_used(text, tmp_path):
    path = text(SENTENCE * 40)
    workdir = begun(tmp_path / "run", CAUSAL, data__path=path, **ENDS)
    file = workdir / "tokenizer.json"
    more = "".join(map(chr, range(32, 500)))
    tokenizer_files.save(tokenizers.CharTokenizer(more), file)
    with pytest.raises(UserError, match=f"{file}' has 468 tokens, its model "):
        open_run(str(workdir))


def test_a_vocabulary_size_that_a_start_has_not(sentencepiece, refused, tmp_path):
    changes = {"init_from": str(sentencepiece), "data.vocab_size": "80"}
    changes |= {"data.tokenizer": "sentencepiece"}
    message = refused(TINY, changes, tmp_path / "new")
    assert "data.vocab_size must be 100, as in init_from" in message


@pytest.mark.parametrize(
    "inside, reason",
    [("none", "does not exist"), ("checkpoints", "holds no config.json")],
)
def test_a_start_that_is_no_model_is_named(trained, refused, tmp_path, inside, reason):
    start = trained / inside
    message = refused(TINY, {"init_from": str(start)}, tmp_path / "new")
    assert message.startswith(f"init_from '{start}' is neither a run nor gpt2 weights")
    assert reason in message


def test_fields_of_the_model_are_used_where_they_fit_a_start(
    trained, refused, capsys, tmp_path
):
    start = {"init_from": str(trained)}
    fits = {"model.dropout": "0.5", "model.norm_epsilon": "1e-3"}
    setup = opened(TINY, start | fits | {"model.n_layer": "2"}, tmp_path / "new")
    assert setup.config.model.dropout == 0.5
    assert setup.config.model.norm_epsilon == 1e-3
    assert "norm_epsilon=1e-05: 0.001 is used" in capsys.readouterr().err
    for key, value in (("n_layer", "5"), ("n_embd", "12"), ("block_size", "64")):
        message = refused(TINY, start | {f"model.{key}": value}, tmp_path / "new")
        had = configs.load_frozen(trained).model[key]
        assert f"model.{key} must be {had}, got {value}: the parameters" in message
    # Those of a config file are the start's, as ever.
    setup = opened(TINY, start | {"model.n_layer": "5"}, tmp_path / "new", given=())
    assert setup.config.model.n_layer == 2


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("spec", [CAUSAL, TINY], ids=["causal", "sigma"])
def test_a_smaller_block_reads_its_first_positions(text, tmp_path, spec, positions):
    changes = {"data__path": text(SENTENCE * 40), "model__positions": positions}
    changes |= {k.replace(".", "__"): v for k, v in ENDS.items()}
    start = begun(tmp_path / "start", CAUSAL, **changes)
    changes = {"init_from": str(start), "model.block_size": "16", **ENDS}
    changes |= {"data.path": str(tmp_path / "text.txt")}
    setup = opened(spec, changes, tmp_path / "new")
    assert setup.config.model.block_size == 16
    assert setup.config.model.positions == positions
    params = setup.initial_params(setup.system.init(jax.random.key(1)))
    tokens = setup.data.eval_windows("val", 16, 2)
    order = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    found = setup.system.score(params, tokens, order)[1]
    expected = open_run(str(start)).score(tokens)[:, 1:]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_block_is_not_cropped_where_a_begin_token_comes_after_it(
    refused, text, tmp_path
):
    path = text(SENTENCE * 40)
    changes = {"data__path": path, "sigma__begin_token": "true"}
    start = begun(tmp_path / "start", TINY, **changes)
    had = configs.load_frozen(start).model.block_size
    changes = {"init_from": str(start), "data.path": path, "model.block_size": "8"}
    message = refused(TINY, changes, tmp_path / "new")
    assert f"model.block_size must be {had}, got 8: the parameters" in message


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_sigma_gpt_starts_from_a_causal_run_and_says_so(
    refused, capsys, text, tmp_path, positions
):
    changes = {"data__path": text(SENTENCE * 40), "model__positions": positions}
    changes |= {k.replace(".", "__"): v for k, v in ENDS.items()}
    start = begun(tmp_path / "start", CAUSAL, **changes)
    changes = {"init_from": str(start), "data.path": str(tmp_path / "text.txt")}
    setup = opened(TINY, changes, tmp_path / "new")
    note = f"'{start}' is a causal model: this run trains σ-GPT from its weights and"
    assert f"{note} starts at its left-to-right loss" in capsys.readouterr().err
    assert setup.config.sigma.separate_tables == (positions == "learned")
    params = setup.initial_params(setup.system.init(jax.random.key(1)))
    causal, T = open_run(str(start)), setup.system.window
    tokens = setup.data.eval_windows("val", T, 2)
    straight = np.broadcast_to(np.arange(T), tokens.shape)
    found = setup.system.score(params, tokens, straight)[1]
    np.testing.assert_allclose(found, causal.score(tokens)[:, 1:], atol=1e-5)
    changes |= {"sigma.separate_tables": str(positions != "learned")}
    message = refused(TINY, changes, tmp_path / "new")
    assert f"must be {positions == 'learned'}, got {positions != 'learned'}" in message


def test_sigma_gpt_starts_from_no_model_that_it_cannot_be(refused, text, tmp_path):
    changes = {"data__path": text(SENTENCE * 40), "model__positions": "alibi"}
    changes |= {k.replace(".", "__"): v for k, v in ENDS.items()}
    start = begun(tmp_path / "start", CAUSAL, **changes)
    message = refused(TINY, {"init_from": str(start)}, tmp_path / "new")
    assert message.startswith(f"init_from '{start}' is a causal model: model.positions")


@pytest.mark.parametrize(
    "spec, samplers",
    [(CAUSAL, ["ar"]), (TINY, ["ar", "exact-burst", "top-k-unmasking"])],
    ids=["causal", "sigma"],
)
def test_a_run_in_float64_is_sampled(spec, samplers, text, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "use_float64", lambda dtype: None)
    changes = {"data__path": text(SENTENCE * 40), "model__dtype": "float64"}
    changes |= {k.replace(".", "__"): v for k, v in ENDS.items()}
    with jax.enable_x64(True):
        run = open_run(str(begun(tmp_path / "run", spec, **changes)))
        assert run.score([SENTENCE[:9]]).dtype == np.float64
        for sampler in samplers:
            (found,) = run.generate("the ", max_new_tokens=5, sampler=sampler)
            assert found.text.startswith("the ")
        (found,) = run.generate("the ", max_new_tokens=40)  # Past the block.
        assert len(found.text) == 44


# The data of a run.


def test_a_run_keeps_where_its_data_is_and_its_digest(trained):
    saved = json.loads((trained / "config.json").read_text())["data"]
    shipped = ROOT / "data" / "shakespeare.txt"
    assert saved["path"] == str(shipped)
    assert saved["fingerprint"] == (
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    )


def test_a_relative_path_is_the_same_text_from_any_folder(text, tmp_path, monkeypatch):
    text(SENTENCE * 40, "here/mine.txt")
    text(SENTENCE.upper() * 40, "there/mine.txt")
    monkeypatch.chdir(tmp_path / "here")
    workdir = begun(tmp_path / "run", TINY, data__path="mine.txt")
    monkeypatch.chdir(tmp_path / "there")
    data = open_run(str(workdir)).open_data()
    assert SENTENCE.startswith(data.tokenizer.decode(data.splits["train"][:20]))


def test_the_shipped_text_is_found_where_the_repository_has_gone(run_copy):
    edit_config(run_copy, data={"path": "/gone/jaxgpt/data/shakespeare.txt"})
    run = open_run(str(run_copy))
    assert len(run.open_data().splits["train"]) == 1_003_854
    setup = prepare(configs.load_frozen(run_copy), run_copy)
    assert setup.config.data.path == str(ROOT / "data" / "shakespeare.txt")
    edit_config(run_copy, data={"fingerprint": ""})
    with pytest.raises(UserError, match=r"'/gone/.*' does not exist"):
        open_run(str(run_copy)).open_data()


@pytest.fixture
def moved(text, tmp_path):
    """A run on a text of its own, and that text's path."""
    path = text(SENTENCE * 40)
    return begun(tmp_path / "run", TINY, data__path=path), path


def test_a_moved_text_is_the_same_text(moved, text, tmp_path):
    workdir, path = moved
    other = shutil.move(path, tmp_path / "elsewhere.txt")
    changes = {"data.path": str(other)}
    setup = opened(TINY, changes, workdir)
    assert setup.config.data.path == str(other)


def test_another_text_is_refused_or_allowed_and_said(moved, refused, text, capsys):
    workdir, path = moved
    other = text("no king speaks of the queen.\n" * 40, "other.txt")
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    message = refused(TINY, {"data.path": other}, workdir)
    assert f"'{other}'" in message and f"'{path}'" in message
    assert "--allow=data.path" in message
    capsys.readouterr()
    setup = opened(TINY, {"data.path": other}, workdir, allowed=["data.path"])
    assert setup.data.tokenizer.to_json() == vocabulary(workdir)
    assert f"continues with '{other}', not '{path}'" in capsys.readouterr().err
    text(SENTENCE * 40 + "é", "text.txt")
    assert "holds other data" in refused(TINY, {"data.path": path}, workdir)
    message = refused(TINY, {"data.path": path}, workdir, allowed=["data.path"])
    assert "line 41, column 1: character 'é'" in message
    assert before == {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", [evaluate.command, sample.command])
def test_a_changed_text_is_not_measured_unless_named(moved, text, command, capsys):
    workdir, path = moved
    text(SENTENCE * 39)
    options = [f"--workdir={workdir}", "--split=val"]
    message = refusal(command, options)
    assert f"data.path '{path}' holds other data" in message
    assert f"--config.data.path={path}" in message
    command([*options, f"--config.data.path={path}"])
    assert f"note: '{path}' is not the data of this run" in capsys.readouterr().err


def test_a_run_without_a_fingerprint_says_so(moved, capsys):
    workdir, path = moved
    config = json.loads((workdir / "config.json").read_text())
    del config["data"]["fingerprint"]
    (workdir / "config.json").write_text(json.dumps(config))
    open_run(str(workdir)).open_data()
    assert f"keeps no fingerprint of its data: '{path}'" in capsys.readouterr().err
    setup = prepare(configs.load_frozen(workdir), workdir)
    assert f"it continues with '{path}' as it is now" in capsys.readouterr().err
    assert len(setup.config.data.fingerprint) == 64


def test_a_folder_of_ids_keeps_its_fingerprint_and_its_meaning(tmp_path, refused):
    folder = tmp_path / "bins"
    folder.mkdir()
    for split in ("train", "val"):
        np.tile(np.arange(4, dtype=np.uint16), 40).tofile(folder / f"{split}.bin")
    (folder / "input.txt").write_text("abcd")
    path = {"data.path": str(folder)}
    workdir = begun(tmp_path / "run", TINY, data__path=str(folder))
    (folder / "input.txt").unlink()
    assert opened(TINY, path, workdir).data.vocab_size == 4
    (folder / "input.txt").write_text("wxyz")
    assert "another vocabulary than this run" in refused(TINY, path, workdir)
    np.tile(np.arange(3, dtype=np.uint16), 40).tofile(folder / "val.bin")
    assert "holds other data" in refused(TINY, path, workdir)


def test_the_files_of_a_task_keep_their_fingerprint(tmp_path, text, capsys):
    files = [text("abc\\tcba\n" * 9, f"{split}.txt") for split in ("train", "val")]
    changes = {"task.path": ",".join(files), "task.train_sequences": "9"}
    changes |= {"task.val_sequences": "9"}
    spec = f"{ROOT}/configs/sigma_task.py:file-tiny"
    path = {k.replace(".", "__"): v for k, v in changes.items()}
    workdir = begun(tmp_path / "run", spec, **path)
    assert opened(spec, changes, workdir).config.data.fingerprint
    text("xyz\\tzyx\n" * 9, "train.txt")
    text("xyz\\tzyx\n" * 9, "val.txt")
    with pytest.raises(
        UserError, match=r"^task\.path .* other data.*--allow=task\.path"
    ):
        opened(spec, changes, workdir)
    with pytest.raises(UserError, match=r"^task\.path .*: restore it$"):
        open_run(str(workdir)).open_data()
    capsys.readouterr()
    opened(spec, changes, workdir, allowed=["task.path"])
    assert "as allowed, " in capsys.readouterr().err


# An imported run.


@pytest.fixture
def imported(moved):
    """A run as jaxgpt.convert leaves it: nothing says what it was trained on."""
    workdir, path = moved
    edit_config(workdir, data={"path": "", "fingerprint": ""})
    (workdir / "metrics.jsonl").unlink()
    return workdir, path


@pytest.mark.parametrize("path", ["", "data/shakespeare.txt"])
def test_an_imported_run_asks_for_its_text(imported, refused, path, tmp_path):
    workdir, text = imported
    edit_config(workdir, data={"path": path})  # Old versions said the default.
    frozen = configs.load_frozen(workdir)
    with pytest.raises(UserError, match="was imported and holds no text: name a text"):
        prepare(frozen, workdir)
    with pytest.raises(UserError, match=r"--config\.data\.path=FILE"):
        evaluate.command([f"--workdir={workdir}"])
    assert opened(TINY, {"data.path": text}, workdir).data.vocab_size == 20
    (workdir / "tokenizer.json").unlink()
    with pytest.raises(
        UserError, match=r"name the text it was trained on.*--tokenizer"
    ):
        evaluate.command([f"--workdir={workdir}"])
    message = refused(TINY, {"init_from": str(workdir)}, tmp_path / "new")
    assert "name the text it was trained on" in message


def test_a_text_can_be_the_vocabulary_if_its_size_is_right(
    imported, refused, text, capsys, tmp_path
):
    workdir, path = imported
    (workdir / "tokenizer.json").unlink()
    other = text("abc def\n" * 99, "other.txt")
    message = refused(TINY, {"data.path": other}, workdir)
    assert f"'{other}' has 8 tokens where its model has 20" in message
    start = {"init_from": str(workdir)}
    assert message == refused(TINY, start | {"data.path": other}, tmp_path / "new")
    for changes, folder in (({}, workdir), (start, tmp_path / "new")):
        capsys.readouterr()
        setup = opened(TINY, changes | {"data.path": path}, folder)
        assert "".join(sorted(set(SENTENCE))) == setup.data.tokenizer.characters
        assert f"taken to be those of '{path}'" in capsys.readouterr().err
    evaluate.command([f"--workdir={workdir}", f"--config.data.path={path}"])
    assert f"taken to be those of '{path}'" in capsys.readouterr().err


def test_an_old_import_of_gpt2_goes_on_with_its_tokenizer(imported, text):
    workdir, _ = imported
    data, model = {"path": "data/shakespeare.txt"}, {"vocab_size": 50257}
    edit_config(workdir, data=data, model=model)
    gpt2 = tokenizers.GPT2Tokenizer()
    tokenizer_files.save(gpt2, workdir / "tokenizer.json")
    frozen = configs.load_frozen(workdir)
    assert frozen.data.tokenizer == "char"
    changes = {"data.path": text(SENTENCE * 400)}
    setup = prepare(configs.override(frozen, changes), workdir, (), changes)
    assert setup.config.data.tokenizer == "gpt2"
    assert setup.data.tokenizer.to_json() == gpt2.to_json()


# A run that goes on.


def test_more_steps_keep_the_learning_rate(run_copy, capsys):
    setup = opened(TINY, {"steps": "60"}, run_copy)
    rate = optimizers.learning_rate_schedule(setup.config)
    lowest = setup.config.optimizer.min_learning_rate
    assert float(rate(59)) == pytest.approx(lowest) == pytest.approx(float(rate(40)))
    said = capsys.readouterr().err
    assert "60 steps instead of 40: the learning rate keeps its schedule" in said
    assert f"which ends at step 40 with {lowest:g}" in said
    setup.freeze()
    assert opened(TINY, {"steps": "60"}, run_copy).config.optimizer.decay_steps == 40
    assert "note" not in capsys.readouterr().err
    stretched = {"steps": "80", "optimizer.decay_steps": "80"}
    with pytest.raises(UserError, match=r"--allow=optimizer\.decay_steps"):
        opened(TINY, stretched, run_copy)
    allowed = ["optimizer.decay_steps"]
    setup = opened(TINY, stretched, run_copy, allowed=allowed)
    assert setup.config.optimizer.decay_steps == 80
    # Saying what is so anyway is no change.
    opened(TINY, {"steps": "80", "optimizer.decay_steps": "40"}, run_copy)


@pytest.mark.parametrize(
    "key, value",
    [("model.n_layer", "3"), ("optimizer.ema_decay", "0.9"), ("sigma.begin_token", 1)],
)
def test_what_changes_arrays_is_not_allowed_to_change(key, value, run_copy, refused):
    before = (run_copy / "config.json").read_bytes()
    for allowed in ([], [key]):
        message = refused(TINY, {key: value, "seed": "7"}, run_copy, allowed=allowed)
        assert "--allow=" not in message
        assert f"({key}: arrays of its checkpoints depend on it" in message
        assert f"{key}: " in message.splitlines()[1] + message.splitlines()[2]
    assert (run_copy / "config.json").read_bytes() == before
    with pytest.raises(UserError, match="--allow=seed\n"):
        opened(TINY, {"seed": "7"}, run_copy)


def test_allowing_another_shape_is_refused_at_once(run_copy):
    options = [f"--workdir={run_copy}", "--allow=model.n_layer"]
    with pytest.raises(
        UserError, match=r"^--allow=model\.n_layer: .*another --workdir"
    ):
        train.command(options)


def test_a_config_of_another_shape_is_not_called_damage(run_copy):
    edit_config(run_copy, model={"n_layer": 3})
    with pytest.raises(
        UserError, match=r"does not fit its config\.json: it has no arr"
    ):
        open_run(str(run_copy))
    checkpoints = Checkpoints(run_copy)
    setup = prepare(configs.load_frozen(run_copy), run_copy)
    with pytest.raises(UserError, match=r"checkpoint 40 .* does not fit this config"):
        checkpoints.restore_newest(abstract_state(setup)[1])
    assert checkpoints.steps()[-1] == 40
    assert not list(run_copy.rglob("*.damaged"))


def stamps(folder):
    """{path: (content, time)} of all that is in a folder, and of itself."""
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in [folder, *folder.rglob("*")]
    }


def test_a_run_that_is_done_says_so_and_changes_nothing(run_copy, capsys):
    before = stamps(run_copy)
    for changes in ({}, {"steps": "20"}, {"keep": "7"}):
        assert train_run(configs.load(TINY, changes), run_copy) == 0
        steps = changes.get("steps", 40)
        said = (
            f"'{run_copy}' is done: step 40 of {steps}; to train on: --config.steps=80"
        )
        assert said in capsys.readouterr().err
    assert stamps(run_copy) == before
    # With work left, however little, it is not.
    (run_copy / "loss.png").unlink()
    assert finished(opened(TINY, {}, run_copy)) is None


def test_a_system_without_file_locks(tmp_path, text, monkeypatch, capsys):
    monkeypatch.setattr("jaxgpt.parallel.lock.fcntl", None)
    setup = opened(TINY, {"data.path": text(SENTENCE * 40)}, tmp_path / "run")
    with exclusive(setup):
        assert (tmp_path / "run").is_dir()
    assert "this system has no file locks" in capsys.readouterr().err


# The cache.


@pytest.mark.parametrize("spec", [TINY, f"{ROOT}/configs/sigma_task.py:step-tiny"])
def test_a_cache_that_cannot_be_written_is_one_line(
    spec, text, tmp_path, refused, monkeypatch
):
    monkeypatch.setenv("JAXGPT_CACHE", text("", "file") + "/cache")
    message = refused(spec, {}, tmp_path / "run")
    assert f"the cache '{tmp_path}/file/cache/" in message
    assert "cannot be written: Not a directory: set JAXGPT_CACHE" in message
    assert "\n" not in message


def test_programs_that_cannot_be_kept_are_said(text, monkeypatch, capsys):
    backend.warn_if_uncached()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("JAXGPT_CACHE", text("", "file") + "/cache")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    backend.warn_if_uncached()
    said = capsys.readouterr().err
    assert "/file/cache/xla' cannot be written (Not a directory): every" in said
    assert said.endswith("set JAXGPT_CACHE to a writable folder\n")


@pytest.mark.parametrize("asked_for", [True, False])
def test_the_heap_is_kept_from_before_xla_has_threads(asked_for, monkeypatch):
    if asked_for:
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(backend.hardware, "has_accelerator", lambda: asked_for)
    done = []
    monkeypatch.setattr(backend.cpu, "keep_heap", lambda: done.append("heap"))
    starts = lambda: done.append("XLA") or "cpu"
    monkeypatch.setattr(backend.jax, "default_backend", starts)
    backend.set_up_jax()
    assert done[:2] == ["heap", "XLA"]


def test_no_home_for_a_cache(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "expanduser", homeless)
    monkeypatch.delenv("JAXGPT_CACHE")
    with pytest.raises(UserError, match=r"home directory.*: set JAXGPT_CACHE to a"):
        cache_root()
