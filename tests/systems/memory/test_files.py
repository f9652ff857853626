"""jaxgpt.memory: documents in files are read, listed, looked up and forgotten."""

import json

import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import evaluate, memory, sample
from jaxgpt.commands.train import train
from jaxgpt.errors import UserError
from jaxgpt.run import open_run
from jaxgpt.systems.memory import file
from jaxgpt.systems.memory.documents import Memory
from jaxgpt.systems.memory.header import peek
from jaxgpt.systems.memory.options import writing
from tests.conftest import ROOT, last_json
from tests.systems.memory.conftest import PLAYS

pytestmark = pytest.mark.unoptimised

NOTES = {
    "a.txt": "the queen of night sings and no king dares speak. " * 3,
    "b.md": "no king sings of the night. " * 4,
    "more/c.jsonl": '{"text": "speak and sings", "name": "said"}\n\n'
    '{"text": "the king of kings"}\n',
}


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """A folder of documents, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, text in NOTES.items():
        path = tmp_path / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "notes/picture.png").write_bytes(b"\x89PNG\xff")
    return tmp_path / "notes"


@pytest.fixture
def call(played, tmp_path, capsys):
    """Runs an action on one file; returns its JSON."""

    def run(action, *arguments, workdir=played, name="my.memory"):
        words = [action, f"--memory={tmp_path / name}", *arguments, "--json=-"]
        memory.command([*words, f"--workdir={workdir}"] if workdir else words)
        return last_json(capsys)

    return run


def test_documents_are_read_listed_found_and_forgotten(call, notes, tmp_path, capsys):
    found = call("ingest", "notes")
    (tmp_path / "usual").touch()
    modes = [(tmp_path / n).stat().st_mode for n in ("usual", "my.memory")]
    assert modes[0] == modes[1]
    names = ["notes/a.txt", "notes/b.md", "said", "notes/more/c.jsonl:3"]
    assert [document["name"] for document in found["documents"]] == names
    assert {document["state"] for document in found["documents"]} == {"new"}
    listed = call("list", workdir=None)["documents"]
    for document, text in zip(listed, [*NOTES.values()][:2], strict=False):
        assert document["tokens"] == document["entries"] == len(text)
        assert document["kept"] == 1.0
    matches = call("query", "the queen of", "--k=3")["matches"]
    assert [match["document"] for match in matches] == ["notes/a.txt"] * 3
    for match in matches:
        assert match["text"] in NOTES["a.txt"]
        assert match["distance"] == pytest.approx(0, abs=1e-5)
    memory.command(["list", f"--memory={tmp_path}/my.memory"])
    assert "100%  notes/b.md" in capsys.readouterr().out
    gone = call("forget", "notes/a.txt", "said", workdir=None)
    assert gone["forgotten"] == {"notes/a.txt": len(NOTES["a.txt"]), "said": 15}
    listed = call("list", workdir=None)["documents"]
    assert [document["name"] for document in listed] == [names[1], names[3]]
    matches = call("query", "the queen of", "--k=100")["matches"]
    assert {match["document"] for match in matches} == {names[1], names[3]}


def test_what_is_known_is_skipped_and_what_changed_is_replaced(call, notes, tmp_path):
    call("ingest", "notes")
    before = (tmp_path / "my.memory").read_bytes()
    again = call("ingest", "notes")
    assert {document["state"] for document in again["documents"]} == {"unchanged"}
    assert (tmp_path / "my.memory").read_bytes() == before
    (notes / "b.md").write_text("the night sings")
    changed = {d["name"]: d for d in call("ingest", "notes")["documents"]}
    assert changed["notes/b.md"]["state"] == "changed"
    assert changed["notes/b.md"]["tokens"] == 15
    call("ingest", "notes", name="other.memory")
    one, other = (file.read(tmp_path / f"{n}.memory")[1] for n in ("my", "other"))
    assert len(one["entries/key"]) == len(other["entries/key"])


def test_the_file_is_that_of_sample_and_grows(call, notes, tmp_path, played, capsys):
    path = tmp_path / "my.memory"
    call("ingest", "notes/b.md")
    assert peek(path).memory_size == 128
    sample.command(
        [
            *(f"--workdir={played}", f"--memory={path}", "--prompt=the king"),
            *("--max_new_tokens=8", "--document=mine", "--explain", "--json=-"),
        ]
    )
    last_json(capsys)
    listed = call("list", workdir=None)["documents"]
    assert listed[1] == {"name": "mine", "entries": 16, "tokens": 16, "kept": 1.0}
    arrays = file.read(path)[1]
    found = call("ingest", "notes/a.txt", "--config.memory.index_type=graph")
    assert found["memory_size"] == 512 and len(found["documents"]) == 3
    header, grown = file.read(path)
    assert header.index["index_type"] == "graph" and "index/0.0.index" in grown
    for name in ("key", "token", "position", "document"):
        kept = grown[f"entries/{name}"][: len(arrays[f"entries/{name}"])]
        np.testing.assert_array_equal(kept, arrays[f"entries/{name}"])
    # It holds what is stored: a width of 16, less than the room for 512.
    assert len(grown["entries/key"]) == 112 + 16 + len(NOTES["a.txt"])


def test_a_small_memory_says_what_is_left(call, notes, tmp_path, capsys):
    found = call("ingest", "notes", "--memory_size=64")
    assert sum(document["entries"] for document in found["documents"]) == 64
    assert found["documents"][0]["kept"] == 0
    memory_of = {document["name"]: document for document in found["documents"]}
    # Forgetting the last ones with the run at hand, the first are read again.
    call("forget", "notes/b.md", "said", "notes/more/c.jsonl:3")
    (left,) = call("list", workdir=None)["documents"]
    assert left["entries"] == 64 and memory_of["notes/a.txt"]["entries"] == 0
    # So they are when there is room.
    found = call("ingest", "notes/a.txt", "--memory_size=512")
    assert [d["state"] for d in found["documents"]] == ["unchanged"]
    assert (
        found["documents"][0]["kept"] == 1 and not peek(tmp_path / "my.memory").evicted
    )
    assert found["memory_size"] == 512


def test_entries_that_depend_on_others_are_read_again(call, notes, tmp_path):
    hidden = "--config.memory.store_layer=1"
    call("ingest", "notes", hidden)
    with pytest.raises(UserError, match="name the run with --workdir"):
        call("forget", "notes/a.txt", workdir=None)
    call("forget", "notes/a.txt", hidden)
    (notes / "a.txt").unlink()
    call("ingest", "notes", hidden, name="other.memory")
    one, other = (file.read(tmp_path / f"{n}.memory")[1] for n in ("my", "other"))
    for name in other:
        np.testing.assert_array_equal(one[name], other[name])


def test_half_the_bytes(call, notes, tmp_path):
    call("ingest", "notes")
    call("ingest", "notes", "--dtype=float16", name="half.memory")
    whole, half = (file.read(tmp_path / f"{n}.memory")[1] for n in ("my", "half"))
    assert whole["entries/key"].nbytes == 2 * half["entries/key"].nbytes
    np.testing.assert_allclose(
        whole["entries/key"], half["entries/key"], rtol=1e-3, atol=1e-3
    )
    assert call("query", "the queen of", name="half.memory")["matches"]


@pytest.mark.trains
def test_a_causal_run_gets_a_memory_and_anothers_is_refused(call, notes, tmp_path):
    runs = []
    for seed in "01":
        runs.append(tmp_path / f"run{seed}")
        config = f"{ROOT}/configs/teeny_char.py:tiny"
        changes = {"steps": "2", "seed": seed}
        assert train(configs.load(config, changes), runs[-1]) == 0
    found = call("ingest", "notes/a.txt", workdir=runs[0])["documents"]
    # Nothing has followed the last token.
    tokens = len(NOTES["a.txt"])
    assert found[0]["entries"] == tokens - 1 and found[0]["kept"] == 1.0
    with pytest.raises(UserError, match=r"other weights \(run 'run0', step 2\) than"):
        call("query", "the queen", workdir=runs[1])
    assert call("query", "the queen", "--allow_other_model", workdir=runs[1])
    with pytest.raises(UserError, match="other weights"):
        call("ingest", "notes/b.md", workdir=runs[1])
    with pytest.raises(UserError, match="other weights"):
        sample.command([f"--workdir={runs[1]}", f"--memory={tmp_path}/my.memory"])
    call("ingest", "--split=val", workdir=runs[0], name="split.memory")
    chunks = call("list", workdir=None, name="split.memory")["documents"]
    assert [chunk["name"] for chunk in chunks[:2]] == ["val/0", "val/1"]
    assert all(chunk["entries"] == chunk["tokens"] - 1 for chunk in chunks)


def test_unknown_characters_are_replaced_and_counted(call, notes, tmp_path, capsys):
    (notes / "b.md").write_text("the é king, ☃ é")
    found = call("ingest", "notes/b.md")
    assert found["replaced_characters"] == 4
    assert found["documents"][0]["tokens"] == 15


def test_one_process_writes_at_a_time(call, notes, tmp_path):
    with (
        writing(tmp_path / "my.memory"),
        pytest.raises(UserError, match="is being written by process"),
    ):
        call("ingest", "notes")
    call("ingest", "notes")
    assert not [*tmp_path.glob(".my*")]


def test_a_link_to_a_memory_is_that_memory(call, notes, tmp_path):
    call("ingest", "notes/a.txt", "notes/b.md")
    (tmp_path / "link").symlink_to("my.memory")
    with (
        writing(tmp_path / "link"),
        pytest.raises(UserError, match="is being written by"),
    ):
        call("forget", "notes/a.txt", workdir=None)
    call("forget", "notes/a.txt", workdir=None, name="link")
    assert (tmp_path / "link").is_symlink()
    assert peek(tmp_path / "my.memory").names == ["notes/b.md"]


def test_what_another_has_written_meanwhile_is_not_lost(call, notes, tmp_path, played):
    call("ingest", "notes/a.txt")
    path = tmp_path / "my.memory"
    run = open_run(str(played), overrides={"memory.memory_size": "256"})
    stale = Memory.load(path, run.system.host)
    call("ingest", "notes/b.md")
    for same in (path, tmp_path / "notes/../my.memory"):
        with pytest.raises(UserError, match="has changed since it was read"):
            stale.save(same)
    stale.save(tmp_path / "another.memory")


@pytest.mark.parametrize(
    "words, expected",
    [
        (["ingest", "notes/none"], "'notes/none' does not exist"),
        (["ingest", "notes/picture.png"], "must end in one of .txt, .md, .jsonl"),
        (["ingest", "notes/a.txt", "notes"], "'notes/a.txt' is named twice"),
        (["ingest", "empty"], "'empty' holds no .txt or .md or .jsonl"),
        (["ingest", "binary.txt"], "'binary.txt' is not UTF-8"),
        (["ingest", "bad.jsonl"], "line 2 of 'bad.jsonl' must be a JSON object with"),
        (["ingest", "twice.jsonl"], "two documents are named 'x'"),
        (["ingest", "lines.jsonl"], 'a "name" of printable characters'),
        (["ingest", "deep.jsonl"], "line 1 of 'deep.jsonl' must be a JSON object"),
        (["ingest", "--split=test"], "' is empty: name another"),
        (["ingest"], "ingest needs files or folders, or --split"),
        (["ingest", "notes", "--memory_size=0"], "--memory_size must be >= 1, got 0"),
        (["query", "the", "king"], "the text of query must be one, in quotes, got 2"),
        (["list"], "does not exist: ingest documents first"),
        (["forget"], "forget needs the names of documents"),
        (["list", "x"], "leave out the names"),
        (["list", "--dtype=float16"], "--dtype is for ingest"),
    ],
)
def test_wrong_input_is_one_line(call, notes, tmp_path, words, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.txt").write_bytes(b"\x00\xff\xfe\x80")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"texts": "y"}\n')
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "lines.jsonl").write_text('{"text": "x", "name": "a\\nb"}\n')
    (tmp_path / "twice.jsonl").write_text('{"text": "x", "name": "x"}\n' * 2)
    with pytest.raises(UserError) as error:
        call(*words)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "my.memory").exists()


def test_a_full_disk_and_damage_lose_nothing(call, notes, tmp_path, monkeypatch):
    call("ingest", "notes/a.txt")
    path = tmp_path / "my.memory"
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file, "save_file", full)
        with pytest.raises(UserError, match="cannot be written: No space left"):
            call("ingest", "notes/b.md")
    assert path.read_bytes() == before
    assert json.loads(json.dumps(peek(path).names)) == ["notes/a.txt"]
    path.write_bytes(before[:-3] + b"abc")
    with pytest.raises(UserError, match="is damaged"):
        call("forget", "notes/a.txt", workdir=None)
    path.write_bytes(before.replace(b"notes/a.txt", b"notes/b.txt"))
    with pytest.raises(UserError, match="is not a memory, or damaged"):
        call("list", workdir=None)
    nested = (100_000).to_bytes(8, "little") + b"[" * 100_000
    for bad in (b"xx", before[:-1], nested):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="is not a memory, or damaged"):
            call("list", workdir=None)


def test_evaluate_compares_a_document_with_the_memory_and_without(
    call, notes, played, tmp_path, capsys
):
    call("ingest", "notes/a.txt")
    command = [f"--workdir={played}", f"--memory={tmp_path}/my.memory", "--json=-"]
    evaluate.command([*command, "--document=notes/b.md"])
    figures = last_json(capsys)
    assert figures["tokens"] == len(NOTES["b.md"]) - 1
    assert figures["loss"] != figures["loss_without"]
    before = (tmp_path / "my.memory").read_bytes()
    evaluate.command([*command, "--document=notes/a.txt"])
    assert "the memory holds 'notes/a.txt'" in capsys.readouterr().err
    assert (tmp_path / "my.memory").read_bytes() == before
    with pytest.raises(UserError, match="--tune is for a memory of mode output"):
        evaluate.command([*command, "--tune"])


@pytest.mark.trains
def test_the_training_set_as_memory_is_tuned_and_read_as_the_model_does(
    call, documents, tmp_path, capsys
):
    run = tmp_path / "run"
    changes = {"data.path": str(documents), "memory.mode": "output", "steps": "20"}
    assert train(configs.load(PLAYS, changes), run) == 0
    call("ingest", "--split=train", workdir=run)
    command = [f"--workdir={run}", f"--memory={tmp_path}/my.memory", "--json=-"]
    evaluate.command([*command, "--tune"])
    figures = last_json(capsys)
    assert figures["loss"] < figures["loss_without"]
    assert figures["loss"] == pytest.approx(figures["tuned"].pop("loss"), abs=1e-9)
    flags = [f"--config.memory.{k}={v}" for k, v in figures["tuned"].items()]
    evaluate.command([*command, *flags])
    again = last_json(capsys)
    assert again["loss"] == pytest.approx(figures["loss"], abs=1e-5)
    assert again["loss_without"] == pytest.approx(figures["loss_without"], abs=1e-6)
    with pytest.raises(UserError, match="no document of the test split"):
        evaluate.command([*command, "--tune", "--split=test"])
    assert "tuned" not in capsys.readouterr().err
    with pytest.raises(UserError, match="--tune chooses memory"):
        evaluate.command([*command, "--tune", "--config.memory.weight=0.5"])
