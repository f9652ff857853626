"""jaxgpt.memory gives what the commands give."""

import doctest
import os

import jax
import numpy as np
import pytest

from jaxgpt import memory as memory_module
from jaxgpt import sample
from jaxgpt.memory import Memory
from jaxgpt.run import open_run
from jaxgpt.systems.memory import documents
from jaxgpt.systems.memory.entries import SOURCES
from tests.conftest import ROOT, last_json, refusal
from tests.systems.memory.test_model import T, make

pytestmark = pytest.mark.unoptimised

TEXT = "the queen of night sings and no king dares speak"


@pytest.fixture(scope="module")
def run(played):
    """With room for all that these tests read."""
    return open_run(str(played), overrides={"memory.memory_size": "256"})


def test_ingested_is_what_sample_reads(run, played, tmp_path, capsys):
    file = tmp_path / "memory"
    common = [f"--workdir={played}", f"--memory={file}", "--json=-"]
    common += ["--config.memory.memory_size=256"]
    for name in ("first", "second"):
        text = f"{name[0]} {TEXT}"
        sample.command(
            [*common, f"--prompt={text}", f"--document={name}", "--max_new_tokens=0"]
        )
    written, ingested = Memory(run, file), Memory(run)
    ingested.ingest({"first": f"f {TEXT}", "second": f"s {TEXT}"})
    assert ingested.documents == written.documents == {"first": 50, "second": 50}
    assert ingested.search(TEXT, k=9) == written.search(TEXT, k=9)
    # What one has forgotten, the other has too.
    assert ingested.forget("first") == 50 and len(ingested) == 50
    ingested.save(file)
    capsys.readouterr()
    sample.command([*common, "--forget=second"])
    assert last_json(capsys) == {"forgotten": 50, "left": 0}
    again = Memory(run, file)
    assert again.documents == {} and again.search(TEXT) == []


def test_generated_is_what_sample_prints(run, played, tmp_path, capsys):
    file = tmp_path / "memory"
    memory = Memory(run)
    memory.ingest({"first": TEXT})
    memory.save(file)
    common = [f"--workdir={played}", f"--memory={file}", "--json=-", "--explain"]
    common += ["--config.memory.memory_size=256", "--seed=3", "--top_k=5"]
    sample.command(
        [*common, "--prompt=the queen", "--document=new", "--max_new_tokens=9"]
    )
    printed = last_json(capsys)["samples"][0]
    found = memory.generate(
        "the queen", document="new", max_new_tokens=9, seed=3, top_k=5
    )
    assert found.text == printed["text"]
    assert len(found.memories) == 9 and {m.document for m in found.memories[0]}
    for ours, theirs in zip(found.memories, printed["memories"], strict=True):
        assert [vars(m) for m in ours] == [
            {"score": m.pop("weight"), **m} for m in theirs["memories"]
        ]
    assert memory.documents == Memory(run, file).documents
    assert memory.documents == {"first": 48, "new": len(found.text)}


def test_a_search_finds_what_followed_the_same_words(run):
    memory = Memory(run)
    memory.ingest({"night": TEXT, "other": "and and and and and and"})
    (found,) = memory.search("the king of night", k=1)
    at = TEXT.index("night") + len("night")
    assert (found.document, found.position) == ("night", at)
    assert found.text == TEXT[at - 8 : at + 3]
    assert found.score == pytest.approx(0, abs=1e-5)
    scores = [entry.score for entry in memory.search("of night", k=1000)]
    assert len(scores) == len(memory) == sum(memory.documents.values())
    assert scores == sorted(scores, reverse=True)


def test_a_document_goes_on_and_token_ids_are_texts_too(run):
    pieces, whole = Memory(run), Memory(run)
    pieces.ingest({"a": TEXT[:20]})
    pieces.ingest({"a": run.tokenizer.encode(TEXT[20:])})
    whole.ingest({"a": TEXT})
    assert pieces.documents == whole.documents == {"a": len(TEXT)}
    end = pieces.search("dares", k=1)[0]
    assert end.position == TEXT.index("dares") + len("dares")
    assert end.text == whole.search("dares", k=1)[0].text


def test_those_after_a_forgotten_document_keep_their_name_and_text(run):
    memory = Memory(run)
    memory.ingest({"first": TEXT[:9], "second": TEXT, "third": TEXT[::-1]})
    for _ in range(2):
        memory.generate("the", max_new_tokens=2)
    assert list(memory.documents) == ["first", "second", "third", "text 4", "text 5"]
    queries = ("no king dares", "dares"[::-1])
    before = [memory.search(query, k=1) for query in queries]
    assert [found.document for (found,) in before] == ["second", "third"]
    memory.forget("first")
    memory.generate("the", max_new_tokens=2)  # Not the "text 5" there is.
    sizes = [len(TEXT), len(TEXT), 5, 5, 5]
    names = ["second", "third", "text 4", "text 5", "text 6"]
    assert memory.documents == dict(zip(names, sizes, strict=True))
    assert [memory.search(query, k=1) for query in queries] == before


@pytest.mark.parametrize("length", [T - 2, T, T + 1, 2 * T + 3])
def test_output_stores_only_tokens_that_followed(length):
    system, params = make("output")
    memory = documents.Memory.empty(system.host)
    text_T = np.random.default_rng(0).integers(1, 11, length).astype(np.int32)
    known = np.ones((1, length), bool)
    system.sample(params, text_T[None], known, jax.random.key(0), memory=memory)
    entries = {name: np.asarray(memory.store.entries[name])[0] for name in SOURCES}
    used = memory.store.stamps[0] >= 0
    position_N = entries["position"][used]
    assert sorted(position_N) == list(range(length - 1))
    np.testing.assert_array_equal(entries["token"][used], text_T[position_N + 1])


@pytest.mark.parametrize("mode", ["associative", "attention", "output"])
@pytest.mark.parametrize("length", [5, T, 2 * T + 3])
def test_a_search_asks_as_the_model_does(mode, length):
    system, params = make(mode, **{"memory.memory_size": 64})
    memory, rng = documents.Memory.empty(system.host), np.random.default_rng(0)
    text, query = (rng.integers(0, 11, n).astype(np.int32) for n in (30, length))
    known = np.ones((1, 30), bool)
    system.sample(params, text[None], known, jax.random.key(0), memory=memory)
    found = memory.nearest(params, query, 64)
    assert len(found) == memory.store.size()
    # The model's own forward pass over the query, from the segment's first token.
    W = system.host.format.context
    last, before = query[-T:], query[:-T][-W:]
    recent = np.full((1, W), -1)
    recent[0, W - len(before) :] = before
    state = {"entries": memory.store.entries, "recent": recent}
    lookup = system.host.lookup(state, "on")
    read = system.model(params).read(last[None], recent, lookup)
    slots = np.asarray(read.retrieval.slot_BTM)[0, -1]
    sources = [np.asarray(memory.store.entries[n])[0] for n in ("document", "position")]
    nearest = {(int(sources[0][slot]), int(sources[1][slot])) for slot in slots}
    if mode == "attention":  # The model's is that of the first head alone.
        assert {(e.document, e.position) for e in found} >= nearest
    else:
        assert {(e.document, e.position) for e in found[:3]} == nearest


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda m: m.ingest({"a": "ok", "b": ""}), "a text must be of one token or"),
        (lambda m: m.ingest({"a": "QUEEN"}), "'Q' (at 0) is not in the vocabulary"),
        (lambda m: m.ingest({"": "queen"}), "the name of a document must be text"),
        (lambda m: m.ingest({"a": [0, 999]}), "a text must be in [0, "),
        (lambda m: m.ingest({"a": [0.5]}), "a text must be token ids"),
        (lambda m: m.ingest({"a": [[0], [1]]}), "one token or more, got [2, 1]"),
        (lambda m: m.search("queen", k=0), "k must be an integer >= 1, got 0"),
        (lambda m: m.search(""), "a text must be of one token or more"),
        (lambda m: m.forget("a"), "the memory has no document 'a': it has none"),
        (lambda m: m.save("none/file"), "No such file or directory"),
        (lambda m: m.generate("queen", document=3), "document must be a str, got 3"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(run, call, expected):
    memory = Memory(run)
    assert expected in refusal(call, memory)
    assert len(memory) == 0 and memory.documents == {}


def test_a_file_that_is_no_memory_is_kept(run, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    assert "is not a memory, or damaged" in refusal(Memory(run).save, file)
    assert file.read_text() == "mine"


def test_a_run_without_a_memory_and_a_missing_folder_are_one_line(
    run, trained, tmp_path
):
    assert "is a sigma run without a memory" in refusal(Memory, trained)
    larger = {"memory.memory_size": "256"}
    said = refusal(open_run, str(trained), overrides=larger)
    assert "only a causal run can be read with one it was not trained with" in said
    assert "does not exist" in refusal(Memory, run, tmp_path / "none" / "file")
    assert "run must be its folder or a loaded run, got None" in refusal(Memory, None)


def test_the_examples_are_true(played, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("runs")
    os.symlink(played, "runs/memory_gpt2-laptop")
    page = doctest.testfile(str(ROOT / "docs/memory.md"), module_relative=False)
    for found in (doctest.testmod(memory_module), page):
        assert found.attempted > 5
        assert not found.failed
