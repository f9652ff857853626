import dataclasses
import json

import pytest

from jaxgpt import cli, convert, evaluate, train
from jaxgpt import config as configs
from jaxgpt.config import base, override
from jaxgpt.errors import UserError
from tests.conftest import ROOT, TINY, refusal

HEADER = "from jaxgpt.config import base, override, with_variant\n"


@pytest.fixture
def config_file(tmp_path):
    def write(text, name="experiment.py"):
        path = tmp_path / name
        path.write_text(HEADER + text)
        return str(path)

    return write


def test_base_holds_every_field_with_its_default():
    assert configs.flatten(base()) == {
        k: field.default for k, field in configs.options().items()
    }


def test_base_is_valid_once_the_vocabulary_is_known():
    assert configs.validate(base()) is not None


def test_base_is_locked():
    config = base()
    with pytest.raises(AttributeError):
        config.stepz = 3
    with pytest.raises(AttributeError):
        config.model.layers = 3


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("stepz", "steps"),
        ("model.n_layers", "model.n_layer"),
        ("n_head", "model.n_head"),
        ("optimizer.learning_rat", "optimizer.learning_rate"),
        ("", ""),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    message = refusal(override, base(), {key: "3"})
    assert f"unknown config key '{key}': did you mean '{nearest}" in message


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("steps", "1e3", 1000),
        ("steps", "12", 12),
        ("steps", 7.0, 7),
        ("seed", str(2**32 - 1), 2**32 - 1),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.learning_rate", 1, 1.0),
        ("model.bias", "true", True),
        ("model.bias", "TRUE", True),
        ("model.bias", "1", True),
        ("tensorboard", "false", False),
        ("tensorboard", "0", False),
        ("data.path", "12", "12"),
        ("model.dtype", "bfloat16", "bfloat16"),
    ],
)
def test_values_are_read_as_the_type_of_the_field(key, text, value):
    found = configs.flatten(override(base(), {key: text}))[key]
    assert found == value
    assert type(found) is type(configs.options()[key].default)


@pytest.mark.parametrize(
    "key, text, expected",
    [
        ("steps", "1.5", "steps must be an integer, got '1.5'"),
        ("steps", "many", "an integer, got 'many'"),
        ("steps", "", "an integer, got ''"),
        ("steps", "inf", "an integer, got 'inf'"),
        ("steps", None, "an integer, got None"),
        ("steps", [1], "an integer, got [1]"),
        (
            "optimizer.beta1",
            "fast",
            "optimizer.beta1 must be a finite number, got 'fas",
        ),
        ("model.bias", "yes", "model.bias must be true or false, got 'yes'"),
        (
            "system",
            "rnn",
            "sigma-task, masked-diffusion, causal, gssm, memory, got 'rnn'",
        ),
        ("sigma.order", "Random", "sigma.order must be one of random, left-to-right"),
        ("model.dtype", "float16", "float32, bfloat16, float64, got 'float16'"),
        ("steps", "0", "steps must be >= 1, got 0"),
        ("model.block_size", "1", "model.block_size must be >= 2, got 1"),
        ("seed", "-1", "seed must be >= 0, got -1"),
        ("seed", 2**32, "seed must be <= 4294967295, got 4294967296"),
        ("steps", "1e18", "steps must be <= 2147483647, got 1000000000000000000"),
        ("batch_size", "99999999999", "batch_size must be <= 2147483647"),
        ("steps", "٣", "steps must be an integer, got '٣'"),
        ("model.dropout", "٠.٥", "model.dropout must be a finite number"),
        ("gssm.graph_seed", 2**32, "gssm.graph_seed must be <= 4294967295"),
        ("task.data_seed", 2**32, "task.data_seed must be <= 4294967295"),
        ("optimizer.learning_rate", "nan", "a finite number"),
        ("optimizer.learning_rate", "inf", "a finite number"),
        ("model.bias", 3, "true or false"),
        ("model.dropout", 1.0, "model.dropout must be < 1, got 1.0"),
        ("data.val_fraction", 0.0, "data.val_fraction must be > 0, got 0.0"),
        ("data.val_fraction", 1.0, "data.val_fraction must be < 1, got 1.0"),
        ("sigma.order_start", 1.5, "sigma.order_start must be <= 1, got 1.5"),
        ("optimizer.ema_decay", 1, "optimizer.ema_decay must be < 1, got 1.0"),
    ],
)
def test_value_that_the_field_cannot_hold(key, text, expected):
    assert expected in refusal(override, base(), {key: text})


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"batch_size": 8, "accumulation": 3},
            "batch_size must be divisible by accumulation 3, got 8",
        ),
        (
            {"deterministic": True, "batch_size": 12},
            "batch_size must be divisible by deterministic_groups 8, got 12",
        ),
        (
            {"data.val_fraction": 0.5, "data.test_fraction": 0.5},
            "leave nothing to train on",
        ),
        (
            {"model.positions": "alibi"},
            "must be one of learned, rope, sinusoidal for σ-GPT, got",
        ),
        (
            {"system": "sigma-task", "sigma.infill_share": 0.1},
            "sigma.infill_share must be 0 with system=sigma-task, got 0.1: a task has",
        ),
        ({"profile": "5:2"}, "profile must be FIRST:LAST, steps such as 10:15"),
        ({"optimizer.rates": "9:1,2:1"}, "optimizer.rates must be like 2000:2e-5"),
        ({"optimizer.rates": "9:x"}, "optimizer.rates must be like 2000:2e-5"),
    ],
)
def test_fields_that_contradict_each_other(changes, expected):
    assert expected in refusal(configs.validate, override(base(), changes))


def test_validate_checks_values_set_as_attributes():
    config = base()
    config.steps = 0
    assert "steps must be >= 1" in refusal(configs.validate, config)


def test_load_applies_variant_then_overrides(config_file):
    path = config_file(
        "def get_config(variant=''):\n"
        "    config = override(base(), {'steps': 7})\n"
        "    return with_variant(config, variant, {'big': {'batch_size': 128}})\n"
    )
    plain = configs.load(path, {})
    assert (plain.steps, plain.batch_size) == (7, 64)
    big = configs.load(f"{path}:big", {"model.n_layer": "2"})
    assert (big.steps, big.batch_size, big.model.n_layer) == (7, 128, 2)
    message = refusal(configs.load, f"{path}:huge", {})
    assert path in message
    assert "unknown variant ':huge': this config has :big" in message


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("configs/mine.py", ("configs/mine.py", "")),
        ("configs/mine.py:tiny", ("configs/mine.py", "tiny")),
        ("runs/10:30/mine.py", ("runs/10:30/mine.py", "")),
        ("runs/10:30/mine.py:tiny", ("runs/10:30/mine.py", "tiny")),
        (r"C:\configs\mine.py:tiny", (r"C:\configs\mine.py", "tiny")),
        ("a.py:b.py:", ("a.py:b.py", "")),
        ("configs/three:tiny", ("configs/three:tiny", "")),
        ("three", ("three", "")),
        ("three:tiny", ("three", "tiny")),
        ("three:", ("three", "")),
        (r"C:\configs\three", (r"C:\configs\three", "")),
    ],
)
def test_path_and_variant(spec, expected):
    assert configs.split_spec(spec) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("gs://bucket/run", "s3://b", "HTTPS://x.org/y", "hdfs://n/x"),
        *("abfs://c@a/x", "file://host/x", "memory://x"),
    ],
)
def test_an_address_is_no_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(configs.user_path, name)
    assert f"'{name}' is an address: name a file or folder" in message
    for command, options in (
        (train.command, [f"--config={TINY}", f"--workdir={name}"]),
        (train.command, [f"--config={TINY}", f"--config.data.path={name}"]),
        (evaluate.command, [f"--workdir={name}"]),
        (convert.command, ["--format=gpt2", f"--workdir={name}", "--source=gpt2"]),
        (convert.command, ["--format=gpt2", "--workdir=w", f"--output={name}"]),
    ):
        assert refusal(command, options) == message
    assert list(tmp_path.iterdir()) == []


def test_a_file_address_is_a_path(tmp_path):
    assert configs.user_path(f"file://{tmp_path}/a%20b") == tmp_path / "a b"


def test_variant_of_a_config_without_any(config_file):
    path = config_file(
        "def get_config(variant=''):\n    return with_variant(base(), variant, {})\n"
    )
    assert "this config has none" in refusal(configs.load, f"{path}:x", {})


def test_variants_in_every_size_are_listed_briefly():
    path = ROOT / "configs" / "sigma_task.py"
    message = refusal(configs.load, f"{path}:labyrinth", {})
    assert "this config has :maze, :product, " in message
    assert message.endswith(
        ":file, each of them also with -laptop, -tiny, -17K, -4M, -37M, -122M, -352M"
    )


@pytest.mark.parametrize("spec", ["configs/three.py:tiny", "three.py", "three:tiny"])
def test_missing_config_file_lists_those_shipped(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start, _, names = refusal(configs.load, spec, {}).partition(" or one of ")
    assert start == f"no config file '{spec.removesuffix(':tiny')}': name a .py file,"
    shipped = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert set(names.split(", ")) == shipped
    assert "quickstart" in shipped


def test_a_shipped_config_has_a_name_and_a_path_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = configs.load("sigma_char:tiny", {})
    for path in ("configs/sigma_char.py:tiny", TINY):
        assert configs.load(path, {}) == named
        assert train.default_workdir(path) == "runs/sigma_char-tiny"
    assert train.default_workdir("sigma_char:tiny") == "runs/sigma_char-tiny"
    assert train.default_workdir("quickstart") == "runs/quickstart"
    assert "sigma_char: unknown variant" in refusal(configs.load, "sigma_char:x", {})


def test_a_file_of_ones_own_comes_before_a_shipped_one(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "sigma_char.py"
    own.write_text(f"{HEADER}def get_config(variant=''):\n    return base()\n")
    monkeypatch.chdir(tmp_path)
    assert configs.load("configs/sigma_char.py", {}) == base()
    # A name is that of a shipped one.
    assert configs.load("sigma_char", {}) != base()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("", "no attribute 'get_config'"),
        ("def get_config(): return base()", "TypeError"),
    ],
)
def test_config_file_that_cannot_run(config_file, text, expected):
    path = config_file(text + "\n")
    message = refusal(configs.load, path, {})
    assert f"config file '{path}' cannot be read" in message
    assert expected in message


@pytest.mark.parametrize(
    "body, expected",
    [
        ("raise ValueError('a\\nb')", "ValueError: a b"),
        ("pass", "must return base()"),
        ("return {'steps': 3}", "must return base()"),
        ("return base().model", "must return base()"),
        ("c = base(); c.stepz = 3; return c", 'Did you mean "steps"'),
        ("c = base(); c.steps = 'x'; return c", "'steps'"),
        ("return override(base(), {'stepz': 3})", "did you mean 'steps'"),
        ("c = base().unlock(); c.stepz = 3; return c", "did you mean 'steps'"),
    ],
)
def test_get_config_that_is_wrong(config_file, body, expected):
    path = config_file(f"def get_config(variant=''):\n    {body}\n")
    message = refusal(configs.load, path, {})
    assert expected in message
    assert len(message) < 500


def test_config_file_of_another_kind(config_file):
    path = config_file("", name="experiment.txt")
    assert "is not Python" in refusal(configs.load, path, {})


def test_frozen_config_round_trip(tmp_path):
    changes = {"steps": 12, "model.bias": True, "data.path": "ça/σ.txt", "seed": 5}
    config = override(base(), changes)
    configs.save(config, tmp_path / "config.json")
    loaded = configs.load_frozen(tmp_path)
    assert configs.flatten(loaded) == configs.flatten(config)
    assert loaded.is_locked
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "is damaged"),
        ('{"steps": 3', "is damaged"),
        ("[1]", "is damaged"),
        (json.dumps({"steps": 1.5}), "steps must be an integer, got 1.5"),
        (json.dumps({"stepz": 3}), "did you mean 'steps'"),
        (json.dumps({"model": {"n_layer": None}}), "model.n_layer must be"),
    ],
)
def test_frozen_config_that_is_damaged(tmp_path, text, expected):
    (tmp_path / "config.json").write_text(text)
    assert expected in refusal(configs.load_frozen, tmp_path)


def test_frozen_config_that_is_not_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    assert "is damaged" in refusal(configs.load_frozen, tmp_path)


def test_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "'run' is not a path: " in refusal(configs.user_path, "run")
    assert configs.user_path(str(tmp_path)) == tmp_path


def test_a_folder_of_hugging_face_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')
    message = refusal(configs.load_frozen, tmp_path)
    assert message == f"'{tmp_path}' is a model, not a run: import it with convert"


def test_folder_without_a_frozen_config(tmp_path):
    assert f"'{tmp_path}' holds no run" in refusal(configs.load_frozen, tmp_path)


def test_differences():
    old = base()
    assert configs.differences(old, base()) == {}
    new = override(base(), {"model.n_layer": 2, "data.path": "x"})
    assert configs.differences(old, new) == {
        "model.n_layer": (6, 2),
        "data.path": ("data/shakespeare.txt", "x"),
    }


def test_split_overrides():
    argv = [
        "--config=a.py",
        "--config.steps=3",
        "--config.model.n_layer",
        "2",
        "--workdir",
        "w",
        "--config.data.path=a=b",
        "--config.wandb_project=",
    ]
    rest, overrides = cli.split_overrides(argv)
    assert rest == ["--config=a.py", "--workdir", "w"]
    assert overrides == {
        "steps": "3",
        "model.n_layer": "2",
        "data.path": "a=b",
        "wandb_project": "",
    }


def test_split_overrides_without_a_last_value():
    assert cli.split_overrides(["--config.steps"]) == ([], {"steps": ""})


def test_every_field_is_described():
    lines = cli.describe_fields(configs.options()).splitlines()
    for key, field in configs.options().items():
        at = lines.index(f"  {key} ({field.default!r})")
        assert field.help in lines[at + 1]
        assert all(choice in lines[at + 1] for choice in field.choices)


@pytest.mark.parametrize("key", configs.options())
def test_defaults_pass_their_own_check(key):
    default = configs.options()[key].default
    assert configs.flatten(override(base(), {key: str(default)}))[key] == default


def test_every_field_has_help_and_a_default_of_its_type():
    for declared in configs.groups().values():
        types = {f.name: f.type for f in dataclasses.fields(declared)}
        for field in dataclasses.fields(declared):
            if option := field.metadata.get("option"):
                assert option.help
                assert types[field.name] == type(option.default).__name__


@dataclasses.dataclass(frozen=True)
class Soup(configs.OptionGroup):
    salt: int = configs.option(3, "grains of it", min=1, resumable=True)
    bowl: str = configs.option("deep", "kind", choices=("deep", "flat"))

    @staticmethod
    def validate(config):
        if config.soup.bowl == "flat" and config.soup.salt > 5:
            raise UserError("soup.salt is too much for soup.bowl=flat")


@pytest.fixture
def soup(monkeypatch):
    def forget():
        configs.groups.cache_clear()
        configs.options.cache_clear()

    monkeypatch.setitem(configs.GROUPS, "soup", f"{__name__}:Soup")
    forget()
    yield
    monkeypatch.undo()
    forget()


def test_a_group_of_fields_is_declared_once(soup, tmp_path):
    config = base()
    assert config.soup.to_dict() == {"salt": 3, "bowl": "deep"}
    shown = cli.describe_fields(configs.options())
    assert "  soup.salt (3)\n      grains of it\n" in shown
    assert "  soup.bowl ('deep')\n      kind [deep|flat]" in shown
    assert "soup.salt" in configs.keys_that("resumable")
    assert "soup.bowl" not in configs.keys_that("resumable")
    message = refusal(override, config, {"soup.salt": "0"})
    assert message == "soup.salt must be >= 1, got 0"
    override(config, {"soup.salt": "9", "soup.bowl": "flat"})
    assert "too much" in refusal(configs.validate, config)
    override(config, {"soup.bowl": "deep"})
    configs.save(config, tmp_path / "config.json")
    assert configs.load_frozen(tmp_path).soup.salt == 9
    assert configs.differences(base(), config) == {"soup.salt": (3, 9)}


def test_what_may_change_when():
    assert {"steps", "data.path", "mesh.fsdp"} <= set(configs.keys_that("resumable"))
    assert not {"seed", "batch_size", "model.n_embd"} & set(
        configs.keys_that("resumable")
    )
    architecture = set(configs.keys_that("architecture"))
    model = {key for key in configs.options() if key.startswith("model.")}
    assert model | {"sigma.separate_tables"} == {
        *("model.dropout", "model.dtype", "model.remat", "model.loss_chunk"),
        "model.scan_layers",
        *architecture,
    }
    later = set(configs.keys_that("after_training"))
    assert later == {"system", "data.path", "diffusion.eval_masks"} | {
        key for key in configs.options() if key.startswith("memory.")
    }


def test_overrides_of_a_finished_run():
    argv = ["--workdir=w", "--config.memory.weight=0.5", "--config.system=memory"]
    assert cli.after_training_overrides(argv) == (
        ["--workdir=w"],
        {"memory.weight": "0.5", "system": "memory"},
    )
    assert refusal(cli.after_training_overrides, ["--config.steps=3"]) == (
        "--config.steps is for training: --helpfull lists the fields that a finished "
        "run can change"
    )
    assert "did you mean 'memory.weight'" in refusal(
        cli.after_training_overrides, ["--config.memory.weigh=1"]
    )
