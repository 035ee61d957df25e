"""Packages and their data; everything else is in pyproject.toml. No torch is needed to build.

Where torch and a C++ compiler are at hand (pip install --no-build-isolation) the extension is built too, with its CUDA
part where nvcc and a torch for CUDA are, and a failure only warns; otherwise `symground build` builds it later.
"""

import importlib.util
import os
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# By its path: importing symground needs what is not here.
spec = importlib.util.spec_from_file_location("_build", Path(__file__).parent / "symground" / "ops" / "_build.py")
builder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(builder)


class BuildExtension(build_ext):
    """One call of the compiler; the file is no Python module, and its name says neither Python nor machine."""

    def build_extension(self, ext):
        folder = Path(self.get_ext_fullpath(ext.name)).parent
        try:
            builder.build(folder)
            if builder.nvcc() is not None and builder.has_cuda(builder.torch_folder()):
                builder.build_cuda(folder)
        except (FileNotFoundError, RuntimeError) as error:
            raise CompileError(str(error)) from error  # which `optional` turns into a warning

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")[:-1], builder.FILE)


can_build = builder.torch_folder() is not None and builder.compiler() is not None

setup(
    # symground/kernels and symground/csrc are symlinks to folders which have no __init__.py (their READMEs say why).
    packages=[*find_packages(include=["symground", "symground.*"]), "symground.csrc", "symground.kernels"],
    package_data={
        "symground": ["py.typed"],
        "symground.csrc": ["README.md", "*.cpp", "*.cu", "*.h"],
        "symground.data": ["resources/*"],
        "symground.kernels": ["README.md"],
        "symground.reports": ["*.html.jinja"],
    },
    ext_modules=[Extension("symground.ops._C", [], optional=True)] if can_build else [],
    cmdclass={"build_ext": BuildExtension},
)
