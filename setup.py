"""Lists the packages; everything else stands in pyproject.toml.

`rules/` is shipped as `trainlint_rules`, which `package-dir` cannot find by itself.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["trainlint", "trainlint.*"]),
        *("trainlint_" + name for name in find_packages(include=["rules", "rules.*"])),
    ]
)
