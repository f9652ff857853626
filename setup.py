"""Puts what comes with jaxgpt into its wheel; all else is in pyproject.toml.

The folders of SHIPPED become jaxgpt/shipped/FOLDER, where `jaxgpt.config.shipped`
looks.
"""

from setuptools import find_packages, setup

SHIPPED = {
    "configs": ["*.py"],
    "data": ["*.md", "*.txt", "*.bpe"],
    "data/graphs": ["*.yaml"],
    "studies": ["*.yaml"],
}

folders = {f"jaxgpt.shipped.{name.replace('/', '.')}": name for name in SHIPPED}
setup(
    packages=[*find_packages(include=["jaxgpt*"]), *folders],
    package_dir=folders,
    package_data={package: SHIPPED[name] for package, name in folders.items()}
    | {"jaxgpt.web": ["static/*"]},
)
