import jax
import numpy as np
import pytest

from jaxgpt import config
from jaxgpt.interop import gpt2, rules
from jaxgpt.systems.registry import build_system
from tests.conftest import refusal

TABLES = [(bias, conv1d) for bias in (False, True) for conv1d in (False, True)]
tables = pytest.mark.parametrize("bias, conv1d", TABLES)
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 11}


def shapes(system, bias):
    fields = {f"model.{key}": value for key, value in (SIZES | {"bias": bias}).items()}
    made = config.override(config.base(), {"system": system} | fields)
    return jax.eval_shape(build_system(made).init, jax.random.key(0))


def drawn(abstract):
    random = np.random.default_rng(1337)
    draw = lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype)
    return jax.tree.map(draw, abstract)


@pytest.fixture
def there():
    """(state dict, table, shapes) of a small model."""
    abstract = shapes("causal", True)
    table = gpt2.gpt_rules(2, True, False)
    return rules.to_torch(drawn(abstract), table), table, abstract


def refused(state, table, abstract):
    message = refusal(rules.to_jax, state, table, abstract, "source.pt")
    assert message.startswith("'source.pt'")
    assert message.isprintable()
    return message


@tables
@pytest.mark.parametrize("n_layer", [1, 2, 12])
def test_every_name_and_path_is_unique(n_layer, bias, conv1d):
    table = gpt2.gpt_rules(n_layer, bias, conv1d)
    assert len(table) == 2 + n_layer * 6 * (1 + bias) + 1 + bias
    assert len({rule.name for rule in table}) == len(table)
    assert len({rule.path for rule in table}) == len(table)


@tables
def test_only_kernels_are_transposed_and_only_without_conv1d(bias, conv1d):
    table = gpt2.gpt_rules(2, bias, conv1d)
    kernels = {rule.name for rule in table if rule.path.endswith("kernel")}
    assert {rule.name for rule in table if rule.transposed} == (
        set() if conv1d else kernels
    )
    assert len(kernels) == 8


@tables
@pytest.mark.parametrize("system", ["causal", "sigma"])
def test_every_parameter_stands_in_the_table(system, bias, conv1d):
    found = rules._paths(shapes(system, bias))
    paths = [rule.path for rule in gpt2.gpt_rules(2, bias, conv1d)]
    assert sorted(found) == sorted(paths)


@tables
@pytest.mark.parametrize("system", ["causal", "sigma"])
def test_there_and_back_is_the_identity(system, bias, conv1d):
    abstract = shapes(system, bias)
    table = gpt2.gpt_rules(2, bias, conv1d)
    params = drawn(abstract)
    state = rules.to_torch(params, table)
    assert list(state) == [rule.name for rule in table]
    qkv = state["transformer.h.0.attn.c_attn.weight"]
    assert qkv.shape == ((8, 24) if conv1d else (24, 8))
    assert all(array.flags.c_contiguous for array in state.values())
    back = rules.to_jax(state, table, abstract, "x")
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    again = rules.to_torch(back, table)
    for name in state:
        np.testing.assert_array_equal(again[name], state[name])


def test_the_order_of_a_state_dict_does_not_matter(there):
    state, table, abstract = there
    shuffled = dict(sorted(state.items(), reverse=True))
    one = rules.to_jax(state, table, abstract, "x")
    jax.tree.map(
        np.testing.assert_array_equal, one, rules.to_jax(shuffled, table, abstract, "x")
    )


def test_every_missing_key_is_named(there):
    state, table, abstract = there
    for name in state:
        rest = {key: value for key, value in state.items() if key != name}
        assert f"lacks {name}" in refused(rest, table, abstract)


@pytest.mark.parametrize(
    "name", ["transformer.h.2.ln_1.weight", "score.weight", "two\nlines\x1b", "k" * 999]
)
def test_an_extra_key_is_named(there, name):
    state, table, abstract = there
    message = refused(state | {name: np.zeros(3)}, table, abstract)
    assert "has unknown " in message
    assert name.splitlines()[0][:20] in message
    assert len(message) < 300


def test_many_keys_are_counted(there):
    _, table, abstract = there
    message = refused({"a": np.zeros(1), "b": np.zeros(1)}, table, abstract)
    assert f"and {len(table) - 3} more, has unknown a, b" in message
    message = refused({}, table, abstract)
    assert "lacks transformer.h.0.attn.c_attn.bias, " in message
    assert message.endswith("more")


def test_every_wrong_shape_is_named(there):
    state, table, abstract = there
    for name, array in state.items():
        message = refused(state | {name: array[..., :-1]}, table, abstract)
        assert f"{name} has shape [" in message
        message = refused(state | {name: array[None]}, table, abstract)
        assert f"{name} has shape [" in message


def test_a_square_kernel_given_transposed_is_not_seen_but_the_others_are(there):
    state, _, abstract = there
    message = refused(state, gpt2.gpt_rules(2, True, True), abstract)
    assert "is --format right?" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_weight_that_is_not_finite_is_named(there, value):
    state, table, abstract = there
    for name, array in state.items():
        bad = array.copy()
        bad.flat[-1] = value
        message = refused(state | {name: bad}, table, abstract)
        assert f"{name} is not finite everywhere" in message


@pytest.mark.filterwarnings("error")
def test_a_weight_that_float32_cannot_hold_is_named(there):
    state, table, abstract = there
    name = "transformer.wte.weight"
    message = refused(state | {name: np.full((11, 8), 1e300)}, table, abstract)
    assert f"{name} is not finite everywhere" in message


@pytest.mark.parametrize(
    "value, expected",
    [
        ("plain", "plain"),
        ("two\nlines", r"'two\nlines'"),
        (-1, "-1"),
        (2.5, "2.5"),
        ([1, 2], "[1, 2]"),
        (10**5000, "of type int"),
        (np.zeros((2, 2)), "array([[0., 0.], [0., 0.]])"),
        ("x" * 200, "x" * 97 + "..."),
    ],
    ids=range(8),
)
def test_values_are_shown_in_a_line(value, expected):
    assert rules.shown(value) == expected
