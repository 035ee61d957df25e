"""Packages and their data; everything else is in pyproject.toml. No torch is needed to build."""

from setuptools import find_packages, setup

setup(
    # symground/kernels is a symlink to kernels/, which has no __init__.py (its README says why).
    packages=[*find_packages(include=["symground", "symground.*"]), "symground.kernels"],
    package_data={
        "symground": ["py.typed"],
        "symground.data": ["resources/*"],
        "symground.kernels": ["README.md"],
        "symground.reports": ["*.html.jinja"],
    },
)
