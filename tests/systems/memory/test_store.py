"""The store against a dictionary, for every index type; what it refuses."""

import faiss
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.errors import UserError
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory import index
from jaxgpt.systems.memory.config import IndexConfig
from jaxgpt.systems.memory.index import INDEX_TYPES
from jaxgpt.systems.memory.retrieval import exact_search, make_search
from jaxgpt.systems.memory.store import Store

pytestmark = pytest.mark.unoptimised

WIDTH = 8
CONFIGS = {
    "flat": IndexConfig(),
    "ivf": IndexConfig(index_type="ivf", num_clusters=2, num_probes=2),
    "compressed": IndexConfig(
        index_type="compressed", num_clusters=2, num_probes=2, code_bytes=4
    ),
    "graph": IndexConfig(index_type="graph", links=8, ef_search=256),
}


def make(kind="flat", rows=2, slots=128):
    return Store(ops.empty(rows, slots, (1, WIDTH), {"value": (3,)}), CONFIGS[kind])


def value_of(key):
    return np.stack([key[:, 0], key[:, 1] * 2, key.sum(1)], 1)


write = jax.jit(ops.write, static_argnames="eviction")


def update(store, entries):
    store.update(ops.next_version(entries))


def add(store, row, keys, token=0, document=0, eviction="oldest"):
    """Writes to a row as a segment does; returns the ids given, -1 for none."""
    count, rows = len(keys), len(store.stamps)
    room = 1 << (count - 1).bit_length()  # Few sizes to compile for.

    def of_row(array):
        whole = np.zeros((rows, room, *array.shape[1:]), array.dtype)
        whole[row, :count] = array
        return whole

    flat = lambda value: of_row(np.broadcast_to(np.int32(value), (count,)))
    new = {"key": of_row(keys[:, None]), "values": {"value": of_row(value_of(keys))}}
    new |= {"token": flat(token), "position": flat(0), "document": flat(document)}
    first = int(store.entries["next_id"][row])
    wanted = of_row(np.ones(count, bool))
    update(store, write(store.entries, new, wanted, eviction))
    return np.arange(first, int(store.entries["next_id"][row]))


def ids_of(store, row):
    ids = np.asarray(store.entries["id"])[row]
    return np.sort(ids[ids >= 0])


def slots_of(store, row, ids):
    known = list(np.asarray(store.entries["id"])[row])
    return np.array([known.index(i) for i in ids])


def search(store, row, queries, k):
    """Returns ids [N, k], -1 for none, and the true distances of those found."""
    version = np.asarray(store.entries["version"])
    slots = store.search(version, [row], queries[None, :, None], k)[0, :, 0]
    ids = np.where(slots < 0, -1, np.asarray(store.entries["id"])[row][slots])
    keys = np.asarray(store.entries["key"])[row, slots, 0]
    distances = ((queries[:, None] - keys) ** 2).sum(-1)
    return ids, np.where(slots < 0, np.inf, distances)


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
    assert store.size(row) == len(oracle.entries) <= store.stamps.shape[1]
    np.testing.assert_array_equal(ids_of(store, row), sorted(oracle.entries))
    if not oracle.entries:
        return
    some = rng.choice(list(oracle.entries), min(4, len(oracle.entries)), replace=False)
    slots = slots_of(store, row, some)
    held = jax.tree.map(np.asarray, store.entries)
    for slot, id in zip(slots, some, strict=True):
        key, token, strength = oracle.entries[id]
        np.testing.assert_array_equal(held["key"][row, slot, 0], key)
        value = held["values"]["value"][row, slot]
        np.testing.assert_array_equal(value, value_of(key[None])[0])
        assert held["token"][row, slot] == token
        assert held["strength"][row, slot] == pytest.approx(strength, rel=1e-5)
    queries = np.stack([oracle.entries[i][0] for i in some])
    ids, distances = search(store, row, queries, 5)
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


@pytest.mark.parametrize("kind", INDEX_TYPES)
def test_a_thousand_random_operations_against_a_dictionary(kind):
    rng = np.random.default_rng(0)
    small = {"compressed": 4096}.get(kind, 128)
    store = make(kind, slots=small)
    oracles, documents = [Oracle(small), Oracle(small)], [0, 1]  # One of each row.
    if kind == "compressed":  # So many that it is trained.
        keys = rng.normal(size=(4000, WIDTH)).astype(np.float32)
        oracles[0].add(add(store, 0, keys), keys, [0] * 4000)
    names = ["add", "add", "add", "remove", "age", "forget", "forget_document", "reset"]
    weights = np.array([5, 5, 5, 6, 1, 1, 0.2, 0.2])
    approximate = False
    for turn in range(1000):
        row = int(rng.integers(2))
        oracle = oracles[row]
        name = rng.choice(names, p=weights / weights.sum())
        known = list(oracle.entries)
        if name == "add":
            keys = rng.normal(size=(rng.integers(1, 9), WIDTH)).astype(np.float32)
            tokens = rng.integers(0, 99, len(keys))
            ids = add(store, row, keys, tokens, document=documents[row])
            oracle.add(ids, keys, tokens)
        elif name == "remove" and known:
            gone = rng.choice(known, min(len(known), 5), replace=False)
            mask = np.zeros((2, small), bool)
            mask[row, slots_of(store, row, gone)] = True
            update(store, ops.remove(store.entries, mask))
            for id in gone:
                del oracle.entries[id]
        elif name == "age":
            update(store, ops.age(store.entries, 0.9))
            for each in oracles:
                for entry in each.entries.values():
                    entry[2] *= 0.9
        elif name == "forget":
            update(store, ops.forget(store.entries, jax.random.key(turn), 0.05))
            for number, each in enumerate(oracles):
                left = set(ids_of(store, number))
                assert left <= set(each.entries)
                each.entries = {i: e for i, e in each.entries.items() if i in left}
        elif name == "forget_document":
            assert store.forget_document(documents[row]) == len(oracle.entries)
            oracle.entries.clear()
            documents[row], documents[1 - row] = 1, 0  # The other's is now the first.
            for each in oracles:
                each.entries = dict(enumerate(each.entries.values()))
        elif name == "reset":
            rows = np.arange(2)[:, None] == row
            update(store, ops.remove(store.entries, jnp.asarray(rows)))
            oracle.entries.clear()
        approximate |= getattr(store.indices[row][0], "index", None) is not None
        if turn % 10 == 0 or name in ("reset", "remove", "forget_document"):
            check(store, row, oracle, rng, exact=kind == "flat")
    assert approximate or kind == "flat"


@pytest.mark.parametrize("kind", INDEX_TYPES)
def test_capacity_evicts_the_oldest(kind):
    store = make(kind, slots=16)
    keys = np.random.default_rng(1).normal(size=(40, WIDTH)).astype(np.float32)
    assert list(add(store, 0, keys[:10])) == list(range(10))
    add(store, 0, keys[10:])
    assert store.size(0) == 16
    # Of 30 at once the last 16 are written.
    np.testing.assert_array_equal(ids_of(store, 0), np.arange(10, 26))
    assert store.size(1) == 0
    found, _ = search(store, 0, keys[-3:], 1)
    np.testing.assert_array_equal(found[:, 0], [23, 24, 25])


def test_eviction_of_the_weakest_and_refusal():
    keys = np.eye(6, WIDTH, dtype=np.float32)
    store = make(slots=4)
    add(store, 0, keys[:2], eviction="weakest")
    update(store, ops.age(store.entries, 0.5))
    add(store, 0, keys[2:4], eviction="weakest")
    store.entries["strength"] = store.entries["strength"].at[0, 2].set(0.1)
    add(store, 0, keys[4:], eviction="weakest")
    assert list(ids_of(store, 0)) == [1, 3, 4, 5]
    store = make(slots=4)
    assert list(add(store, 0, keys, eviction="refuse")) == [0, 1, 2, 3]
    assert list(ids_of(store, 0)) == [0, 1, 2, 3]
    np.testing.assert_array_equal(store.entries["key"][0, :, 0], keys[:4])


@pytest.mark.parametrize("kind", INDEX_TYPES)
def test_empty_few_and_not_finite(kind, capsys):
    store = make(kind)
    queries = np.eye(3, WIDTH, dtype=np.float32)
    ids, _ = search(store, 0, queries, 5)
    assert (ids == -1).all()
    add(store, 0, queries, document=7)
    ids, _ = search(store, 0, queries, 5)
    assert (ids[:, 3:] == -1).all() and (np.sort(ids[:, :3]) == [0, 1, 2]).all()
    bad = queries.copy()
    bad[1, 2] = np.nan
    ids, _ = search(store, 0, bad, 2)
    assert (ids[1] == -1).all() and list(ids[[0, 2], 0]) == [0, 2]
    capsys.readouterr()
    assert len(add(store, 0, bad, document=8)) == 2
    assert "memory row 0: 1 vectors were not finite" in capsys.readouterr().err
    assert store.forget_document(7) == 3
    assert store.size(0) == 2
    held = jax.tree.map(np.asarray, store.entries)
    np.testing.assert_array_equal(held["key"][0, :2, 0], bad[[0, 2]])
    assert not held["key"][0, 2:].any()
    assert list(held["document"][0, :3]) == [7, 7, 0]


def random_keys(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def entries_in(index):
    """Returns the entries of an inverted file, and their codes [n, bytes]."""
    lists = index.invlists
    sizes = [lists.list_size(number) for number in range(index.nlist)]
    codes = [
        faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
        for number, size in enumerate(sizes)
        if size
    ]
    return sum(sizes), np.concatenate(codes).reshape(-1, lists.code_size)


@pytest.fixture
def small_codebook(monkeypatch):
    """As few vectors as 8 bits can be learned from."""
    monkeypatch.setattr(index, "CODEBOOK_VECTORS", 256)


# Entries of a document; the index of three is exact, then that of two, then none.
SIZES = {"exact": 20, "exact without it": 40, "trained": 150}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", INDEX_TYPES)
def test_forgotten_is_as_if_never_read(kind, size, small_codebook):
    """Whatever the pieces that were written at once: each array has the same bytes."""
    if kind == "compressed" and size == SIZES["exact without it"]:
        size = 100
    keys = random_keys(3 * size).reshape(3, size, WIDTH)
    whole, other = make(kind, slots=512), make(kind, slots=512)
    for document in range(3):
        for piece in np.split(keys[document], [7, 8, size // 2]):
            add(whole, 0, piece, token=document, document=document)
    for number, document in enumerate((0, 2)):
        for piece in np.split(keys[document], [3, size - 1]):
            add(other, 0, piece, token=document, document=number)
    add(other, 1, keys[2][:9])
    add(whole, 1, keys[2][:9])
    add(whole, 1, keys[1], document=1)
    assert whole.forget_document(1) == 2 * size
    update(whole, ops.age(whole.entries, 0.5))
    update(other, ops.age(other.entries, 0.5))
    trained = {"ivf": 78, "compressed": 256}.get(kind, 2 * size + 1) <= 2 * size
    assert trained == (getattr(whole.indices[0][0], "trained_on", 0) > 0)
    # How often each was changed is no content.
    one, same = (store.entries | {"version": 0} for store in (whole, other))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(same), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    anew = Store(other.entries, CONFIGS[kind]).host_state()
    states = whole.host_state(), other.host_state()
    assert list(states[0]) == list(states[1]) == list(anew)
    for name, array in states[0].items():
        assert array.tobytes() == states[1][name].tobytes() == anew[name].tobytes()


@pytest.mark.parametrize("kind", INDEX_TYPES)
def test_nothing_of_the_forgotten_is_left(kind, small_codebook):
    store = make(kind, rows=1, slots=512)
    keys = random_keys(330)
    forgotten, rest = keys[:30], keys[30:]
    add(store, 0, forgotten, document=0)
    add(store, 0, rest, document=1)

    def held():
        arrays = [*jax.tree.leaves(store.entries), *store.host_state().values()]
        arrays += [one.vectors for one in store.indices[0]]
        return [np.asarray(array).tobytes() for array in arrays]

    def holds(vector):
        return sum(vector.tobytes() in array for array in held())

    # Entries and index, and an IVF or graph has a copy of its own.
    copies = 3 if kind in ("ivf", "graph") else 2
    assert all(holds(key) == copies for key in forgotten[[0, 29]])
    assert store.forget_document(0) == 30
    assert not any(holds(key) for key in forgotten)
    # Those of a graph that do not fill a block are in no copy.
    assert holds(rest[0]) == copies
    if kind == "compressed":
        quantized = store.indices[0][0].index
        count, codes = entries_in(quantized)
        gone = quantized.sa_encode(forgotten)[:, -codes.shape[1] :]
        left = quantized.sa_encode(rest)[:, -codes.shape[1] :]
        assert count == len(rest)
        codes = {code.tobytes() for code in codes}
        assert {code.tobytes() for code in left} == codes
        assert not {code.tobytes() for code in gone} & codes


@pytest.mark.parametrize("kind", INDEX_TYPES)
def test_an_index_is_the_same_however_additions_are_cut(kind, small_codebook):
    """Also when it is stored and restored in between."""
    keys, queries = random_keys(900), random_keys(20, seed=1)
    found = []
    for pieces in ([], range(10, 900, 10), [1, 130, 555, 777]):
        one = index.make_index(1000, WIDTH, CONFIGS[kind])
        for slots in np.split(np.arange(900), pieces):
            before, one = one, index.make_index(1000, WIDTH, CONFIGS[kind])
            one.restore(np.arange(slots[0]), keys[: slots[0]], before.state())
            one.add(slots, keys[slots])
        found.append({"": one.search(queries, 7)} | one.state())
    for same in found[1:]:
        for name, array in same.items():
            assert array.tobytes() == found[0][name].tobytes()


def test_what_older_checkpoints_hold_of_an_index_can_be_restored():
    """Writes without what they are counted for, a graph of any number of nodes."""
    keys = random_keys(130)
    ivf = index.make_index(128, WIDTH, CONFIGS["ivf"])
    ivf.add(np.arange(100), keys[:100])
    state = ivf.state() | {"writes": np.array([22], np.int64)}
    graph = faiss.IndexHNSWFlat(WIDTH, 8)
    graph.add(keys[:100])
    nodes = np.arange(100, dtype=np.int32)
    of_graph = {"place_of": nodes, "alive": np.ones(100, np.uint8)}
    of_graph["index"] = faiss.serialize_index(graph)
    for kind, older in (("ivf", state), ("graph", of_graph)):
        one = index.make_index(128, WIDTH, CONFIGS[kind])
        one.restore(nodes, keys[:100], older)
        assert list(one.search(keys[:100], 1)[:, 0]) == list(nodes)
        one.add(nodes[:30], keys[100:])
        assert list(one.search(keys[100:], 1)[:, 0]) == list(nodes[:30])
        if kind == "ivf":
            assert (one.trained_on, one.writes) == (128, 52)


def test_an_index_out_of_sync_is_an_error():
    store = make()
    keys = np.eye(2, WIDTH, dtype=np.float32)
    add(store, 0, keys)
    search = jax.jit(make_search({0: store}, 2))
    rows, query = np.arange(1), keys[None, :, None]
    slots = search(store.entries["version"], rows, query)
    assert slots.shape == (1, 2, 1, 2)
    assert list(slots[0, :, 0, 0]) == [0, 1]
    assert store.searches == 1
    with pytest.raises(Exception, match="out of sync"):
        jax.block_until_ready(search(np.array([0, 77], np.int32), rows, query))
    with pytest.raises(Exception, match="memory 5 does not exist"):
        jax.block_until_ready(search(np.array([5, 0], np.int32), rows, query))
    jax.block_until_ready(search(store.entries["version"], rows, query))


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("rows, heads", [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_the_search_in_a_program_chooses_as_faiss_does(metric, rows, heads):
    rng = np.random.default_rng(0)
    entries = ops.empty(rows, 40, (heads, WIDTH), {})
    new = {name: np.zeros((rows, 40), np.int32) for name in ops.SOURCES}
    new |= {"key": rng.normal(size=(rows, 40, heads, WIDTH)), "values": {}}
    entries = write(entries, new, rng.random((rows, 40)) < 0.8)
    gone = jnp.asarray(rng.random((rows, 40)) < 0.3)
    entries = ops.next_version(ops.remove(entries, gone))
    store = Store(entries, IndexConfig(metric=metric))
    query = rng.normal(size=(2, 5, heads, WIDTH)).astype(np.float32)
    query[1, 2, 0, 3] = np.nan
    row = np.arange(2)[::-1] % rows
    for k in (1, 3, 50):
        found = jax.jit(exact_search(entries, metric, k))(None, row, query)
        expected = store.search(store.version, row, query, k)
        np.testing.assert_array_equal(found, expected)
    one = exact_search(entries, metric, 3)(None, row[:1], query[:1])
    np.testing.assert_array_equal(
        one, store.search(store.version, row[:1], query[:1], 3)
    )


def test_of_equally_near_entries_the_smaller_slots_are_found():
    store = make()
    add(store, 0, np.ones((9, WIDTH), np.float32))
    query = np.ones((1, 2, 1, WIDTH), np.float32)
    found = exact_search(store.entries, "l2", 3)(None, np.zeros(1, int), query)
    np.testing.assert_array_equal(found[0, :, 0], [[0, 1, 2], [0, 1, 2]])


def test_faiss_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        make()


def test_ivf_says_once_that_it_is_exact_as_yet(capsys):
    index._warned.clear()
    store = make("ivf")
    for _ in range(3):
        add(store, 0, np.eye(2, WIDTH, dtype=np.float32))
    assert capsys.readouterr().err.count("until a row holds 78 vectors") == 1


def test_ivf_with_too_few_vectors_to_train_again_still_finds_new_ones():
    """As many writes as slots ask for new clusters, which need more than are left."""
    one = index.make_index(100, WIDTH, CONFIGS["ivf"])
    keys = np.random.default_rng(0).normal(size=(220, WIDTH)).astype(np.float32)
    one.add(np.arange(100), keys[:100])
    one.remove(np.arange(50))
    slots = np.arange(60, 100)
    for new in np.split(keys[100:], 3):
        one.add(slots, new)
        np.testing.assert_array_equal(one.search(new, 1)[:, 0], slots)


def test_ten_thousand_searches_do_not_hang():
    store = make(slots=64)
    keys = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
    add(store, 0, keys)
    search = make_search({0: store}, 2)
    rows = np.arange(1)

    @jax.jit
    def step(version, query):
        slots = search(version, rows, query)
        return query * 0.5 + slots.sum() * 1e-3

    query = keys[None, :4, None]
    for _ in range(10_000):
        query = step(store.entries["version"], query)
    jax.block_until_ready(query)
    assert store.searches == 10_000
