"""No import runs upward: the layers of the package, lowest first."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxgpt"
# A file directly in jaxgpt/ is a command or one of errors, config, cli, run; everything
# else has a folder.
LAYERS = (
    {"errors", "fields"},
    {"config"},
    {"parallel"},
    {"model", "data"},
    {"cli", "sampling"},
    {"systems", "interop"},
    {"training"},
    {"run"},
    {"train", "sample", "evaluate", "convert", "verify", "plan", "grid"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, pathlib.Path]:
    """Returns {"jaxgpt.model.cpu": path} of the whole package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        names = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(names).removesuffix(".__init__")] = path
    return found


def part_of(module: str) -> str:
    return module.split(".")[1]


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] == "jaxgpt":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module != "jaxgpt":
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


def test_no_imports_go_in_a_circle_those_for_types_included():
    files = modules()
    imported = {
        name: {m for m in imports(path) if m in files} for name, path in files.items()
    }
    # The memory's own modules still know each other both ways.
    imported = {n: m for n, m in imported.items() if ".memory." not in n}
    cleared: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in cleared:
            for module in imported.get(name, ()):
                visit(module, (*above, name))
            cleared.add(name)

    for name in files:
        visit(name, ())


def test_torch_is_no_dependency_and_packages_hold_no_code():
    for path in PACKAGE.rglob("*.py"):
        body = ast.parse(path.read_text()).body
        top = [n for n in body if isinstance(n, ast.Import)]
        assert not any(a.name == "torch" for n in top for a in n.names), path
        if path.name == "__init__.py":
            assert not any(isinstance(n, ast.ClassDef | ast.FunctionDef) for n in body)
