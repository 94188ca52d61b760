"""Numbers and names as people read them."""

import math

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def number(value: float | None) -> str:
    """Four significant digits, e.g. 0.8914, 1.234e-16; "–" for None; whole numbers stay whole."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.4g}"


def byte_scale(largest: float) -> tuple[float, str]:
    """The factor and unit (decimal, as networks count) in which up to `largest` bytes are written."""
    power = min(int(math.log10(largest) // 3), len(_BYTE_UNITS) - 1) if largest >= 1 else 0
    return 1000.0**power, _BYTE_UNITS[power]


def bytes_text(count: float) -> str:
    """E.g. "1.23 MB"."""
    factor, unit = byte_scale(count)
    return f"{count:,.0f} B" if unit == "B" else f"{count / factor:.3g} {unit}"


def seconds_text(seconds: float) -> str:
    """E.g. "0.42 s", "46 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def spoken(key: str) -> str:
    """A metric's key in words: "validation_accuracy" → "validation accuracy"."""
    return key.replace("_", " ")


def counted(count: int, noun: str) -> str:
    """E.g. "1 client", "3 clients"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
