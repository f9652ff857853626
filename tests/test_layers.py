"""No import runs upward: the layers of the package, lowest first."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxgpt"
LAYERS = (
    {"errors", "fields"},
    {"config"},
    {"core", "data"},
    {"cli", "distributed"},
    {"systems", "interop"},
    {
        "hlo",
        "optim",
        "sharding",
        "checkpoint",
        "metrics",
        "step",
        "profiling",
        "live",
        "interruption",
    },
    {"run"},
    {"stepper"},
    {"guard"},
    {"replay"},
    {
        "train",
        "plan",
        "evaluate",
        "sample",
        "verify",
        "convert",
        "continuations",
        "prompts",
        "generation",
        "solve",
        "grid",
    },
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part_of(module: str) -> str:
    return module.split(".")[1]


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "jaxgpt":
                found |= {f"jaxgpt.{alias.name}" for alias in node.names}
            elif node.module.startswith("jaxgpt."):
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("jaxgpt.")}
    return found


def test_every_part_has_a_layer_and_imports_none_above_it():
    for path in PACKAGE.rglob("*.py"):
        names = path.relative_to(PACKAGE).with_suffix("").parts
        if names == ("__init__",):
            continue
        level = LEVEL[names[0]]
        for module in imports(path):
            assert LEVEL[part_of(module)] <= level, f"{path} imports {module}"


def test_the_core_knows_no_system_and_torch_is_no_dependency():
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        top = [n for n in ast.parse(source).body if isinstance(n, ast.Import)]
        assert not any(a.name == "torch" for n in top for a in n.names), path
