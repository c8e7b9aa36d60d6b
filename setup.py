"""Lists the packages; everything else stands in pyproject.toml.

`rules/` is shipped as `trainlint_rules`, which `package-dir` cannot find by itself.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel


class EditableOnPath(editable_wheel):
    """An editable install that also puts the clone on the path.

    Setuptools asks its own finder last. A script beside the clone, which has the package's name, would get
    the clone as a namespace package before that, an empty `trainlint`; a package on the path comes first.
    """

    def _select_strategy(self, *given):
        return _WithPath(super()._select_strategy(*given), Path(self.project_dir).resolve())


class _WithPath:
    def __init__(self, strategy, folder):
        self._strategy, self._folder = strategy, folder

    def __call__(self, wheel, files, mapping):
        self._strategy(wheel, files, mapping)
        wheel.writestr("__editable__.trainlint.path.pth", f"{self._folder}\n")

    def __enter__(self):
        self._strategy.__enter__()
        return self

    def __exit__(self, *error):
        return self._strategy.__exit__(*error)


setup(
    cmdclass={"editable_wheel": EditableOnPath},
    packages=[
        *find_packages(include=["trainlint", "trainlint.*"]),
        *("trainlint_" + name for name in find_packages(include=["rules", "rules.*"])),
    ],
)
