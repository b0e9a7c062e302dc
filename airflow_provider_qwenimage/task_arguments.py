"""Checks the arguments of the operators and the sensor: when the DAG is parsed, and once more when they are rendered.

What `arguments.ARGUMENTS` says of each is asked here at the moments that Airflow offers: while a task is made, while
one is mapped, and in the task. A mapped task is made in its worker, where an error of `__init__` would be met by every
retry and shown nowhere; it is kept there, and raised by the task itself.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeAlias

from airflow_provider_qwenimage.arguments import (
    ARGUMENTS,
    REQUEST_FIELDS,
    Reader,
    is_rendered_later,
    is_template,
    read_path,
)
from airflow_provider_qwenimage.contract import shown

if TYPE_CHECKING:
    import os

    import jinja2
    from airflow.providers.common.compat.sdk import ObjectStoragePath, XComArg
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

    # What users may pass: a text or a template of it; the output of another task; a function of the context.
    Text: TypeAlias = str | XComArg | Callable[..., str]
    Folder: TypeAlias = Text | os.PathLike[str] | ObjectStoragePath
    Requests: TypeAlias = Folder | Sequence[Any] | Callable[..., Sequence[Any]]

_Arguments = ParamSpec("_Arguments")


def reads_arguments(init: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Have an operator's `__init__` get each of its arguments checked and converted, templates apart.

    What is required may be missing for Airflow, so that a mapped row without it can say so in its task.

    Args:
        init: The `__init__` of a `TaskArguments`.
    """
    missing = inspect.Parameter.empty
    signature = inspect.signature(init)
    own = {name: each.default for name, each in signature.parameters.items() if each.kind is each.KEYWORD_ONLY}

    @functools.wraps(init)
    def read_and_init(*given: _Arguments.args, **arguments: _Arguments.kwargs) -> None:
        (task,) = given
        assert isinstance(task, TaskArguments)  # noqa: S101  tells the type checker what it is
        for name, default in (own | dict.fromkeys(arguments.keys() - own.keys(), missing)).items():
            if name not in task.argument_readers:
                continue
            try:
                arguments[name] = task.read_argument(name, arguments.get(name, default))
            except ValueError as error:
                if not getattr(task, "_BaseOperator__from_mapped", False):
                    raise
                task.note_refusal(name, error)
                # The task is made all the same, to say so.
                arguments.pop(name, None)
                if name in own:
                    arguments[name] = None if default is missing else default
        init(*given, **arguments)

    read_and_init.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what inspect looks for
        parameters=[
            each.replace(default=None) if name in own and own[name] is missing else each
            for name, each in signature.parameters.items()
        ]
    )
    return read_and_init


class TaskArguments:
    """What the operators and the sensor share: the checks of their arguments.

    Attributes:
        argument_readers: What reads each argument.
        native_fields: The template fields that keep what a DAG with native rendering makes of them, if it is a list
            or an object. All other fields are texts, and rendered as such: else the prompt 007 would be a number.
    """

    argument_readers: ClassVar[Mapping[str, Reader]] = ARGUMENTS
    native_fields: ClassVar[Sequence[str]] = ()
    template_fields: Sequence[str]

    # What is wrong with an argument, for the task to say.
    refusals: Mapping[str, ValueError] = MappingProxyType({})
    _rendered_field = ""
    _in_row = False

    @classmethod
    def partial(cls, **arguments: Any) -> OperatorPartial:
        """Map this operator, as any; its arguments are checked as if it were not mapped.

        Raises:
            ValueError: If an argument that is not a template is not what is allowed.
        """
        for name, value in arguments.items():
            cls.check_argument(name, value)
        mapped = super().partial(**arguments)  # type: ignore[misc]  # BaseOperator's
        checking: Any = _checking_class
        mapped.__class__ = checking(type(mapped))
        return mapped  # type: ignore[no-any-return]  # Airflow's own

    @classmethod
    def check_argument(cls, name: str, value: object) -> None:
        """Check one of the arguments of a task that is mapped; what is Airflow's own passes."""
        if name in cls.argument_readers:
            cls.read_argument(name, value)

    @classmethod
    def read_argument(cls, name: str, value: object) -> Any:
        """Return what an argument is before it is rendered, checked if it is known already.

        Raises:
            ValueError: If it is not what is allowed.
        """
        if value is inspect.Parameter.empty:
            raise ValueError(f"{name} is missing; it is required.")
        if name in cls.template_fields and is_rendered_later(value):
            # Airflow renders texts, and no paths.
            return value if (text := read_path(name, value)) is None else text
        read = cls.argument_readers[name](name, value)
        cls.check_content(name, read)
        return read

    @classmethod
    def check_content(cls, name: str, value: Any) -> None:
        """Check, while the DAG is parsed, what is in an argument beyond its kind."""

    def render_template(
        self, content: Any, context: Any, jinja_env: jinja2.Environment | None = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render as any operator, but note a template that has nothing to say, for `check_rendered` to refuse it."""
        field = next((name for name in self.template_fields if getattr(self, name, None) is content), None)
        self._rendered_field = field or self._rendered_field
        render: Any = super().render_template  # type: ignore[misc]  # BaseOperator's
        if not is_template(content):
            with self._inside(content):
                rendered = render(content, context, jinja_env, seen_oids)
            # A field of a request may be left out.
            if rendered is None and content is not None and field is not None and field not in REQUEST_FIELDS:
                self._refuse(content, "is None when the task runs")
            return rendered
        kept = self._kept_natively(is_whole=field is not None)
        environment = jinja_env or self.get_template_env()  # type: ignore[attr-defined]  # BaseOperator's
        watched, saw_nothing = _watch(environment)
        try:
            rendered = render(content, context, watched) if kept else None
            if not isinstance(rendered, kept) or isinstance(rendered, str):
                rendered = _render_text(watched.from_string(content), context)
        except Exception as error:
            # Jinja's own errors tell of the template; raised here, they would be met by each retry and shown nowhere.
            if not any(base.__module__.startswith("jinja2.") for base in type(error).__mro__):
                raise
            self._refuse(content, f"cannot be rendered ({error})")
            return content
        if saw_nothing or (isinstance(rendered, str) and not rendered.strip()):
            why = ", because an expression in it has no value" if saw_nothing else ""
            self._refuse(content, f"renders to {shown(rendered)}{why}")
        return rendered

    @contextmanager
    def _inside(self, content: object) -> Iterator[None]:
        """Know, while an object is rendered, that what is rendered are the fields of a request: texts, as all are."""
        before, self._in_row = self._in_row, isinstance(content, Mapping)
        try:
            yield
        finally:
            self._in_row = before

    def _kept_natively(self, *, is_whole: bool) -> tuple[type, ...]:
        """Return the classes of what native rendering may make of a template; anything else is rendered as a text."""
        if self._rendered_field not in self.native_fields or self._in_row:
            return ()
        return (Sequence, Mapping) if is_whole else (Mapping,)

    def _refuse(self, template: object, story: str) -> None:
        refusal = ValueError(
            f"{self._rendered_field} is {shown(template)}, which {story}; allowed is a template that renders to a "
            "value. Nothing was submitted. Give the value, or a default in the template: {{ … or 'default' }}."
        )
        self.note_refusal(self._rendered_field, refusal)

    def note_refusal(self, name: str, refusal: ValueError) -> None:
        """Keep what is wrong with an argument for `check_rendered`."""
        self.refusals = {name: refusal} | dict(self.refusals)

    def check_rendered(self, *names: str) -> None:
        """Check the arguments in the task, before it does anything.

        Args:
            names: The template fields; all if none is named.

        Raises:
            ValueError: If a template rendered to nothing, or an argument is not what is allowed.
        """
        for name, refusal in self.refusals.items():
            if name in names or not names:
                raise refusal
        for name in names or self.template_fields:
            if name in self.argument_readers and name not in self.native_fields:
                setattr(self, name, self.argument_readers[name](name, getattr(self, name)))


def _watch(environment: jinja2.Environment) -> tuple[jinja2.Environment, list[bool]]:
    """Return an environment that renders the same, and a list that is filled if it is to print what has no value."""
    import jinja2

    found: list[bool] = []
    others = environment.finalize

    # Not of the context, Jinja would also print for it what stands in branches that are not taken.
    @jinja2.pass_context
    def finalize(_: jinja2.runtime.Context, value: Any) -> Any:
        if others is not None:
            value = others(value)
        if value is None or (isinstance(value, jinja2.Undefined) and not isinstance(value, jinja2.StrictUndefined)):
            found.append(True)
        return value

    if hasattr(others, "jinja_pass_arg"):
        return environment, found
    return environment.overlay(finalize=finalize), found


def _render_text(template: jinja2.Template, context: Any) -> str:
    """Render to a text, in a DAG with native rendering as well; the context stays lazy, as with Airflow's own."""
    context = copy.copy(context)
    environment = template.environment
    context.update((name, value) for name, value in template.globals.items() if name not in context)
    names = environment.context_class(environment, context, template.name, template.blocks)
    return "".join(map(str, template.root_render_func(names)))


@functools.cache
def _checking_class(partial: type[Any]) -> type[Any]:
    """Return Airflow's class of what `partial()` returns, with the values to map over checked as well."""

    def expand(self: Any, **mapped: Any) -> Any:
        # Else Airflow would warn of the partial task that is left behind.
        self._expand_called = True
        for name, values in mapped.items():
            if isinstance(values, list | tuple):
                for value in values:
                    self.operator_class.check_argument(name, value)
        return partial.expand(self, **mapped)

    def expand_kwargs(self: Any, kwargs: Any, **more: Any) -> Any:
        self._expand_called = True
        for row in kwargs if isinstance(kwargs, list | tuple) else ():
            for name, value in row.items() if isinstance(row, Mapping) else ():
                self.operator_class.check_argument(name, value)
        return partial.expand_kwargs(self, kwargs, **more)

    return type(partial.__name__, (partial,), {"__slots__": (), "expand": expand, "expand_kwargs": expand_kwargs})
