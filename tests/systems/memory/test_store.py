"""The store against a dictionary, for every index type; what it refuses."""

import jax
import numpy as np
import pytest

from jaxgpt.errors import UserError
from jaxgpt.systems.memory import index as indices
from jaxgpt.systems.memory.callback import searcher
from jaxgpt.systems.memory.store import Layout, Options, Store

pytestmark = pytest.mark.unoptimised

WIDTH = 8
OPTIONS = {
    "flat": Options(),
    "ivf": Options(index_type="ivf", num_clusters=2, num_probes=2),
    "compressed": Options(
        index_type="compressed", num_clusters=2, num_probes=2, code_bytes=4
    ),
    "graph": Options(index_type="graph", links=8, ef_search=256),
}


def make(kind="flat", rows=2, places=128, eviction="oldest", **layout):
    values = (("value", (3,)),)
    shape = Layout(rows, places, (1, WIDTH), values, eviction)
    return Store(shape, OPTIONS[kind])


def value_of(key):
    return np.stack([key[:, 0], key[:, 1] * 2, key.sum(1)], 1)


class Oracle:
    """What a memory row must be: a dictionary, oldest first."""

    def __init__(self, capacity):
        self.capacity, self.entries = capacity, {}

    def add(self, ids, keys, tokens):
        for id, key, token in zip(ids, keys, tokens, strict=True):
            self.entries[id] = [key, token, 1.0]
            if len(self.entries) > self.capacity:
                del self.entries[min(self.entries)]

    def nearest(self, query, k):
        ids = np.array(list(self.entries))
        keys = np.stack([self.entries[i][0] for i in ids])
        distances = ((keys - query) ** 2).sum(1)
        return ids[np.argsort(distances)[:k]], np.sort(distances)[:k]


def check(store, row, oracle, rng, exact):
    assert store.size(row) == len(oracle.entries) <= store.capacity
    np.testing.assert_array_equal(store.ids(row), sorted(oracle.entries))
    if not oracle.entries:
        return
    some = rng.choice(list(oracle.entries), min(4, len(oracle.entries)), replace=False)
    held = store.get(row, some)
    for at, id in enumerate(some):
        key, token, strength = oracle.entries[id]
        np.testing.assert_array_equal(held["key"][at, 0], key)
        np.testing.assert_array_equal(held["value"][at], value_of(key[None])[0])
        assert held["token"][at] == token
        assert held["strength"][at] == pytest.approx(strength, rel=1e-5)
    queries = np.stack([oracle.entries[i][0] for i in some])
    ids, distances = store.search(row, queries, 5)
    for query, found, far in zip(queries, ids, distances, strict=True):
        known = found[found >= 0]
        assert set(known) <= set(oracle.entries)
        assert len(set(known)) == len(known)
        for id, distance in zip(known, far, strict=False):
            key = oracle.entries[id][0]
            assert distance == pytest.approx(((key - query) ** 2).sum(), abs=1e-5)
        if exact:
            np.testing.assert_allclose(
                far[: len(known)], oracle.nearest(query, 5)[1], atol=1e-5
            )


@pytest.mark.parametrize("kind", indices.KINDS)
def test_a_thousand_random_operations_against_a_dictionary(kind):
    rng = np.random.default_rng(0)
    small = {"compressed": 4096}.get(kind, 128)
    store = make(kind, places=small)
    oracles = [Oracle(small), Oracle(small)]
    if kind == "compressed":  # So many that it is trained.
        keys = rng.normal(size=(4000, WIDTH)).astype(np.float32)
        oracles[0].add(store.add(0, keys, value=value_of(keys)), keys, [0] * 4000)
    ops = ["add", "add", "add", "remove", "update", "age", "forget", "collect", "reset"]
    weights = np.array([5, 5, 5, 6, 6, 1, 1, 1, 0.2])
    for turn in range(1000):
        row = int(rng.integers(2))
        oracle = oracles[row]
        name = rng.choice(ops, p=weights / weights.sum())
        known = list(oracle.entries)
        if name == "add":
            keys = rng.normal(size=(rng.integers(1, 9), WIDTH)).astype(np.float32)
            tokens = rng.integers(0, 99, len(keys))
            ids = store.add(row, keys, token=tokens, value=value_of(keys))
            oracle.add(ids, keys, tokens)
        elif name == "remove" and known:
            gone = rng.choice(known, min(len(known), 5), replace=False)
            assert store.remove(row, [*gone, 10**6]) == len(gone)
            for id in gone:
                del oracle.entries[id]
        elif name == "update" and known:
            id = rng.choice(known)
            # Of the same value, so that the oracle's rule for it holds.
            key = oracle.entries[id][0].copy()
            key[2:] = rng.permutation(key[2:])
            store.update(row, [id], key[None])
            held = store.get(row, [id])
            np.testing.assert_array_equal(held["key"][0, 0], key)
            store.update(row, [id], oracle.entries[id][0][None])
        elif name == "age":
            store.age_memory(0.9)
            for each in oracles:
                for entry in each.entries.values():
                    entry[2] *= 0.9
        elif name in ("forget", "collect"):
            if name == "forget":
                store.forget_randomly(0.05)
            else:
                store.garbage_collect(0.3)
            for number, each in enumerate(oracles):
                left = set(store.ids(number))
                assert left <= set(each.entries)
                if name == "collect":
                    long = {
                        id
                        for id, (key, _, s) in each.entries.items()
                        if np.linalg.norm(key) * s >= 0.3
                    }
                    assert left == long
                each.entries = {i: e for i, e in each.entries.items() if i in left}
        elif name == "reset":
            store.reset(row)
            oracle.entries.clear()
        if turn % 10 == 0 or name in ("reset", "remove"):
            check(store, row, oracle, rng, exact=kind == "flat")
    if kind != "flat":
        assert getattr(store.rows[0][0], "index", None) is not None


@pytest.mark.parametrize("kind", indices.KINDS)
def test_capacity_evicts_the_oldest(kind):
    store = make(kind, places=16)
    keys = np.random.default_rng(1).normal(size=(40, WIDTH)).astype(np.float32)
    ids = store.add(0, keys[:10], value=value_of(keys[:10]))
    ids = np.concatenate([ids, store.add(0, keys[10:], value=value_of(keys[10:]))])
    assert store.size(0) == 16
    np.testing.assert_array_equal(store.ids(0), ids[-16:])
    assert store.size(1) == 0
    found, _ = store.search(0, keys[-3:], 1)
    np.testing.assert_array_equal(found[:, 0], ids[-3:])


def test_eviction_of_the_weakest_and_refusal():
    keys = np.eye(6, WIDTH, dtype=np.float32)
    store = make(places=4, eviction="weakest")
    store.add(0, keys[:2], value=value_of(keys[:2]))
    store.age_memory(0.5)
    store.add(0, keys[2:4], value=value_of(keys[2:4]))
    store.entries["strength"] = store.entries["strength"].at[0, 2].set(0.1)
    store.add(0, keys[4:], value=value_of(keys[4:]))
    assert list(store.ids(0)) == [1, 3, 4, 5]
    store = make(places=4, eviction="refuse")
    ids = store.add(0, keys, value=value_of(keys))
    assert list(ids) == [0, 1, 2, 3, -1, -1]
    assert list(store.ids(0)) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", indices.KINDS)
def test_empty_few_and_not_finite(kind):
    store = make(kind)
    queries = np.eye(3, WIDTH, dtype=np.float32)
    ids, distances = store.search(0, queries, 5)
    assert (ids == -1).all() and np.isinf(distances).all()
    store.add(0, queries, value=value_of(queries), document=7, position=[3, 4, 5])
    ids, _ = store.search(0, queries, 5)
    assert (ids[:, 3:] == -1).all() and (np.sort(ids[:, :3]) == [0, 1, 2]).all()
    bad = queries.copy()
    bad[1, 2] = np.nan
    ids, _ = store.search(0, bad, 2)
    assert (ids[1] == -1).all() and list(ids[[0, 2], 0]) == [0, 2]
    with pytest.raises(UserError, match="document 7, position 4 is not finite"):
        store.add(0, bad, value=value_of(queries), document=7, position=[3, 4, 5])
    with pytest.raises(UserError, match="width 5 do not fit a memory of width 8"):
        store.add(0, np.zeros((1, 5)), value=np.zeros((1, 3)))
    with pytest.raises(UserError, match="no entry 9"):
        store.update(0, [9], queries[:1])
    with pytest.raises(UserError, match="k is at least 1"):
        store.search(0, queries, 0)
    assert store.forget_document(7) == 3
    assert store.size(0) == 0


def test_an_index_that_was_not_told_is_an_error():
    store = make()
    keys = np.eye(2, WIDTH, dtype=np.float32)
    store.add(0, keys, value=value_of(keys))
    search = jax.jit(searcher({0: store}, 2))
    rows, query = np.arange(1), keys[None, :, None]
    places = search(store.entries["version"], rows, query)
    assert places.shape == (1, 2, 1, 2)
    assert list(places[0, :, 0, 0]) == [0, 1]
    assert store.searches == 1
    with pytest.raises(Exception, match="it was not told"):
        jax.block_until_ready(search(np.array([0, 77], np.int32), rows, query))
    with pytest.raises(Exception, match="no memory number 5"):
        jax.block_until_ready(search(np.array([5, 0], np.int32), rows, query))
    jax.block_until_ready(search(store.entries["version"], rows, query))


def test_faiss_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        make()


def test_ivf_says_once_that_it_is_exact_as_yet(capsys):
    indices._said.clear()
    store = make("ivf")
    keys = np.eye(2, WIDTH, dtype=np.float32)
    for _ in range(3):
        store.add(0, keys, value=value_of(keys))
    assert capsys.readouterr().err.count("until a row holds 78 vectors") == 1


def test_ten_thousand_searches_do_not_hang():
    store = make(places=64)
    keys = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
    store.add(0, keys, value=value_of(keys))
    search = searcher({0: store}, 2)
    rows = np.arange(1)

    @jax.jit
    def step(version, query):
        places = search(version, rows, query)
        return query * 0.5 + places.sum() * 1e-3

    query = keys[None, :4, None]
    for _ in range(10_000):
        query = step(store.entries["version"], query)
    jax.block_until_ready(query)
    assert store.searches == 10_000
