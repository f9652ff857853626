"""Every file of a checkpoint is the one that was saved, or is named."""

import json
import shutil
import subprocess
import sys

import jax
import pytest

from jaxgpt import config as configs
from jaxgpt import verify
from jaxgpt.training import checkpoint, manifest
from jaxgpt.training.checkpoint import Checkpoints, DamagedError, json_digest
from tests import faults

ABSTRACT = jax.eval_shape(lambda: faults.tiny_state(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run with two checkpoints."""
    workdir = tmp_path_factory.mktemp("manifest") / "run"
    checkpoints = Checkpoints(workdir, keep=2)
    for step in (1, 2):
        checkpoints.save(step, faults.tiny_state(step), {"val_loss": 3.0 - step})
    checkpoints.close()
    configs.save(configs.load(faults.TINY, {}), workdir / "config.json")
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def newer(run):
    return run / "checkpoints" / "2"


def restore(workdir):
    return Checkpoints(workdir, read_only=True).restore(2, ABSTRACT)


def verified(workdir, capsys):
    """Returns (the exit code, the damage that is named)."""
    status = verify.command([f"--workdir={workdir}", "--json=-"])
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoints"] == [1, 2]
    return status, found["damaged"]


def forget_manifest(folder):
    """Makes a checkpoint one of before there were manifests."""
    (folder / manifest.NAME).unlink()
    file = folder / manifest.DIGESTS
    summary = json.loads(file.read_text())
    del summary["manifest"], summary["digest"]
    summary["digest"] = json_digest(summary)
    file.write_text(json.dumps(summary))


def test_it_has_every_file_of_a_moved_checkpoint(run, capsys):
    for step in "12":
        folder = run / "checkpoints" / step
        files = json.loads((folder / manifest.NAME).read_text())["files"]
        there = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
        assert {str(p) for p in there} == {*files, manifest.NAME}
    assert verified(run, capsys) == (0, {})
    restore(run)


def test_a_step_is_complete_when_it_appears(tmp_path, monkeypatch):
    """Dying while the manifest is written leaves no checkpoint, and no rest of one."""

    def fail(folder):
        assert manifest.steps(folder.parent) == []
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "write", fail)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(1, faults.tiny_state(1), None)
        checkpoints.report_errors(wait=True)
        assert checkpoints.steps() == []
    checkpoints.save(1, faults.tiny_state(1), None)  # The same step, tried again.
    checkpoints.close()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert manifest.differences(tmp_path / "checkpoints" / "1") == []


def test_a_rest_of_a_save_is_removed_by_the_next_run(tmp_path):
    folder = tmp_path / "checkpoints"
    rest = folder / "1.orbax-checkpoint-tmp-complete"
    rest.mkdir(parents=True)
    assert Checkpoints(tmp_path, read_only=True).steps() == []
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, faults.tiny_state(2), None)
    checkpoints.close()
    assert not rest.exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c: bytes([c[0] ^ 1]) + c[1:], "is changed"),
        (lambda c: c[:-2], "is truncated: "),
        (lambda c: b"", "is truncated: 0 of "),
        (lambda c: c + b"\n", " bytes, not "),
        (None, "is missing"),
    ],
    ids=["flipped", "truncated", "emptied", "longer", "removed"],
)
@pytest.mark.parametrize(
    "name", ["commit_success.txt", "params/_sharding", "opt_state/_METADATA"]
)
def test_a_file_that_no_array_comes_from(run, newer, capsys, name, change, what):
    file = newer / name
    if change:
        file.write_bytes(change(file.read_bytes()))
    else:
        file.unlink()
    status, damaged = verified(run, capsys)
    assert status == 1
    assert damaged["2"].startswith(f"{name} ") and what in damaged["2"]
    assert ";" not in damaged["2"]
    with pytest.raises(DamagedError, match=f"^{name} .*{what}"):
        restore(run)
    checkpoints = Checkpoints(run, keep=2)
    assert checkpoints.restore_newest(ABSTRACT)[0] == 1
    assert (run / "checkpoints" / "2.damaged").is_dir()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("{", "{ ", 1),
        lambda text: text.replace('"digest"', '"x": 1, "digest"'),
        lambda text: text.upper(),
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: "",
    ],
    ids=["blank", "key", "upper", "half", "list", "deep", "empty"],
)
def test_the_manifest_is_checked_itself(run, newer, capsys, change):
    file = newer / manifest.NAME
    file.write_text(change(file.read_text()))
    assert verified(run, capsys) == (1, {"2": "manifest.json is changed"})
    with pytest.raises(DamagedError, match=r"manifest\.json is changed"):
        restore(run)


def test_a_manifest_that_is_missing_makes_no_old_checkpoint(run, newer, capsys):
    (newer / manifest.NAME).unlink()
    assert verified(run, capsys) == (1, {"2": "manifest.json is missing"})
    with pytest.raises(DamagedError, match=r"manifest\.json is missing"):
        restore(run)


def test_all_damage_is_named(run, newer, capsys):
    (newer / "params" / "_sharding").unlink()
    (newer / "digests" / "metadata").write_text("{}")
    _, damaged = verified(run, capsys)
    assert damaged["2"].startswith("digests/metadata is truncated: 2 of ")
    assert damaged["2"].endswith("; params/_sharding is missing")
    with pytest.raises(DamagedError, match=r"^digests/metadata .*, and 1 more"):
        restore(run)


def test_extra_files_are_named_and_do_no_harm(run, newer, capsys):
    """Systems and browsers leave files in folders."""
    (newer / ".DS_Store").write_text("x")
    (newer / "params" / "._d").write_text("x")
    restore(run)
    assert verified(run, capsys) == (
        1,
        {"2": ".DS_Store is an extra file; params/._d is an extra file"},
    )


def test_other_things_beside_the_checkpoints(run, capsys):
    folder = run / "checkpoints"
    (folder / "3").write_text("x")
    for name in ("2.damaged", "2 (copy)", "007", "3.orbax-checkpoint-tmp"):
        shutil.copytree(folder / "2", folder / name)
    assert verified(run, capsys) == (0, {})


def test_an_old_checkpoint_is_read_and_said_to_be_one(run, newer, capsys, monkeypatch):
    forget_manifest(newer)
    found = {}
    monkeypatch.setattr(
        "jaxgpt.commands.verify.damaged_arrays", lambda *arguments: found
    )
    assert verify.command([f"--workdir={run}"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "checkpoint 1: intact"
    assert second == (
        "checkpoint 2: intact as to its arrays (it has no manifest of its files)"
    )
    found["2"] = "array params/kernel differs from its digest"
    assert verified(run, capsys) == (1, found)
    assert checkpoint.digests(restore(run)) == faults.saved_digests(run, 2)


@pytest.mark.process
def test_verify_imports_neither_jax_nor_numpy(run):
    code = (
        "import sys; from jaxgpt import verify\n"
        f"status = verify.command(['--workdir={run}'])\n"
        "print(sorted({'jax', 'numpy', 'orbax'} & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
