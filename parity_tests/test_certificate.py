"""Every row of docs/parity.md, held to its tolerance; `measures` says what each is."""

import json

import jax
import pytest

from parity_tests import certificate, measures, pairs
from parity_tests.files import HAVE_MOMENTS, LAYOUTS
from parity_tests.tolerances import FLOAT32, FLOAT64


def hold(found: dict[str, measures.Found], tolerances=FLOAT32) -> None:
    for quantity, each in found.items():
        assert each.value <= tolerances[quantity], f"{quantity}: {each}"


@pytest.mark.parametrize("name", pairs.TWINS)
def test_logits_and_training(name):
    pair = pairs.make(name, "float32")
    hold(measures.forward(pair))
    hold(measures.training(pair))


@pytest.mark.unoptimised
@pytest.mark.parametrize("name", pairs.TWINS)
def test_float64_where_agreement_is_meaning_not_luck(name):
    with jax.enable_x64(True):
        pair = pairs.make(name, "float64")
        hold(measures.forward(pair), FLOAT64)
        hold(measures.training(pair), FLOAT64)


@pytest.mark.unoptimised
@pytest.mark.parametrize("name", pairs.TWINS)
def test_greedy_tokens(name):
    hold(measures.greedy(pairs.make(name, "float32")))


@pytest.mark.parametrize("name", pairs.TWINS)
def test_bfloat16_is_as_close_as_autocast(name):
    hold(measures.bfloat16(name))


@pytest.mark.unoptimised
@pytest.mark.parametrize("name", [n for n, t in pairs.TWINS.items() if t.has_dropout])
def test_dropout_spreads_the_loss_as_pytorchs(name):
    hold(measures.dropout_of_loss(name))


def test_dropout_keeps_and_scales_as_asked():
    hold(measures.dropout_of_layer())


def test_learning_rates():
    hold(measures.rates())


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_in_and_out(name, tmp_path):
    hold(measures.round_trip(name, tmp_path))


@pytest.mark.parametrize("name", HAVE_MOMENTS)
def test_training_goes_on_from_the_originals_checkpoint(name, tmp_path):
    hold(measures.continued(name, tmp_path))


@pytest.mark.unoptimised
@pytest.mark.parametrize("mode", pairs.MEMORIES)
def test_memory_beside_a_dense_one(mode):
    hold(measures.memory(mode))


def test_the_page_is_of_the_figures_beside_it_and_they_hold():
    record = json.loads((certificate.DOCS / "parity.json").read_text())
    figure = lambda fields: measures.Found(**fields)
    tables = certificate.map_figures(figure, record["found"])
    page = certificate.page(record["about"], tables)
    assert page == (certificate.DOCS / "parity.md").read_text()
    for name, table in tables.items():
        for found in table.values():
            hold(found, FLOAT64 if "float64" in name else FLOAT32)
