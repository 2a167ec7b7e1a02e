"""Widths of a slimmable net: the share of its channels that run, and how a share becomes a number of channels.

Sandler et al., "MobileNetV2", CVPR 2018 (the rounding to multiples of 8); Yu, Huang, "Universally Slimmable Networks",
ICCV 2019 (one width for the whole net).
"""

from collections.abc import Mapping

from lowbit.errors import InputError

Width = float | Mapping[str, float]  # of the whole net, or by the name of each layer that has a width of its own
MOST = 1000  # widths in one list


def make_divisible(value: float, divisor: int = 8, minimum: int = 1) -> int:
    """The multiple of `divisor` nearest to `value`, at least `minimum` and never below 0.9 of the value."""
    near = max(minimum, int(value + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * value else near


def channels_at(channels: int, width: float, ratio: int = 1) -> int:
    """How many of `channels` run at a width.

    Args:
        channels: all of them.
        width: share in (0, 1].
        ratio: the number is a multiple of it (the expansion of an inverted residual), and the rest is rounded.
    """
    return min(channels, make_divisible(channels * width / ratio) * ratio)


def check_width(width: float) -> float:
    """The width.

    Raises:
        InputError: it is not in (0, 1].
    """
    if not 0 < width <= 1:  # also NaN
        raise InputError(f"width {width} is not in (0, 1]: give the share of the channels that run, such as 0.5")
    return width


def widths_in(width: Width) -> tuple[float, ...]:
    """The width; or widths by layer, rising, each once."""
    return tuple(sorted(set(width.values()))) if isinstance(width, Mapping) else (width,)


def show_width(width: Width) -> str:
    """As it is printed: `0.25`, or `0.25..1 by layer`."""
    shown = widths_in(width)
    ends = "..".join(f"{one:g}" for one in dict.fromkeys((shown[0], shown[-1])))
    return f"{ends} by layer" if isinstance(width, Mapping) else ends


def parse_widths(text: str) -> tuple[float, ...]:
    """Widths of `0.25,0.5` or `0.25:1.0:0.05` (first, last, step), rising, one of those that are printed alike.

    Raises:
        InputError: not a list of widths, or one that is not in (0, 1].
    """
    found: list[float] = []
    for part in text.split(","):
        try:
            numbers = [float(number) for number in part.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            found.append(check_width(numbers[0]))
            continue
        first, last, step = numbers if len(numbers) == 3 else (1.0, 0.0, 0.0)
        if not (0 < first <= last and step > 0 and (last - first) / step < MOST):
            raise InputError(
                f"widths {text!r:.80}: give widths such as 0.25,0.5, or FIRST:LAST:STEP as in 0.25:1.0:0.05"
            )
        count = int((last - first) / step + 1e-6) + 1
        found += [check_width(round(first + number * step, 10)) for number in range(count)]
    return tuple(sorted({show_width(width): width for width in found}.values()))
