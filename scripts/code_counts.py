"""Counts the package: lines, functions, comments, imports in functions, circles.

python -m scripts.code_counts [REVISION ...]    default: what lies here
"""

from __future__ import annotations

import argparse
import ast
import io
import pathlib
import statistics
import subprocess
import tarfile
import tempfile
import tokenize

ROOT = pathlib.Path(__file__).parents[1]


def modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns {"jaxgpt.model.cpu": path} of the package under root."""
    found = {}
    for path in sorted((root / "jaxgpt").rglob("*.py")):
        names = path.relative_to(root).with_suffix("").parts
        found[".".join(names).removesuffix(".__init__")] = path
    return found


def imports(tree: ast.AST) -> set[str]:
    """Returns the names of jaxgpt that a module imports anywhere, for types too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] == "jaxgpt":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
                # `from jaxgpt import x` needs x, not all that the package holds.
                found |= {node.module} - {"jaxgpt"}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("jaxgpt.")}
    return found


def circles(files: dict[str, pathlib.Path]) -> list[tuple[str, ...]]:
    """Returns each way in which a module imports itself through others."""
    imported = {
        name: sorted(imports(ast.parse(path.read_text())) & files.keys())
        for name, path in files.items()
    }
    found, cleared = [], set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            found.append((*above[above.index(name) :], name))
        elif name not in cleared:
            for module in imported[name]:
                visit(module, (*above, name))
            cleared.add(name)

    for name in files:
        visit(name, ())
    return found


def counts(root: pathlib.Path) -> dict[str, str]:
    """Returns {what: count} of the package under root."""
    files = modules(root)
    lines = comments = inner = 0
    functions: list[tuple[int, str]] = []
    for name, path in files.items():
        source = path.read_text()
        lines += source.count("\n")
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments += sum(token.type == tokenize.COMMENT for token in tokens)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                functions.append((length, f"{name}.{node.name}"))
                inner += sum(
                    isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(node)
                )
    longest, where = max(functions)
    median = statistics.median(length for length, _ in functions)
    flat = sum(name.count(".") == 1 for name in files)
    return {
        "lines": f"{lines:,} in {len(files)} files, {flat} at the top",
        "functions": f"{len(functions):,}, {median:g} lines in the median",
        "longest": f"{longest} lines, {where}",
        "comments": f"{comments}, {comments / lines:.1%} of the lines",
        "imports in functions": str(inner),
        "import circles": str(len(circles(files))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("revisions", nargs="*", help="of git")
    for revision in parser.parse_args().revisions or [""]:
        with tempfile.TemporaryDirectory() as folder:
            root = ROOT
            if revision:
                root = pathlib.Path(folder)
                archive = ["git", "archive", revision, "jaxgpt"]
                packed = subprocess.run(
                    archive, cwd=ROOT, check=True, capture_output=True
                )
                with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
                    tar.extractall(root, filter="data")
            print(revision or "here")
            for name, value in counts(root).items():
                print(f"  {name:21} {value}")


if __name__ == "__main__":
    main()
