"""The text form of inputs, `2x3x32x32,2x16:long`, read without torch so that a typo costs nothing."""

from __future__ import annotations

from typing import Final

from trainlint.errors import InputError

DTYPES: Final = {
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "complex": "complex64",
    **{
        name: name
        for name in "float32 float64 float16 bfloat16 int64 int32 uint8 bool complex64".split()
    },
}


def parse_spec(text: str) -> list[tuple[tuple[int, ...], str]]:
    """(sizes, dtype name) of each argument: sizes separated by `x`, arguments by commas.

    A type may follow a colon; without one it is float. `:long` alone is one number. Raises
    `InputError`.
    """
    arguments = []
    for part in text.split(","):
        sizes, _, kind = part.strip().partition(":")
        if kind and kind not in DTYPES:
            raise InputError(f"--inputs: unknown type {kind!r}; known: {', '.join(DTYPES)}")
        try:
            shape = tuple(int(size) for size in sizes.split("x")) if sizes else ()
        except ValueError:
            shape = (-1,)
        if any(size < 0 for size in shape) or not part.strip():
            raise InputError(
                f"--inputs: {part.strip()!r} is not of the form 2x3x32x32 or 2x16:long"
            )
        arguments.append((shape, DTYPES[kind or "float"]))
    return arguments
