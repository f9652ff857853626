"""Draw a graph over two steps of time: what every new state reads.

python scripts/draw_gssm_graph.py --graph=data/graphs/easy.yaml --output=F.png
"""

from __future__ import annotations

import pathlib

from jaxgpt import cli, drawing
from jaxgpt.config import user_path
from jaxgpt.systems.gssm.graph import LatentGraph
from jaxgpt.systems.gssm.graph_files import load_graph


def draw(nodes: LatentGraph, name: str, path: pathlib.Path) -> None:
    """Writes a figure; latents stand above the observed node, old states left."""
    order = nodes.order
    row = {node.name: len(order) - 1 - i for i, node in enumerate(order)}
    with drawing.picture(path, 1.4 + 0.9 * len(order)) as figure:
        axes = figure.subplots()

        def arrow(start, end, bend):
            style = f"arc3,rad={bend}"
            shape = {"arrowstyle": "-|>", "color": "0.35", "connectionstyle": style}
            shape |= {"shrinkA": 19, "shrinkB": 19, "lw": 1.4}
            axes.annotate("", end, start, arrowprops=shape)

        for x, time in ((0, "step t"), (1, "step t + 1")):
            axes.text(x, len(order) - 0.3, time, ha="center", color=drawing.GREY)
        for node in order:
            for parent in nodes.inputs(node):
                old = parent in (node.name, nodes.observed.name)
                distance = abs(row[parent] - row[node.name])
                bend = 0.0 if old or distance == 1 else -0.35
                arrow((0 if old else 1, row[parent]), (1, row[node.name]), bend)
            for x, time in ((0, "t"), (1, "t+1")):
                axes.plot(
                    x,
                    row[node.name],
                    "o",
                    markersize=34,
                    markeredgecolor=drawing.DARK,
                    color="#cfe3f6" if node.observed else "white",
                )
                label = f"${node.name[0]}{{}}_{{{node.name[1:]}}}^{{{time}}}$"
                axes.text(x, row[node.name], label, ha="center", va="center")
            kind = "observed" if node.observed else "latent"
            kind += f": {node.state_dim} states, alpha {node.alpha:g}"
            kind += f", {node.mode}" if node.mode != "default" else ""
            axes.text(1.35, row[node.name], kind, va="center")
        axes.set(xlim=(-0.3, 2.6), ylim=(-0.6, len(order)))
        axes.axis("off")
        axes.set_title(f"{name}: what every new state reads")


def command(argv: list[str]) -> None:
    """Parses arguments and draws."""
    parser = cli.Parser("draw_gssm_graph", __doc__)
    parser.add_argument("--graph", required=True, help="JSON or YAML file")
    parser.add_argument("--output", required=True, help="the .png to write")
    args = parser.parse_args(argv)
    name = pathlib.Path(args.graph).name
    draw(load_graph(args.graph), name, user_path(args.output))


if __name__ == "__main__":
    cli.main(command)
