"""No import runs upward: the layers of the package, lowest first."""

import ast
import pathlib

from scripts.code_counts import circles, counts, imports, modules

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxgpt"
# A file directly in jaxgpt/ is a command, which parses its arguments and then imports
# its part of commands/ or web/, or one of errors, config, drawing, cli, backend,
# inference and run, or what is offered from Python, api and gssm; all else has a
# folder. So is a system's command that reads a run, though it lies in the system's
# folder.
LAYERS = (
    {"errors"},
    {"config", "drawing"},
    {"parallel"},
    {"model", "data"},
    {"cli", "backend", "sampling"},
    {"systems", "interop"},
    {"training"},
    {"inference"},
    {"run", "gssm"},
    {"commands"},
    {"api"},
    {"web"},
    {"train", "sample", "evaluate", "convert", "verify", "plan", "grid", "memory"}
    | {"systems.gssm.probe", "playground"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def level_of(module):
    name = module.removeprefix("jaxgpt.")
    return LEVEL[name] if name in LEVEL else LEVEL[name.split(".")[0]]


def test_every_part_has_a_layer_and_imports_none_above_it():
    for name, path in modules(ROOT).items():
        if name == "jaxgpt":
            continue
        level = level_of(name)
        for module in imports(ast.parse(path.read_text())):
            assert level_of(module) <= level, f"{path} imports {module}"


def test_no_imports_go_in_a_circle_those_for_types_included():
    assert not circles(modules(ROOT))


def test_few_imports_are_in_functions():
    """One for each of thirteen commands, once it has parsed, and four optional."""
    assert int(counts(ROOT)["imports in functions"]) <= 17


def test_torch_is_no_dependency_and_packages_hold_no_code():
    for path in PACKAGE.rglob("*.py"):
        body = ast.parse(path.read_text()).body
        top = [n for n in body if isinstance(n, ast.Import)]
        assert not any(a.name == "torch" for n in top for a in n.names), path
        if path.name == "__init__.py" and path.parent != PACKAGE:
            assert not any(isinstance(n, ast.ClassDef | ast.FunctionDef) for n in body)
