"""jaxgpt from Python: the examples of its docstrings, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest

import jaxgpt
from jaxgpt import api, evaluate, sample
from jaxgpt.sampling.options import SamplingOptions
from jaxgpt.sampling.state import SamplingParams
from tests.conftest import TINY, last_json, refusal


@pytest.fixture(scope="module")
def run(trained):
    return jaxgpt.load(trained)


@pytest.mark.process
def test_importing_it_loads_nothing():
    code = (
        "import sys, jaxgpt, jaxgpt.train; jaxgpt.config\n"
        "heavy = {'jax', 'numpy', 'flax'} & {*sys.modules}\n"
        "print([*heavy], callable(jaxgpt.train))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[] True\n"


def test_the_package_offers_what_api_does_and_its_submodules():
    assert {*api.__all__} == {*jaxgpt.__all__} - {"gssm", "memory"}
    assert {*jaxgpt.__all__} <= {*dir(jaxgpt)}
    assert jaxgpt.Run is api.Run and jaxgpt.train.command
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jaxgpt.nothing  # noqa: B018


def test_a_config_is_read_and_changed():
    config = jaxgpt.config(TINY, **{"optimizer.learning_rate": 3e-3})
    assert config.optimizer.learning_rate == 3e-3
    message = refusal(jaxgpt.config, TINY, **{"optimizer.learning": 1})
    assert "did you mean 'optimizer.learning_rate'" in message


@pytest.mark.trains
def test_training_calls_back_stops_and_resumes(tmp_path):
    config = jaxgpt.config(TINY)
    seen = []

    def callback(row):
        seen.append(row)
        return np.bool_(row["step"] < 20)

    run = jaxgpt.train(config, tmp_path / "run", callback=callback)
    assert run.step == 20 and [row["step"] for row in seen] == [10, 20]
    assert "loss" in seen[0] and "val_loss" in seen[1]
    assert run.workdir == tmp_path / "run"
    again = jaxgpt.train(TINY, tmp_path / "run")
    assert again.step == 40
    assert config.model.vocab_size == 0  # The caller's config is left as it was.


def test_generating_is_what_the_command_does(run, trained, capsys):
    options = {"max_new_tokens": 9, "num_samples": 2, "temperature": 0.8, "top_k": 20}
    options |= {"order": "far-apart", "seed": 3}
    found = run.generate("ROMEO:", **options)
    argv = [f"--{name}={value}" for name, value in options.items()]
    sample.command([f"--workdir={trained}", "--prompt=ROMEO:", "--json=-", *argv])
    assert [one.to_json() for one in found] == last_json(capsys)["samples"]
    assert found[0].text.startswith("ROMEO:") and len(found[0].tokens) == 15
    assert found[0].num_generated == 9 and found[0].log_prob < 0
    from_ids = run.generate(run.encode("ROMEO:"), **options)
    assert [one.text for one in from_ids] == [one.text for one in found]
    (stopped,) = run.generate("a", stop="e", order="left-to-right")
    assert len(stopped.tokens) == 32 or stopped.text.index("e") == len(stopped.text) - 1
    assert stopped.num_generated == len(stopped.tokens) - 1


def test_gaps_are_written_in_text_or_as_minus_one(run):
    by_text = run.infill("To <missing:4>not", seed=1)[0]
    assert by_text.text.startswith("To ") and by_text.text.endswith("not")
    ids = [*run.encode("To "), -1, -1, -1, -1, *run.encode("not")]
    assert (run.infill(ids, seed=1)[0].tokens == by_text.tokens).all()


def test_scores_stand_where_their_tokens_do(run, trained, tmp_path, capsys):
    nll_NT = run.score(["my lord", "my"])
    assert nll_NT.shape == (2, 7)
    known = np.isfinite(nll_NT)
    assert known.tolist() == [[False, *[True] * 6], [False, True, *[False] * 5]]
    # In another order, as the command has it.
    order = np.array([3, 1, 0, 2])
    tokens_NT = np.array([run.encode("lord"), run.encode("best")])
    found = run.score(tokens_NT, order=order)
    np.save(tmp_path / "tokens.npy", tokens_NT)
    np.save(tmp_path / "order.npy", np.array([order, order]))
    argv = [f"--{name}={tmp_path / name}.npy" for name in ("tokens", "order")]
    argv += [f"--logits={tmp_path / 'logits.npy'}"]
    evaluate.command([f"--workdir={trained}", "--json=-", *argv])
    expected = last_json(capsys)["nll"]
    np.testing.assert_array_equal(found[:, order[1:]], expected)
    assert np.isnan(found[:, order[0]]).all()
    logits = run.logits(tokens_NT, order=order)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, np.load(tmp_path / "logits.npy"))


def test_an_order_of_writing_may_be_a_list(run):
    by_name, by_list = (
        run.infill("<missing:3>my", order=order, seed=2)[0].tokens
        for order in ("2,1,0", np.array([2, 1, 0]))
    )
    assert (by_name == by_list).all()


def test_a_subset_s_log_probability_is_that_of_scores_in_its_orders(run):
    given = np.array([True, False, True, True, True])
    found = run.log_prob("lords", given=given, num_orders=3)
    order = [0, 2, 3, 4, 1]  # One token is missing: every order is this one.
    expected = -run.score("lords", order=order)[0, 1]
    np.testing.assert_allclose(found.per_order, [expected] * 3, rtol=1e-5)
    assert found.mean.shape == () and found.standard_error < 1e-5
    assert found.mixture == pytest.approx(found.mean, rel=1e-5)
    several = run.log_prob(["lords", "words"], given=given, num_orders=3)
    assert several.mean.shape == (2,)
    np.testing.assert_allclose(several.per_order[0], found.per_order, rtol=1e-5)


def test_orders_differ_and_a_mixture_lies_above_their_mean(run):
    found = run.log_prob("my lord, my lord", given=np.arange(16) < 8, num_orders=8)
    assert np.ptp(found.per_order) > 0
    assert found.mixture > found.mean and found.standard_error > 0
    one = run.log_prob("my lord, my lord", given=np.arange(16) < 8, num_orders=1)
    assert np.isnan(one.standard_error)


def test_the_module_can_be_called(run):
    tokens = run.encode("lord")[None]
    order = np.arange(4)[None]
    positions = order[:, :-1], order[:, 1:]
    logits, _ = run.model(tokens[:, :-1], positions)
    np.testing.assert_allclose(logits, run.logits("lord"), atol=1e-5)


@pytest.mark.parametrize(
    "method, arguments, options, message",
    [
        ("generate", ["é"], {}, r"'é' \(at 0\) is not in the vocabulary"),
        ("generate", [[65]], {}, r"prompt must be in \[0, 64\], got \[65\]"),
        ("generate", [[0.5]], {}, "prompt must be token ids"),
        ("generate", [""], {"temperature": -1}, "temperature must be >= 0, got -1"),
        ("generate", [""], {"top_k": 0}, "top_k must be >= 1, got 0"),
        ("generate", [""], {"num_samples": 0}, "num_samples must be >= 1, got 0"),
        ("generate", [""], {"max_new_tokens": -1}, "max_new_tokens must be >= 0"),
        ("generate", [""], {"seed": -1}, "seed must be >= 0, got -1"),
        ("generate", [""], {"sampler": "beam"}, "sampler must be one of"),
        ("generate", [""], {"top_k": 2.5}, "top_k must be an integer, got 2.5"),
        ("generate", [""], {"temperature": "1"}, "temperature must be a number"),
        ("generate", [""], {"seed": None, "num_samples": True}, "num_samples must be"),
        ("generate", [""], {"stop": 5}, "stop must be a str, got 5"),
        ("generate", [np.ones((30, 9))], {}, r"token ids \[T\], got \[\[1. [^\n]+$"),
        ("generate", [[[1, 2]]], {}, r"prompt must be token ids \[T\]"),
        ("generate", [None], {}, "prompt must be token ids"),
        ("encode", [b"a"], {}, "a text must be a str"),
        ("decode", [[65]], {}, r"tokens must be in \[0, 64\]"),
        ("decode", [None], {}, "tokens must be token ids"),
        ("infill", ["a<missing>"], {}, "is not a gap"),
        ("infill", [[-2]], {}, r"template must be in \[-1, 64\]"),
        ("infill", [[[1]]], {}, "template must be one text"),
        ("score", ["a"], {}, r"lengths of texts must be in \[2, 32\], got \[1\]"),
        ("score", [[]], {}, r"must be in \[2, 32\], got \[0\]"),
        ("score", ["a" * 33], {}, r"must be in \[2, 32\], got \[33\]"),
        ("score", [[[1, 2], [3]]], {}, "in rows of one length"),
        ("score", ["ab"], {"order": [0, 0]}, "order must be"),
        ("score", ["ab"], {"order": [[0, 1], [1]]}, "order must be"),
        ("score", ["ab"], {"order": [False, True]}, "order must be"),
        ("score", [["ab", None]], {}, "a text must be a str, got None"),
        ("score", [["ab", "abc"]], {"order": [1, 0]}, "lengths of texts must be equal"),
        ("logits", [["ab", "abc"]], {}, "lengths of texts must be equal"),
        ("log_prob", ["abc"], {}, "given must be true somewhere"),
        ("log_prob", ["ab"], {"given": np.ones(2, bool)}, "false somewhere"),
        ("log_prob", ["ab"], {"given": np.ones(3, bool)}, r"bool \[1, 2\]"),
        ("log_prob", ["ab"], {"given": [[True], [True, False]]}, "given must be bool"),
        ("log_prob", ["ab"], {"num_orders": 0}, "num_orders must be >= 1"),
        ("log_prob", ["ab"], {"seed": 2**32}, "seed must be <="),
    ],
)
def test_wrong_arguments_are_named(run, method, arguments, options, message):
    with pytest.raises(jaxgpt.UserError, match=message):
        getattr(run, method)(*arguments, **options)


def test_none_is_the_default_of_an_option_of_sampling():
    options = dict.fromkeys(SamplingOptions.__annotations__)
    assert SamplingParams.of(options) == SamplingParams()


def test_an_unknown_option_of_sampling_is_a_type_error(run):
    with pytest.raises(TypeError, match="tempreature"):
        run.generate("", tempreature=0.5)


def test_what_is_no_model_is_not_loaded(trained, tmp_path):
    message = refusal(jaxgpt.load, tmp_path / "none")
    assert "neither a run nor gpt2 weights" in message
    assert "no checkpoint '7'" in refusal(jaxgpt.load, trained, step=7)
    assert "format must be one of" in refusal(jaxgpt.load, tmp_path, format="gpt3")
    for option in ("format", "source_config", "tokenizer"):
        said = refusal(jaxgpt.load, trained, **{option: "gpt2"})
        assert f"is a run, and {option} is for weights" in said
    both = {"workdir": tmp_path / "new", "source": "a", "output": "b"}
    assert "give source" in refusal(jaxgpt.convert, "gpt2", **both)


@pytest.mark.parametrize("path", [None, b"runs", 5, ""])
def test_what_is_no_path_is_refused(path):
    rule = "must be a str or a pathlib.Path"
    assert rule in refusal(jaxgpt.load, path)
    assert rule in refusal(jaxgpt.train, TINY, path)
    assert rule in refusal(jaxgpt.convert, "gpt2", workdir=path, source="a")


def test_arguments_of_training_are_checked_first(tmp_path):
    workdir = tmp_path / "run"
    assert "callable" in refusal(jaxgpt.train, TINY, workdir, callback=5)
    assert "list of config keys" in refusal(jaxgpt.train, TINY, workdir, allow="seed")
    assert "did you mean" in refusal(jaxgpt.train, TINY, workdir, allow=["stepz"])
    message = refusal(jaxgpt.config, TINY, **{"data.path": None})
    assert "data.path must be text" in message
    assert not workdir.exists()


def test_weights_go_out_and_are_loaded_without_a_run(trained, run, tmp_path):
    done = jaxgpt.convert("sigma-gpt", workdir=trained, output=tmp_path / "w.npz")
    assert done == {"output": str(tmp_path / "w.npz")}
    settings = tmp_path / "settings.json"
    model = run.config.model
    keys = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    settings.write_text(json.dumps({key: model[key] for key in keys}))
    loaded = jaxgpt.load(
        tmp_path / "w.npz",
        format="sigma-gpt",
        source_config=settings,
        tokenizer=trained / "tokenizer.json",
    )
    np.testing.assert_array_equal(loaded.logits("lord"), run.logits("lord"))
    assert {*tmp_path.iterdir()} == {settings, tmp_path / "w.npz"}
    assert repr(loaded).endswith("w.npz' step 0: sigma, 27,328 parameters>")
