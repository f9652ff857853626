import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import importlib
import logging
import os
import pathlib
import pickle
import posix
import random
import stat
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from jaxgpt.errors import UserError
from jaxgpt.interop import torch_file
from tests.conftest import refusal
from tests.interop.conftest import GOLDEN

FILES = sorted([*GOLDEN.rglob("*.pt"), *GOLDEN.rglob("*.bin")])


def assert_same(found, there):
    """What was read is what PyTorch reads."""
    if isinstance(there, torch.Tensor):
        assert isinstance(found, np.ndarray)
        assert str(found.dtype) == str(there.dtype).removeprefix("torch.")
        assert found.shape == tuple(there.shape)
        there = there.detach()
        if there.dtype == torch.bfloat16:
            found, there = found.astype(np.float32), there.float()
        np.testing.assert_array_equal(found, there.numpy())
    elif isinstance(there, dict):
        assert list(found) == list(there)
        for key in there:
            assert_same(found[key], there[key])
    elif isinstance(there, list | tuple):
        assert type(found) is type(there)
        assert len(found) == len(there)
        for one, other in zip(found, there, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(there)
        assert found == there or found != found


def refused(path):
    """Reading a file must end in one line."""
    message = refusal(torch_file.read_torch_file, path)
    assert str(path) in message
    assert len(message) < 500 + len(str(path))
    return message


@pytest.fixture
def saved(tmp_path):
    def save(value, **options):
        path = tmp_path / "saved.pt"
        torch.save(value, path, **options)
        return path

    return save


@pytest.fixture
def made(tmp_path):
    """Writes an archive from the bytes of its pickle and further entries."""

    def make(index, *entries, root="archive", compression=zipfile.ZIP_STORED):
        path = tmp_path / "made.pt"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr(f"{root}/data.pkl", index)
            for name, content in entries:
                archive.writestr(f"{root}/{name}", content)
        return path

    return make


@pytest.fixture
def mark(tmp_path):
    """A file that a payload would make; its command."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_files_read_as_by_pytorch(path):
    assert_same(torch_file.read_torch_file(path), torch.load(path, weights_only=True))


def test_there_are_golden_files():
    assert len(FILES) >= 5


BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        {"a": BASE, "n": 1, "x": 0.5, "s": "σ", "b": True, "none": None, "i": -(2**70)},
        {"nested": {"list": [BASE, {"t": (BASE, 1)}], "empty": [(), [], {}]}},
        [BASE, BASE.T, BASE[1:, 2:4], BASE[::2, ::3], BASE.permute(1, 0)[2:5]],
        {"one": BASE[0], "two": BASE[3], "same": BASE},
        [torch.tensor(1.5), torch.tensor(7), torch.tensor(True)],
        [torch.zeros(0), torch.zeros(0, 3), torch.zeros(3, 0)[1:]],
        [torch.ones(1, 1).expand(3, 5), torch.arange(3.0)[:, None].expand(3, 2)],
        [
            BASE.to(dtype)
            for dtype in (
                *(torch.float64, torch.float16, torch.bfloat16, torch.int64),
                *(torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
            )
        ],
        torch.nn.Parameter(BASE),
        {"p": torch.nn.Parameter(BASE.T, requires_grad=False)},
        collections.OrderedDict(b=BASE, a=BASE.T),
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).state_dict(),
        torch.tensor([float("nan"), float("inf"), -0.0]),
        {0: BASE, (1, "two"): BASE},
        3,
        {f"key {i}": torch.full((2,), i) for i in range(300)},
    ],
    ids=range(16),
)
def test_values_read_as_by_pytorch(saved, value, protocol):
    path = saved(value, pickle_protocol=protocol)
    assert_same(torch_file.read_torch_file(path), torch.load(path, weights_only=False))


def test_an_optimizer_s_state_reads_as_by_pytorch(saved):
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    path = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert_same(torch_file.read_torch_file(path), torch.load(path, weights_only=True))


def test_views_of_one_storage_share_memory_and_are_read_only(saved):
    one, other = torch_file.read_torch_file(saved([BASE, BASE.T]))
    assert np.shares_memory(one, other)
    with pytest.raises(ValueError):
        one[0] = 0


# Pickles that ask for something: nothing of it is executed.


class Payload:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(command):
    code = f"import os; os.system({command!r})"
    return {
        "system": Payload(os.system, command),
        "eval": Payload(eval, code.replace("import os; os", "__import__('os')")),
        "exec": Payload(exec, code),
        "partial": Payload(functools.partial(os.system, command)),
        "getattr": Payload(getattr, BASE, "numpy"),
        "import": Payload(importlib.import_module, "os"),
        "subprocess": Payload(subprocess.call, ["sh", "-c", command]),
        "open": Payload(open, command.split()[-1], "w"),
        "torch.load": Payload(torch.load, "other.pt"),
        "numpy.load": Payload(np.load, "other.npy"),
        "numpy file": Payload(np.fromfile, "other.npy"),
        "complex": Payload(compile, "1j", "<string>", "eval"),
        "an own class": Payload(Payload, print),
        "a method": Payload(str.format, "{0.numpy}", BASE),
        "a logger": Payload(logging.getLogger, "root"),
        "among tensors": {"model": {"w": BASE, "x": Payload(os.system, command)}},
        "in what is passed over": Payload(Payload, Payload(os.system, command)),
        "in a key": {("k", Payload(os.system, command)): BASE},
    }


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", payloads("true"))
def test_pickles_that_ask_for_other_names(saved, mark, name, protocol):
    path = saved(payloads(f"touch {mark}")[name], pickle_protocol=protocol)
    message = refused(path)
    assert "it asks for '" in message
    assert "only tensors and plain containers are read" in message


# What programs save beside the weights.


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class GPTConfig:
    n_layer: int = 2
    bias: bool = True
    out_dir: pathlib.PurePath | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    n_layer: int = 2


def rate(step):
    return step


PLAIN = {
    "float": (np.float64(2.5), 2.5),
    "float32": (np.float32(0.5), 0.5),
    "integer": (np.int64(-7), -7),
    "bool": (np.bool_(True), True),
    "size": (torch.Size([2, 3]), (2, 3)),
    "set": ({1, 2}, {1, 2}),
    "frozenset": (frozenset("a"), frozenset("a")),
    "ordered": (collections.OrderedDict(a=1), {"a": 1}),
    "default": (collections.defaultdict(list, {"a": [1]}), {"a": [1]}),
    "counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "bytes": (b"\xff\x00", b"\xff\x00"),
    "namespace": (argparse.Namespace(lr=np.float64(1e-3)), {"lr": 1e-3}),
    "simple": (types.SimpleNamespace(a={"b": (1, [2])}), {"a": {"b": (1, [2])}}),
    "dataclass": (
        GPTConfig(out_dir=pathlib.PurePosixPath("out")),
        {"n_layer": 2, "bias": True},
    ),
}
PASSED_OVER = {
    "array": (np.array([1.0]), "numpy.ndarray"),
    "text": (np.str_("a"), "numpy.generic"),
    "complex": (1j, "builtins.complex"),
    "range": (range(3), "builtins.range"),
    "path": (pathlib.PurePosixPath("a"), "PurePosixPath"),
    "dtype": (torch.bfloat16, "torch.bfloat16"),
    "device": (torch.device("cpu"), "torch.device"),
    # Its state is a list of values without names.
    "slots": (Slotted(), f"{__name__}.Slotted"),
    "enum": (Color.RED, f"{__name__}.Color"),
    "class": (GPTConfig, f"{__name__}.GPTConfig"),
    "function": (rate, f"{__name__}.rate"),
    "partial": (functools.partial(rate, 1), "functools.partial"),
    "date": (datetime.datetime(2024, 1, 2), "datetime.datetime"),
    "decimal": (decimal.Decimal("1.5"), "decimal.Decimal"),
    "version": (torch.__version__, "torch.torch_version.TorchVersion"),
    "random": (random.Random(1), "random.Random"),
    "generator": (np.random.default_rng(1), "numpy.random"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_of_other_kinds_are_read(saved, name, protocol):
    value, expected = PLAIN[name]
    path = saved({"w": BASE, "x": {"y": value}, "n": 1}, pickle_protocol=protocol)
    held, passed_over = torch_file.read_torch_file(path), []
    found = torch_file.without_opaque(held, "", passed_over)
    assert found["x"]["y"] == expected
    assert found["n"] == 1
    assert_same(found["w"], BASE)
    assert passed_over == ["x.y.out_dir (pathlib.PurePosixPath)"] * (
        name == "dataclass"
    )


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", PASSED_OVER)
def test_other_objects_are_passed_over_by_name(saved, name, protocol):
    value, expected = PASSED_OVER[name]
    path = saved({"x": {"y": value}, "z": [value]}, pickle_protocol=protocol)
    held, passed_over = torch_file.read_torch_file(path), []
    assert torch_file.without_opaque(held, "", passed_over)["x"] == {}
    assert passed_over[0].startswith("x.y (")
    assert expected in passed_over[0]


def test_a_whole_module_is_named(saved):
    found = torch_file.read_torch_file(saved(torch.nn.Linear(2, 2)))
    assert torch_file.opaque_name(found) == "torch.nn.modules.linear.Linear"


def test_what_is_opaque_is_never_looked_up_or_called(made, mark):
    """Neither by its name nor by its attributes, whatever opcode asks for it."""
    command = text(f"touch {mark}")
    asked = b"\x80\x02csomewhere.else\nsystem\n"
    for rest in (
        command + b"\x85R",
        command + b"\x85\x81",
        b")R}" + text("__class__") + command + b"sb",
        b")R(" + command + command + b"e",
        b")R(" + command + command + b"u",
        b")R" + command + b"a",
    ):
        found = torch_file.read_torch_file(made(asked + rest + b"."))
        assert torch_file.opaque_name(found) == "somewhere.else.system"
        assert "somewhere" not in sys.modules
    for rest in (b"}b", command + b"a", b"(" + command + command + b"u"):
        refused(made(asked + rest + b"."))


def test_containers_that_hold_themselves_or_each_other_many_times(made):
    cycle = b"\x80\x02}q\x00" + text("a") + b"h\x00s."
    found = torch_file.read_torch_file(made(cycle))
    plain = torch_file.without_opaque(found, "", [])
    assert plain["a"] is plain
    doubled = b"\x80\x02]q\x00"
    for i in range(60):  # Each list holds the one before twice: 2^60 in all.
        doubled += b"]q" + bytes([i + 1]) + b"(" + (b"h" + bytes([i])) * 2 + b"e"
    found = torch_file.read_torch_file(made(doubled + b"."))
    assert len(torch_file.without_opaque(found, "", [])) == 2


def text(value):
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


@pytest.mark.parametrize("module", ["os", "posix", "builtins", "torch._utils", "torch"])
@pytest.mark.parametrize("kind", ["global", "stack", "inst", "obj", "newobj", "reduce"])
def test_opcodes_that_call(made, mark, module, kind):
    name = {"os": "system", "posix": "system", "builtins": "eval"}.get(module, "load")
    command = text(f"touch {mark}")
    asked = f"{module}\n{name}\n".encode()
    index = {
        "global": b"c" + asked + b"(" + command + b"tR.",
        "stack": b"\x80\x04"
        + text(module)
        + text(name)
        + b"\x93"
        + command
        + b"\x85R.",
        "inst": b"(" + command + b"i" + asked + b".",
        "obj": b"(c" + asked + command + b"o.",
        "newobj": b"\x80\x02c" + asked + command + b"\x85\x81.",
        "reduce": b"\x80\x02c" + asked + b"q\x00" + command + b"\x85R}b.",
    }[kind]
    assert f"it asks for '{module}.{name}'" in refused(made(index))
    assert posix.system is os.system


@pytest.mark.parametrize(
    "index",
    [
        b"\x80\x04" + text("torch._utils") + text("_rebuild_tensor_v2.__globals__"),
        b"\x80\x04" + text("collections") + text("OrderedDict.fromkeys"),
        b"\x80\x04" + text("collections") + text("abc.sys.modules"),
        b"\x80\x04" + text("jaxgpt.interop.torch_file") + text("_OrderedDict"),
        b"\x80\x04" + text("two\nlines\x1b[2J") + text("x\ny"),
        b"\x80\x04" + text("long" * 10**5) + text("name"),
    ],
    ids=range(6),
)
def test_names_that_lead_elsewhere(made, index):
    message = refused(made(index + b"\x93."))
    assert "it asks for '" in message
    assert message.isprintable()


def test_attributes_set_on_what_is_admitted_do_not_stay(made, tmp_path):
    function = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
    state = b"N}" + text("__defaults__") + text("evil") + b"\x85s\x86"
    with pytest.raises(UserError):
        torch_file.read_torch_file(made(function + state + b"b0ctorch\nLoadStorage\n."))
    assert torch_file._rebuild_tensor.__defaults__ is None
    torch_file.read_torch_file(made(function + b"}" + text("x") + text("y") + b"sb0N."))
    assert not hasattr(torch_file._rebuild_tensor, "x")


def test_attributes_of_storages_and_dicts_cannot_be_set(made):
    storage = b"\x80\x02ctorch\nFloatStorage\n"
    assert "damaged" in refused(
        made(storage + b"}" + text("dtype") + text("O") + b"sb.")
    )
    ordered = b"\x80\x02ccollections\nOrderedDict\n)R"
    index = ordered + b"}" + text("items") + ordered[2:] + b"sb."
    found = torch_file.read_torch_file(made(index))
    assert found == {}
    assert not hasattr(found, "__dict__")
    assert list(found.items()) == []


# Tensors and storages that lie.


def tensor(
    offset=b"K\x00",
    size=b"K\x02\x85",
    stride=b"K\x01\x85",
    key="0",
    count=b"K\x04",
    kind=b"FloatStorage",
):
    reference = b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(key)
    reference += text("cpu") + count + b"tQ"
    rest = offset + size + stride + b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + reference + rest + b"tR."


DATA = ("data/0", np.arange(4, dtype=np.float32).tobytes())


def big(value):
    raw = value.to_bytes(17, "little", signed=True)
    return b"\x8a\x11" + raw


def test_the_handmade_tensor_is_one(made):
    np.testing.assert_array_equal(
        torch_file.read_torch_file(made(tensor(), DATA)), [0, 1]
    )
    found = torch_file.read_torch_file(made(tensor(offset=b"K\x02"), DATA))
    np.testing.assert_array_equal(found, [2, 3])


@pytest.mark.parametrize(
    "options",
    [
        {"offset": b"K\x03"},
        {"offset": b"K\x04"},
        {"offset": big(-1)},
        {"offset": big(10**30)},
        {"offset": b"G\x00\x00\x00\x00\x00\x00\x00\x00"},
        {"offset": text("0")},
        {"offset": b"N"},
        {"size": b"K\x05\x85"},
        {"size": big(-2) + b"\x85"},
        {"size": big(2**40) + b"\x85"},
        {"size": big(10**30) + b"\x85"},
        {"size": big(2**40) + b"\x85", "stride": b"K\x00\x85"},
        {"size": big(10**30) + b"\x85", "stride": b"K\x00\x85"},
        {"size": big(10**30) + b"K\x00\x86", "stride": b"K\x01K\x01\x86"},
        {"size": b"K\x02K\x02\x86"},
        {"size": b"K\x02"},
        {"size": b"N"},
        {"size": text("x" * 10**4) + b"\x85"},
        {"size": big(10**10) + b"\x85", "stride": text("x" * 100) + b"\x85"},
        {"size": b"(" + b"K\x01" * 100 + b"t", "stride": b"(" + b"K\x01" * 100 + b"t"},
        {"stride": big(-1) + b"\x85"},
        {"stride": b"K\x04\x85"},
        {"stride": big(2**62) + b"\x85"},
        {"stride": big(2**64) + b"\x85"},
        {"stride": b"N"},
        {"count": b"K\x05"},
        {"count": big(2**40)},
        {"count": big(10**30)},
        {"count": b"K\x01"},
        {"count": b"N"},
        {"count": text("4")},
        {"kind": b"DoubleStorage"},
        {"kind": b"UntypedStorage"},
        {"kind": b"load"},
        {"key": "1"},
        {"key": "../data.pkl"},
        {"key": "../../../../../../etc/passwd"},
        {"key": "/etc/passwd"},
        {"key": "two\nlines"},
        {"key": "k" * 10**5},
    ],
    ids=range(40),
)
def test_tensors_that_reach_beyond_their_storage(made, options):
    refused(made(tensor(**options), DATA))


def test_a_tensor_over_a_tensor_is_no_way_out_of_a_storage(made):
    inner = tensor(size=big(2**20) + b"\x85", stride=b"K\x00\x85")[:-1]
    rest = b"K\x00" + big(2**20) + b"\x85K\x01\x85\x89NtR."
    index = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + inner[2:] + rest
    assert "not over a storage" in refused(made(index, DATA))


@pytest.mark.parametrize(
    "reference",
    [
        b"Nq\x00Q.",
        b"(" + text("storage") + b"NNNNtQ.",
        b"(" + text("module") + b"ctorch\nFloatStorage\n" + text("0") + b"NK\x01tQ.",
        b"(" + text("storage") + b"ctorch\nFloatStorage\n]NK\x01tQ.",
        text("storage") + b"Q.",
        b"Pstorage\n.",
    ],
    ids=range(6),
)
def test_references_to_what_is_no_storage(made, reference):
    refused(made(b"\x80\x02" + reference, DATA))


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b".",
        b"N",
        b"0.",
        b"t.",
        b"(.",
        b"R.",
        b"b.",
        b"h\x05.",
        b"\xff.",
        b"\x80\xff.",
        b"Nr\x00\x00\x00\x40.",
        b"Np1000000000\n.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x96\x00\x00\x00\x00\x00\x00\x00\x10.",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x82\x01.",
        b"I1_\nx.",
        b"V\\ud800\n\x85" + b"\x85" * 3,
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"K\x01K\x02}\x8c\x01xb.",
        b"]]s.",
        b"}]Ns.",
        b"\x80\x04\x8c\x01aK\x01\x93.",
    ],
    ids=range(24),
)
def test_pickles_that_are_damaged(made, index):
    refused(made(index, DATA))


# Archives that lie.


def test_a_zip_bomb(made):
    index = b"\x80\x02" + b"N0" * (50 << 20) + b"N."
    path = made(index, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "compressed" in refused(path)


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/etc/out", "C:/out"])
def test_a_member_that_would_lie_outside(saved, name):
    path = saved({"a": torch.zeros(3)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    assert f"its member '{name}' is a path outside it" in refused(path)


def test_a_member_that_is_a_link(saved):
    path = saved({"a": torch.zeros(3)})
    link = zipfile.ZipInfo("saved/data/9")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, b"/etc/passwd")
    assert "is a link" in refused(path)


def test_a_zip_bomb_among_the_storages(made):
    entries = [("data/0", bytes(100 << 20))]
    path = made(tensor(), *entries, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(path)


@pytest.mark.parametrize("name", ["other/data.pkl", "archive/data.pkl"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_indices(made, name):
    path = made(b"N.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"K\x01.")
    assert "2 data.pkl" in refused(path)


@pytest.mark.parametrize("name", ["data.pkl", "a/b/data.pkl", "a/data.pkl.x"])
def test_no_index(tmp_path, name):
    path = tmp_path / "none.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"N.")
    assert "it has 0 data.pkl" in refused(path)


def test_big_endian(made):
    path = made(tensor(), DATA, ("byteorder", b"big"))
    assert "is big-endian: save it again" in refused(path)


def test_the_old_format(saved):
    path = saved({"a": BASE}, _use_new_zipfile_serialization=False)
    assert "save it again with a newer PyTorch" in refused(path)


@pytest.mark.parametrize(
    "content", [b"", b"text\n", b"PK\3\4", b"\x80\x02N.", b"\0" * 99]
)
def test_what_is_no_archive(tmp_path, content):
    path = tmp_path / "none.pt"
    path.write_bytes(content)
    refused(path)


def test_a_folder_and_a_missing_file(tmp_path):
    refused(tmp_path)
    refused(tmp_path / "none.pt")


def test_an_old_pickle_is_not_loaded(tmp_path, bomb):
    path = tmp_path / "pickle.pt"
    path.write_bytes(pickle.dumps(bomb))
    refused(path)


SMALL = {
    "model": collections.OrderedDict(a=BASE, b=BASE.T, c=torch.ones(3)),
    "model_args": {"n": 1, "x": 0.5},
    "names": [f"name {i}" for i in range(99)],
}


def test_a_file_cut_anywhere(saved):
    path = saved(SMALL)
    content = path.read_bytes()
    cuts = [*range(0, len(content), len(content) // 60), *range(-30, 0)]
    for cut in cuts:
        path.write_bytes(content[:cut])
        refused(path)


def test_bits_flipped_anywhere(saved, mark):
    path = saved(SMALL)
    content = path.read_bytes()
    there = torch.load(path, weights_only=True)
    draw = random.Random(1337)
    intact = 0
    for _ in range(400):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found = torch_file.read_torch_file(path)
        except UserError:
            refused(path)
        else:
            assert_same(found, there)
            intact += 1
    assert intact < 350


def test_bits_flipped_in_the_index_with_a_sum_that_fits(saved, made, mark):
    """No sum protects these: another value may be read, and nothing else happens."""
    path = saved(SMALL)
    with zipfile.ZipFile(path) as archive:
        index = archive.read("saved/data.pkl")
        entries = [(f"data/{i}", archive.read(f"saved/data/{i}")) for i in range(2)]
    draw = random.Random(1337)
    for _ in range(400):
        flipped = bytearray(index)
        for _ in range(draw.randint(1, 3)):
            flipped[draw.randrange(len(index))] ^= 1 << draw.randrange(8)
        path = made(bytes(flipped), *entries)
        try:
            torch_file.read_torch_file(path)
        except UserError as error:
            assert "\n" not in str(error)
