"""The packages of a wheel: comp, and its shipped configs beside it. Everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["comp", "comp.*"]), "comp_configs"],
    package_dir={"comp_configs": "configs"},
    package_data={"comp": ["py.typed"], "comp_configs": ["**/*.yaml"]},
)
