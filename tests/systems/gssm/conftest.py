import pytest

from jaxgpt.systems.gssm import kernels
from jaxgpt.systems.gssm.graph import parse_graph
from jaxgpt.systems.gssm.process import GraphProcess

MIXED = [
    {"name": "Z1", "state_dim": 3, "alpha": 0.5, "mode": "slow", "parents": ["X"]},
    {"name": "Z2", "state_dim": 4, "alpha": 0.4, "parents": ["Z1"], "mode": "dead"},
    {"name": "Z3", "state_dim": 2, "alpha": 0.7, "parents": ["Z2", "Z1"]},
    {"name": "X", "state_dim": 5, "alpha": 0.3, "parents": ["Z3", "X", "Z1"]},
]
PRODUCT = [
    {"name": "A", "state_dim": 3, "alpha": 0.5, "mode": "slow"},
    {"name": "B", "state_dim": 4, "alpha": 0.5, "parents": ["A"]},
    {"name": "O", "state_dim": 7, "alpha": 0.3, "parents": ["B", "A"]},
]
for node in PRODUCT:
    node |= {"kernel_type": "product", "observed": node["name"] == "O"}


def make(nodes, seed=0, first_token="start", clip=1e-10, context="batch"):
    graph = parse_graph(nodes, "test")
    tables = kernels.draw_tables(graph, seed, clip)
    return GraphProcess(graph, tables, first_token, clip, context)


@pytest.fixture(params=["mixed", "product"])
def any_process(request):
    return make({"mixed": MIXED, "product": PRODUCT}[request.param])
