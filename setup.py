"""Packages and their data; everything else is in pyproject.toml. No torch is needed to build.

Where torch and a C++ compiler are at hand (pip install --no-build-isolation) the extension is built too, with its CUDA
part where nvcc and a torch for CUDA are, and a failure only warns; otherwise `symground build` builds it later.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# By its path: importing symground needs what is not here.
spec = importlib.util.spec_from_file_location(
    "_build", Path(__file__).parent / "symground" / "ops" / "common" / "build.py"
)
builder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(builder)


class BuildExtension(build_ext):
    """One call of a compiler each; the files are no Python modules, and their names say neither Python nor machine."""

    def build_extension(self, ext):
        make = builder.build_cuda if ext.name == CUDA else builder.build
        try:
            make(Path(self.get_ext_fullpath(ext.name)).parent)
        except (FileNotFoundError, RuntimeError, ValueError) as error:
            raise CompileError(str(error)) from error  # which `optional` turns into a warning

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"


def package_root():
    """The folder in which the package lies, as setuptools is to see it.

    An editable install adds this folder to those that Python imports from. setuptools' import hook, the other way, is
    asked last: after a folder that is only called like the package (a clone named symground, seen from the folder above
    it), and never by mypy or pyright. The repository itself would make its kernels/ importable as `kernels`, the name
    of a package that transformers looks for (5.0 does not start where it finds one without a version). So the folder is
    one that holds a link to the package and nothing else.
    """
    if "editable_wheel" not in sys.argv:
        return "."
    link = Path(".editable") / "symground"
    if not link.is_symlink():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path("..") / "symground", target_is_directory=True)
    return str(link.parent)


def families(folder):
    """Folders of symground/kernels and symground/csrc, which have no __init__.py (their READMEs say why)."""
    return [
        f"symground.{folder}",
        *(
            f"symground.{folder}.{path.name}"
            for path in sorted((Path("symground") / folder).iterdir())
            if path.is_dir() and path.name.isalnum()
        ),
    ]


CPU, CUDA = "symground.ops._C", "symground.ops._CUDA"
torch = builder.torch_folder()
# One of each file: an editable install copies what an extension names, and nothing that lies beside it.
buildable = [CPU] if torch is not None and builder.compiler() is not None else []
buildable += [CUDA] if buildable and builder.nvcc() is not None and builder.torch_cuda(torch) else []

setup(
    package_dir={"": package_root()},
    packages=find_packages(include=["symground", "symground.*"]) + families("kernels") + families("csrc"),
    package_data={
        "symground": ["py.typed"],
        **{name: ["README.md", "*.cpp", "*.cu", "*.h"] for name in families("csrc")},
        "symground.data": ["resources/*"],
        "symground.kernels": ["README.md"],
        "symground.reports.assets": ["*.html.jinja", "*.css", "*.js"],
        "symground.reports.pages": ["*.html.jinja", "*.css", "*.js"],
        "symground.reports.views": ["*.html.jinja", "*.css", "*.js"],
    },
    ext_modules=[Extension(name, [], optional=True) for name in buildable],
    cmdclass={"build_ext": BuildExtension},
)
