"""Turns an exception into text for a row, and into the fingerprint that groups failures."""

import traceback as tracebacks
from pathlib import Path

from ..calls.arguments import MAX_ERROR, MAX_TRACEBACK, clean, clean_name
from ..transport.outcomes import fingerprint

_OUR_FOLDER = str(Path(__file__).parent.parent)


def describe(error: BaseException, place: str) -> dict[str, str]:
    """The fields of an outcome for an exception, even if its `__str__` raises.

    `place` replaces the location in the fingerprint if the traceback has none outside this package.
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error)
    except Exception as unprintable:
        text = f"<its message cannot be printed: {type(unprintable).__name__}>"
    frames = tracebacks.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if not frame.filename.startswith(_OUR_FOLDER)] or list(frames)
    if ours:
        place = f"{ours[-1].filename}:{ours[-1].name}:{ours[-1].lineno}"
    try:
        lines = "".join(tracebacks.format_exception(error))
    except Exception:
        lines = "".join(tracebacks.format_list(frames)) + f"{name}: {text}"
    short = text.partition("\n")[0] if len(text) > MAX_ERROR else text
    return {
        "error_type": clean_name(name),
        "error": clean(f"{kind.__qualname__}: {short}" if short else kind.__qualname__, MAX_ERROR),
        "traceback": clean(lines, MAX_TRACEBACK),
        "fingerprint": fingerprint(name, place),
    }
