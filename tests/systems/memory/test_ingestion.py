"""What is ingested is what `sample` reads, token by token and entry by entry."""

import jax
import numpy as np
import pytest

from jaxgpt.systems.memory import documents, ingestion
from jaxgpt.systems.memory.entries import SOURCES
from tests.systems.memory.test_model import T, V, make, random_like

pytestmark = pytest.mark.unoptimised


def text(length):
    return np.random.default_rng(length).integers(0, V, length).astype(np.int32)


def system_of(mode, **changes):
    system, params = make(mode, **{"memory.memory_size": 256} | changes)
    if mode != "output":
        params["memory"] = random_like(params["memory"])
    return system, params


def ingest(memory, params, text_T, start=0):
    ingestion.ingest(memory.runtime, memory.store, params, text_T, 0, start)


def read_by_sample(system, params, *pieces):
    memory = documents.Memory.empty(system.host)
    for piece in pieces:
        known, key = np.ones((1, len(piece)), bool), jax.random.key(0)
        system.sample(params, piece[None], known, key, memory=memory, document="a")
    return memory


def assert_same(one, other):
    for name in (*SOURCES, "id", "stamp", "next_id", "clock"):
        np.testing.assert_array_equal(
            one.store.entries[name], other.store.entries[name]
        )
    for name in ("key", "values"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            one.store.entries[name],
            other.store.entries[name],
        )
    np.testing.assert_array_equal(one.store.stamps, other.store.stamps)


MODES = [
    ("associative", {}),
    ("associative", {"memory.store_layer": -1}),
    ("associative", {"memory.delete": True}),
    ("associative", {"memory.keep": "decided"}),
    ("attention", {}),
    ("output", {}),
]


@pytest.mark.parametrize("mode, changes", MODES)
def test_ingested_is_what_sample_reads(mode, changes):
    system, params = system_of(mode, **changes)
    text_T = text(9 * T + 3)  # Eight segments at once, then one at a time.
    memory = documents.Memory.empty(system.host)
    ingest(memory, params, text_T)
    assert_same(memory, read_by_sample(system, params, text_T))
    # What is ingested is found.
    held = np.asarray(memory.store.entries["key"])[0]
    query = held[None, :1]
    version = memory.store.version
    assert memory.store.search(version, np.zeros(1, np.int32), query, 1).min() >= 0


@pytest.mark.parametrize("mode", ["associative", "attention", "output"])
@pytest.mark.parametrize("length", [1, 2, T, T + 1, 2 * T + 1])
def test_every_token_has_an_entry_but_where_its_next_is_stored(mode, length):
    system, params = system_of(mode)
    text_T = text(length)
    memory = documents.Memory.empty(system.host)
    ingest(memory, params, text_T)
    sampled = read_by_sample(system, params, text_T)
    after = mode == "output"
    for each in (memory, sampled):
        used = each.store.stamps[0] >= 0
        held = {name: np.asarray(each.store.entries[name])[0, used] for name in SOURCES}
        assert held["position"].tolist() == list(range(length - after))
        np.testing.assert_array_equal(held["token"], text_T[after:])
        assert each.store.size() == length - after


@pytest.mark.parametrize("mode", ["associative", "attention", "output"])
def test_a_text_goes_on_from_its_documents_end(mode):
    system, params = system_of(mode)
    text_T, at = text(3 * T), T + 3
    memory, whole = (
        documents.Memory.empty(system.host),
        documents.Memory.empty(system.host),
    )
    ingest(memory, params, text_T[:at])
    ingest(memory, params, text_T, at)
    assert_same(memory, read_by_sample(system, params, text_T[:at], text_T[at:]))
    if mode == "associative":  # The same wherever it was cut.
        ingest(whole, params, text_T)
        assert_same(memory, whole)


@pytest.mark.parametrize("eviction", ["oldest", "refuse"])
def test_a_long_text_leaves_what_fits(eviction):
    changes = {"memory.memory_size": 40, "memory.eviction": eviction}
    system, params = system_of("output", **changes)
    memory = documents.Memory.empty(system.host)
    ingest(memory, params, text(9 * T))
    position_E = np.asarray(memory.store.entries["position"])[0]
    first = 0 if eviction == "refuse" else 9 * T - 1 - 40
    assert sorted(position_E) == list(range(first, first + 40))


@pytest.mark.parametrize("mode", ["associative", "attention", "output"])
def test_only_what_is_shown_is_stored(mode):
    system, params = system_of(mode)
    given, N, after = 4, 3 * T, mode == "output"
    text_1T, known_1T = text(N)[None], np.arange(N)[None] < given
    for length in (given + 1, T, T + 1, T + 2, 2 * T + 1, N):
        shown = lambda tokens_T, length=length: min(len(tokens_T), length)
        for callback in (None, lambda out: out.decoded_BT.sum() < length):  # noqa: B023
            memory = documents.Memory.empty(system.host)
            key = jax.random.key(0)
            output = system.sample(
                *(params, text_1T, known_1T, key),
                callback=callback,
                memory=memory,
                shown=shown,
            )
            text_T = output.tokens_BT[0, :length]
            np.testing.assert_array_equal(memory.texts[0], text_T)
            assert (output.weight_BTM[0, T + 1 : length] > 0).any() == (length > T + 1)
            used = memory.store.stamps[0] >= 0
            held = np.asarray(memory.store.entries["token"])[0, used]
            np.testing.assert_array_equal(held, text_T[after:])
