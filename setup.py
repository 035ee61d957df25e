"""Packages and the kernels folder; everything else is in pyproject.toml. No torch is needed to build."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["symground", "symground.*"])],
    package_data={"symground": ["py.typed"], "symground.data": ["resources/*"], "symground.reports": ["*.html.jinja"]},
)
