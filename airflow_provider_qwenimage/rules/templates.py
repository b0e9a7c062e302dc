"""Finds and renders Jinja templates, and notes printed values without a text of their own, for which nobody should pay.

Jinja prints None as a word, a list as Python does, and a function by its address. No I/O.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from types import NoneType
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage.rules.arguments import path_text

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes

_JINJA = ("{{", "{%", "{#")
# Filters that turn any value into a text. `join` does so with the entries.
_TEXT_FILTERS = frozenset(
    {"capitalize", "center", "e", "escape", "forceescape", "format", "lower", "replace", "safe", "string"}
    | {"striptags", "title", "trim", "upper", "urlencode", "urlize"}
)
_PRINTED, _JOINED = "qwenimage_printed", "qwenimage_joined"
# The number of arguments with which `join` joins an attribute of the entries.
_WITH_ATTRIBUTE = 2


def is_template(value: object) -> bool:
    """Whether a value is a text with Jinja in it, so that it cannot be checked while the DAG is parsed."""
    return isinstance(value, str) and any(mark in value for mark in _JINJA)


def is_rendered_later(value: object) -> bool:
    """Whether Airflow replaces the value of a template field before the task runs.

    Args:
        value: A literal, a template, the output of another task, or a function.
    """
    text = value if isinstance(value, str) else path_text(value)
    if text is not None:
        return is_template(text)
    # A task function that was not called has the class of its operator.
    is_function = callable(value) and not hasattr(value, "operator_class")
    # A `Param` of the DAG has a `resolve` as well, which does not concern tasks.
    return is_function or (callable(getattr(value, "resolve", None)) and not hasattr(value, "has_value"))


def watch(environment: jinja2.Environment, *, lists: bool) -> tuple[jinja2.Environment, list[str]]:
    """Return an environment that renders the same, and a list that it fills with the problems of printed values.

    Args:
        environment: Airflow's environment of the DAG.
        lists: Whether lists and objects may be printed.
    """
    import jinja2

    found: list[str] = []
    others = environment.finalize

    def note(value: Any) -> Any:
        if why := _why_no_text(value, lists=lists):
            found.append(why)
        return value

    # Without the context, Jinja would also call it for constants in branches that are not taken.
    @jinja2.pass_context
    def printed(_: jinja2.runtime.Context, value: Any) -> Any:
        return note(value)

    @jinja2.pass_context
    def joined(_: jinja2.runtime.Context, values: Any) -> Any:
        return [note(value) for value in values] if isinstance(values, Iterable) else note(values)

    @jinja2.pass_context
    def finalize(_: jinja2.runtime.Context, value: Any) -> Any:
        return note(value if others is None else others(value))

    overlay = environment.overlay()
    if not hasattr(others, "jinja_pass_arg"):
        overlay.finalize = finalize
    overlay.filters = environment.filters | {_PRINTED: printed, _JOINED: joined}
    generator: Any = environment.code_generator_class
    overlay.code_generator_class = _watching(generator)
    return overlay, found


def render_text(template: jinja2.Template, context: Any) -> str:
    """Render to a text, even in a DAG with native rendering; the context stays lazy, as in Airflow itself."""
    context = copy.copy(context)
    environment = template.environment
    context.update((name, value) for name, value in template.globals.items() if name not in context)
    names = environment.context_class(environment, context, template.name, template.blocks)
    return "".join(map(str, template.root_render_func(names)))


def is_of_the_template(error: Exception) -> bool:
    """Whether an error while rendering is about the template itself, so that each retry would repeat it."""
    wrong_value = isinstance(error, ArithmeticError | AttributeError | TypeError | ValueError)
    return wrong_value or any(base.__module__.startswith("jinja2.") for base in type(error).__mro__)


def _why_no_text(value: Any, *, lists: bool) -> str | None:
    """Return why a value has no text that anybody intends to print, or None if it has one."""
    if isinstance(value, str):
        return None
    if _is_nothing(value):
        return "has no value"
    # The attributes of any class may raise anything.
    with suppress(Exception):
        if _is_for_programmers(value, lists=lists):
            return f"is a {value.__class__.__name__}, not a text"
    return None


def _is_nothing(value: Any) -> bool:
    import jinja2

    # Airflow looks some values up late, through a proxy that reports the class of the value.
    kind = value.__class__
    if issubclass(kind, jinja2.Undefined):
        return not issubclass(kind, jinja2.StrictUndefined)
    # Airflow 3 returns a marker for a variable that does not exist.
    if kind is NoneType or any(base.__name__ == "ArgNotSet" for base in kind.__mro__):
        return True
    # NaN, of any library.
    with suppress(Exception):
        return not isinstance(value, Mapping | Sequence | AbstractSet) and not bool(value == value)  # noqa: PLR0124
    return False


def _is_for_programmers(value: Any, *, lists: bool) -> bool:
    """Whether the text of a value is a representation of a Python or Airflow object for programmers."""
    kind = value.__class__
    is_array = hasattr(kind, "ndim") and bool(value.ndim)
    is_list = is_array or isinstance(value, Mapping | Sequence | AbstractSet)
    if is_list and lists:
        return False
    if is_array or isinstance(value, bytes | bytearray):
        return True
    if kind.__module__.partition(".")[0] == "airflow":
        # Check the class: any attribute of some of these objects looks up a variable.
        return not (issubclass(kind, os.PathLike) or hasattr(kind, "protocol"))
    if kind.__str__ is not object.__str__:
        return False
    return is_list or isinstance(value, Iterator) or callable(value) or repr(value).startswith("<")


@functools.cache
def _watching(generator: type[Any]) -> type[Any]:
    """Return a subclass of a code generator of Jinja whose templates note each value that is turned into a text."""
    from jinja2 import nodes

    class Watching(generator):  # type: ignore[misc]  # Jinja has two, one for native rendering
        def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:  # noqa: N802  Jinja's name
            for output in list(node.find_all(nodes.Output)):
                for each in output.nodes:
                    _watch_printed(each)
            super().visit_Template(node, frame)

    return Watching


def _watch_printed(node: Any, *, as_it_is: bool = True) -> None:
    """Change an expression that is printed, in place; values that are compared or passed to a function are not printed.

    Args:
        node: The expression.
        as_it_is: Whether its own value is printed, rather than the result of a filter or an operator.
    """
    from jinja2 import nodes

    parts = list(node.iter_child_nodes())
    if isinstance(node, nodes.Compare | nodes.Test):
        parts = []
    elif isinstance(node, nodes.Call):
        parts = [node.node]
    elif isinstance(node, nodes.CondExpr):
        # An `if` without an `else` prints an empty text: nothing is missing there.
        if as_it_is and node.expr2 is None:
            node.expr2 = nodes.Const("", lineno=node.lineno)
        parts = [each for each in (node.expr1, node.expr2) if each is not None]
    for part in parts:
        _watch_printed(part, as_it_is=isinstance(node, nodes.Concat) or (as_it_is and isinstance(node, nodes.CondExpr)))
    _watch_operands(node)


def _watch_operands(node: Any) -> None:
    """Change an operator or a filter that returns a text, in place, so that its operands are noted."""
    from jinja2 import nodes

    def noted(operand: nodes.Expr, name: str = _PRINTED) -> nodes.Expr:
        return nodes.Filter(operand, name, [], [], None, None, lineno=operand.lineno)

    if isinstance(node, nodes.Concat):
        node.nodes = [noted(each) for each in node.nodes]
    elif isinstance(node, nodes.Mod) and isinstance(node.left, nodes.Const) and isinstance(node.left.value, str):
        if isinstance(node.right, nodes.Tuple):
            node.right.items = [noted(each) for each in node.right.items]
        elif not isinstance(node.right, nodes.Dict):
            node.right = noted(node.right)
    elif isinstance(node, nodes.Filter) and node.node is not None:
        if node.name in _TEXT_FILTERS:
            node.node = noted(node.node)
            node.args = [noted(each) for each in node.args]
        elif node.name == "join" and not node.kwargs and len(node.args) < _WITH_ATTRIBUTE:
            node.node = noted(node.node, _JOINED)
