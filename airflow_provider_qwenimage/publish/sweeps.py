"""Makes the rows of a batch, or of a mapped task, from all combinations of prompts, seeds and other values. No I/O."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE, RANDOM_SEED
from airflow_provider_qwenimage.publish.prompt_patterns import MOST_COUNTED, PromptPattern
from airflow_provider_qwenimage.rules.arguments import is_left_out, read_argument
from airflow_provider_qwenimage.rules.image_texts import seed_name
from airflow_provider_qwenimage.rules.numbers import integer_of
from airflow_provider_qwenimage.rules.request_rows import MAX_ROWS
from airflow_provider_qwenimage.rules.templates import is_rendered_later, is_template
from airflow_provider_qwenimage.text.messages import is_blank, printable, shorten, shown

if TYPE_CHECKING:
    from typing import SupportsIndex

    from airflow_provider_qwenimage.rules.arguments import Number
    from airflow_provider_qwenimage.rules.task_arguments import Text

# The other parts of a label are short.
_MOST_PROMPT_IN_LABEL = 100
# The fields that may have several values, in the order of labels and descriptions.
_PLURALS = {"prompt": "prompts", "seed": "seeds", "size": "sizes", "output_format": "formats"}
_ONE_OR_MORE = "one value, or a list or another iterable of values in their order"


class Sweep(list[dict[str, Any]]):
    """The rows of a sweep: a list that is printed in a few words.

    Args:
        rows: The rows.
        counts: The number of values of each field that has several.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = (), counts: Mapping[str, int] | None = None) -> None:
        super().__init__(rows)
        self._counts = dict(counts or {})

    def __repr__(self) -> str:
        count = len(self)
        # Not if somebody has added or removed rows.
        is_product = bool(self._counts) and math.prod(self._counts.values()) == count
        of_what = f": {_described(self._counts)}" if is_product else ""
        plural = "" if count == 1 else "s"
        return f"<Sweep of {count:,} image{plural}, about {count * CREDITS_PER_IMAGE:,} credits{of_what}>"


@dataclass(frozen=True)
class _Axis:
    """The values of a field, and what a label calls each of them."""

    name: str
    values: Sequence[Any]
    labels: Sequence[str]


def sweep(
    prompt: Text | Iterable[Text | Number],
    *,
    size: Text | Iterable[Text | None] | None = None,
    output_format: Text | Iterable[Text | None] | None = None,
    callback_url: Text | None = None,
    seed: Text | Number | Iterable[Text | Number | None] | None = None,
    limit: SupportsIndex | None = 1000,
) -> Sweep:
    r"""Return a row for each combination of prompts, sizes, formats and seeds: the argument `requests` of a batch.

    ``QwenImageBatchOperator(requests=sweep("a {red|blue} {fox|cat}", seed=range(4)), …)`` draws 16 images. It can also
    be mapped over: ``QwenImageGenerateOperator.partial(…).expand_kwargs(sweep(…))``. The order of the rows is that of
    the arguments: the prompt changes slowest, the seed fastest. So every prompt has the same seeds. Each row has a
    `label`, made of what varies, such as ``red fox · seed 3``. It does the same in each parse of a DAG file.

    Args:
        prompt: A text is a pattern: ``{red|blue}`` means one or the other, also in one another, and an alternative may
            be empty: ``a {|big }fox``. Braces without ``|`` and Jinja are kept. A backslash before ``{``, ``|``, ``}``
            or a backslash makes it an ordinary character. In a list of prompts, all texts are taken as they are.
        size: A size or several, in order; None for the default of the task.
        output_format: A format or several.
        callback_url: An http(s) URL for all rows.
        seed: A seed or several, such as ``range(4)``; None for random ones. The rows of ``[-1, -1]`` are two random
            images of each prompt.
        limit: The largest number of rows, which is checked before any is made; None for that of a batch, a million.

    Returns:
        A list of dicts. Arguments that are left out are not in them.

    Raises:
        ValueError: If a value is not valid, unless it is a template; if a pattern is not complete; if there would be
            more rows than `limit`; or if equal rows have the same seed, because they would be one image.
    """
    most = _read_limit(limit)
    pattern = PromptPattern(prompt) if isinstance(prompt, str) else None
    others = {"size": size, "output_format": output_format, "seed": seed}
    given = {name: _values(name, value, most) for name, value in others.items() if not is_left_out(value)}
    prompts = _values("prompt", prompt, most) if pattern is None else ()
    counts = {"prompt": len(prompts) if pattern is None else pattern.count}
    counts |= {name: len(values) for name, values in given.items()}
    _check_limit(counts, most)
    axes = [
        _axis("prompt", prompts) if pattern is None else _axis_of(pattern),
        *(_axis(name, values) for name, values in given.items()),
    ]
    _refuse_equal_rows(axes)
    same = {} if is_left_out(callback_url) else {"callback_url": _read("callback_url", callback_url)}
    return Sweep(_rows(axes, same), {name: count for name, count in counts.items() if count > 1})


def _read_limit(limit: object) -> int:
    try:
        most = MAX_ROWS if limit is None else integer_of(limit)
    except (TypeError, ValueError, OverflowError):
        most = 0
    if most < 1:
        raise ValueError(
            f"limit is {shown(limit)}; it must be an integer of at least 1, or None for that of a batch ({MAX_ROWS:,})."
        )
    return min(most, MAX_ROWS)


def _values(name: str, value: Any, most: int) -> Sequence[Any]:
    """Return the values of a field, of which only `most` and one more are read."""
    if isinstance(value, AbstractSet | Mapping):
        raise ValueError(f"{name} is a {type(value).__name__}, which has no order; it must be {_ONE_OR_MORE}.")
    dimensions = getattr(value, "ndim", 1)
    if isinstance(value, str | bytes) or is_rendered_later(value) or not (isinstance(value, Iterable) and dimensions):
        return [value]
    if dimensions > 1:
        raise ValueError(f"{name} is a {type(value).__name__} of {dimensions} dimensions; it must be {_ONE_OR_MORE}.")
    values = list(itertools.islice(value, most + 1))
    if not values:
        raise ValueError(f"{name} is {shown(value)}, which has no values; it must be {_ONE_OR_MORE}.")
    return values


def _check_limit(counts: Mapping[str, int], most: int) -> None:
    """Check the number of rows.

    Args:
        counts: The number of values of each field. One more than `most` means that there may be still more.
        most: The limit.
    """
    count = math.prod(counts.values())
    if count <= most:
        return
    is_cut = any(each in (most + 1, MOST_COUNTED) for each in counts.values())
    rows = f"more than {most:,}" if is_cut else f"{count:,}"
    what = f"the sweep has {rows} rows ({_described(counts, most)})"
    if most == MAX_ROWS:
        raise ValueError(
            f"limit is None or too high: {what}, and a batch has at most {MAX_ROWS:,}. Split it into several."
        )
    raise ValueError(
        f"limit is {most}, and {what}, each of which costs about {CREDITS_PER_IMAGE} credits; it must be at least the "
        "number of rows. Pass fewer values, or a higher limit."
    )


def _described(counts: Mapping[str, int], most: int | None = None) -> str:
    def number(count: int) -> str:
        is_cut = most is not None and count in (most + 1, MOST_COUNTED)
        return f"more than {count - 1:,}" if is_cut else f"{count:,}"

    return " x ".join(
        f"{number(counts[name])} {plural}" for name, plural in _PLURALS.items() if counts.get(name, 1) > 1
    )


def _read(name: str, value: object) -> Any:
    """Return a value as the package uses it, checked unless it is rendered later. Functions in rows are not called."""
    return value if is_rendered_later(value) and not callable(value) else read_argument(name, value)


def _axis(name: str, given: Sequence[object]) -> _Axis:
    values = [_read(name, value) for value in given]
    labels = [_label(name, value, number) for number, value in enumerate(values, start=1)]
    return _Axis(name, values, _distinct(labels) if name == "prompt" else labels)


def _axis_of(pattern: PromptPattern) -> _Axis:
    values, labels = [], []
    for number, expansion in enumerate(pattern, start=1):
        values.append(_read("prompt", expansion.text))
        chosen = " ".join(text for part in expansion.chosen if (text := part.strip()))
        labels.append(_label("prompt", chosen or "(none)", number))
    return _Axis("prompt", values, _distinct(labels))


def _label(name: str, value: object, number: int) -> str:
    """Return what a label calls a value; by its number, if it is a template, which must not be rendered in a label."""
    if name == "seed" and isinstance(value, int):
        return seed_name(value)
    if not isinstance(value, str) or is_template(value) or is_blank(value):
        return f"{name.replace('_', ' ')} no. {number}"
    return shorten(printable(value), _MOST_PROMPT_IN_LABEL)


def _distinct(labels: Iterable[str]) -> list[str]:
    """Return labels of which no two are equal: a number is added to those that are."""
    found: dict[str, None] = {}
    used: Counter[str] = Counter()
    for label in labels:
        own = label
        while own in found:
            used[label] += 1
            own = f"{label} ({used[label] + 1})"
        found[own] = None
    return list(found)


def _refuse_equal_rows(axes: Sequence[_Axis]) -> None:
    seeds = next((axis.values for axis in axes if axis.name == "seed"), [RANDOM_SEED])
    for axis in axes if any(seed != RANDOM_SEED for seed in seeds) else ():
        numbers: dict[object, int] = {}
        for number, value in enumerate(axis.values, start=1):
            if axis.name == "seed" and value == RANDOM_SEED:
                continue
            # Outputs of other tasks compare in their own ways.
            first = numbers.setdefault(value if isinstance(value, str | int) else id(value), number)
            if first != number:
                raise ValueError(
                    f"{axis.name} is {shown(value)} twice, as its values {first} and {number}; it must be another one "
                    "each time, because equal rows with one seed are one image. Leave one of them out, or let the seed "
                    "be random (-1)."
                )


def _rows(axes: Sequence[_Axis], same: dict[str, Any]) -> Iterator[dict[str, Any]]:
    varying = [
        index for name in _PLURALS for index, axis in enumerate(axes) if axis.name == name and len(axis.values) > 1
    ]
    labels = (
        " · ".join(chosen[index] for index in varying) for chosen in itertools.product(*(axis.labels for axis in axes))
    )
    names = [axis.name for axis in axes]
    for values, label in zip(itertools.product(*(axis.values for axis in axes)), _distinct(labels), strict=True):
        yield dict(zip(names, values, strict=True)) | same | ({"label": label} if varying else {})
