"""Draw a graph over two steps of time: what every new state reads.

python scripts/draw_gssm_graph.py --graph=data/graphs/easy.yaml --output=F.png
"""

from __future__ import annotations

from jaxgpt import cli
from jaxgpt.config import user_path
from jaxgpt.systems.gssm.graph import LatentGraph, load_graph


def draw(nodes: LatentGraph, output: str) -> None:
    """Writes a figure; latents stand above the observed node, old states left."""
    from matplotlib.figure import Figure

    order = nodes.order
    row = {node.name: len(order) - 1 - i for i, node in enumerate(order)}
    figure = Figure(figsize=(6, 1.2 + 0.9 * len(order)), layout="constrained")
    axes = figure.subplots()

    def arrow(start, end, bend):
        style = f"arc3,rad={bend}"
        shape = {"arrowstyle": "-|>", "color": "0.35", "connectionstyle": style}
        shape |= {"shrinkA": 19, "shrinkB": 19, "lw": 1.4}
        axes.annotate("", end, start, arrowprops=shape)

    for node in order:
        for name in nodes.inputs(node):
            old = name in (node.name, nodes.observed.name)
            distance = abs(row[name] - row[node.name])
            bend = 0.0 if old or distance == 1 else -0.35
            arrow((0 if old else 1, row[name]), (1, row[node.name]), bend)
        for x in (0, 1):
            axes.plot(
                x,
                row[node.name],
                "o",
                markersize=34,
                markeredgecolor="0.2",
                color="#cfe3f6" if node.observed else "white",
            )
            time = "t" if x == 0 else "t+1"
            label = f"${node.name[0]}{{}}_{{{node.name[1:]}}}^{{{time}}}$"
            axes.text(x, row[node.name], label, ha="center", va="center")
        kind = f"{node.state_dim} states, alpha {node.alpha:g}"
        kind += f", {node.mode}" if node.mode != "default" else ""
        axes.text(1.35, row[node.name], kind, va="center")
    axes.set(xlim=(-0.3, 2.4), ylim=(-0.6, len(order) - 0.4))
    axes.axis("off")
    figure.savefig(output, dpi=120)


def command(argv: list[str]) -> None:
    """Parses arguments and draws."""
    parser = cli.Parser("draw_gssm_graph", __doc__)
    parser.add_argument("--graph", required=True, help="JSON or YAML file")
    parser.add_argument("--output", required=True, help="the .png to write")
    args = parser.parse_args(argv)
    draw(load_graph(args.graph), str(user_path(args.output)))


if __name__ == "__main__":
    cli.main(command)
