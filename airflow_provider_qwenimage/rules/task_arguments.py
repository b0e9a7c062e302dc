"""Checks the arguments of the operators and the sensor: when the DAG is parsed, and once more when they are rendered.

The readers of `arguments.ARGUMENTS` are called when a task is created, when one is mapped, and in the running task. A
mapped task is created in its worker, where each retry would repeat an error of `__init__` and no one would see it: the
error is kept, and raised by the task itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, ParamSpec, TypeAlias

from airflow_provider_qwenimage.rules.arguments import (
    ARGUMENTS,
    REQUEST_FIELDS,
    Reader,
    read_path,
)
from airflow_provider_qwenimage.rules.templates import (
    is_of_the_template,
    is_rendered_later,
    is_template,
    render_text,
    watch,
)
from airflow_provider_qwenimage.text.messages import did_you_mean, is_blank, shown

if TYPE_CHECKING:
    import os

    import jinja2
    from airflow.providers.common.compat.sdk import ObjectStoragePath, XComArg
    from airflow.sdk.definitions.mappedoperator import OperatorPartial
    from airflow.sdk.definitions.param import DagParam

    # Users may pass a text or a template, the output of another task, `dag.param(…)`, or a function of the context.
    Text: TypeAlias = str | XComArg | DagParam | Callable[..., str]
    Folder: TypeAlias = Text | os.PathLike[str] | ObjectStoragePath
    Requests: TypeAlias = Folder | Sequence[Any] | Callable[..., Sequence[Any]]
    Provenance: TypeAlias = Literal["mark", "full", False]
    Dataset: TypeAlias = Literal["imagefolder"]

_Arguments = ParamSpec("_Arguments")
_MAY_BE_LEFT_OUT = (*REQUEST_FIELDS, "image_name", "label")


def reads_arguments(init: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Decorate the `__init__` of a `TaskArguments`, so that its arguments are checked and converted, except templates.

    Required arguments get a default for Airflow, so that the task of a mapped row without one can report the error.
    """
    missing = inspect.Parameter.empty
    signature = inspect.signature(init)
    own = {name: each.default for name, each in signature.parameters.items() if each.kind is each.KEYWORD_ONLY}

    @functools.wraps(init)
    def read_and_init(*given: _Arguments.args, **arguments: _Arguments.kwargs) -> None:
        (task,) = given
        assert isinstance(task, TaskArguments)  # noqa: S101  for the type checker
        for name, default in (own | dict.fromkeys(arguments.keys() - own.keys(), missing)).items():
            value = task.take_argument(name, arguments.get(name, default))
            if value is not missing:
                arguments[name] = value
                continue
            # The task is created all the same, to report the error.
            arguments.pop(name, None)
            if name in own:
                arguments[name] = None if default is missing else default
        init(*given, **arguments)
        # Airflow's own `__init__` takes these from the default arguments of the DAG.
        for name in (task.argument_readers.keys() & vars(task).keys()) - own.keys() - arguments.keys():
            task.take_argument(name, getattr(task, name))

    read_and_init.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect reads it
        parameters=[
            each.replace(default=None) if name in own and own[name] is missing else each
            for name, each in signature.parameters.items()
        ]
    )
    return read_and_init


class TaskArguments:
    """The checks of arguments that the operators and the sensor share.

    Attributes:
        argument_readers: The function that reads each argument.
        field_arguments: The arguments of template fields that are named differently, because each task of Airflow has
            an attribute with the name of the argument.
        native_fields: The template fields that may become a list or an object in a DAG with native rendering. All
            other fields are rendered as texts: otherwise the prompt 007 would become a number.
    """

    argument_readers: ClassVar[Mapping[str, Reader]] = ARGUMENTS
    field_arguments: ClassVar[Mapping[str, str]] = {}
    native_fields: ClassVar[Sequence[str]] = ()
    template_fields: Sequence[str]

    # The errors about arguments that the task will raise.
    refusals: Mapping[str, ValueError] = MappingProxyType({})
    _rendered_field = ""
    # The list or object in a template field that contains the content being rendered.
    _holder: object = None

    @classmethod
    def partial(cls, **arguments: Any) -> OperatorPartial:
        """Map this operator, and check its arguments as if it were not mapped.

        Raises:
            ValueError: If an argument that is not a template is not valid.
        """
        for name, value in arguments.items():
            cls.check_argument(name, value)
        mapped: Any = super().partial(**arguments)  # type: ignore[misc]  # BaseOperator's
        # Otherwise Airflow warns about an unused partial task if a check raises.
        mapped._expand_called = True  # noqa: SLF001  as `expand` of the class below
        for name, value in _defaults_of(mapped, arguments).items():
            if name not in arguments and name in _names(cls):
                cls.check_argument(name, value)
        mapped._expand_called = False  # noqa: SLF001
        checking: Any = _checking_class
        mapped.__class__ = checking(type(mapped))
        return mapped  # type: ignore[no-any-return]  # Airflow's own

    @classmethod
    def check_argument(cls, name: str, value: object) -> None:
        """Check an argument of a mapped task; arguments of Airflow itself pass."""
        if name in cls.argument_readers:
            cls.read_argument(name, value)

    @classmethod
    def check_name(cls, name: str) -> None:
        """Check that an argument exists: Airflow checks only when it creates the mapped task, in each of its tries.

        Raises:
            ValueError: If it does not exist.
        """
        if name in _names(cls) or name.startswith("_"):
            return
        # A decorated task's class is not known by its name.
        task = getattr(cls, "custom_operator_name", cls.__name__)
        meant = did_you_mean(name, sorted(_names(cls)))
        raise ValueError(f"{name!r} is not an argument of {task}{meant}; use the arguments that it documents.")

    def take_argument(self, name: str, value: object) -> Any:
        """Return an argument as `read_argument` does, or `inspect.Parameter.empty` for a bad one of a mapped task.

        Raises:
            ValueError: If it is not valid and the task is not mapped.
        """
        try:
            if self._was_mapped:
                self.check_name(name)
            return self.read_argument(name, value) if name in self.argument_readers else value
        except ValueError as error:
            self.refuse(name, error)
            return inspect.Parameter.empty

    def refuse(self, name: str, refusal: ValueError) -> None:
        """Refuse an argument when the task is created; a mapped task raises the error when it runs.

        Raises:
            ValueError: The refusal, if the task is not mapped.
        """
        if not self._was_mapped:
            raise refusal
        self.note_refusal(name, refusal)

    @property
    def _was_mapped(self) -> bool:
        return bool(getattr(self, "_BaseOperator__from_mapped", False))

    @classmethod
    def read_argument(cls, name: str, value: object) -> Any:
        """Return an argument before it is rendered, checked unless it is rendered later.

        Raises:
            ValueError: If it is not valid.
        """
        if value is inspect.Parameter.empty:
            raise ValueError(f"{name} is missing; it is required.")
        templated = (cls.field_arguments.get(field, field) for field in cls.template_fields)
        if name in templated and is_rendered_later(value):
            # Airflow renders texts, not paths.
            return value if (text := read_path(name, value)) is None else text
        read = cls.argument_readers[name](name, value)
        cls.check_content(name, read)
        return read

    @classmethod
    def check_content(cls, name: str, value: Any) -> None:
        """Check the content of an argument when the DAG is parsed; a class with more to check overrides it."""

    def render_template(
        self, content: Any, context: Any, jinja_env: jinja2.Environment | None = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render as any operator does, but note a template without a value, so that `check_rendered` refuses it."""
        field = None
        if self._holder is None:
            field = next((name for name in self.template_fields if getattr(self, name, None) is content), None)
            self._rendered_field = self.field_arguments.get(field, field) if field else self._rendered_field
        render: Any = super().render_template  # type: ignore[misc]  # BaseOperator's
        if self._rendered_field not in self.argument_readers:
            # An argument of a decorated function may be the same object as one of the task.
            with self._inside(content):
                return render(content, context, jinja_env, seen_oids)
        if is_template(content):
            environment = jinja_env or self.get_template_env()  # type: ignore[attr-defined]  # BaseOperator's
            return self._render_watched(content, context, environment, render, is_whole=field is not None)
        with self._inside(content):
            rendered = render(content, context, jinja_env, seen_oids)
        may_be_none = field is None or self._rendered_field in _MAY_BE_LEFT_OUT
        if rendered is None and content is not None and not may_be_none:
            self._refuse(content, "is None when the task runs")
        return rendered

    def _render_watched(
        self, template: str, context: Any, environment: jinja2.Environment, render: Any, *, is_whole: bool
    ) -> Any:
        """Render a template, and note a refusal if it cannot be rendered or an expression in it has no text.

        Args:
            template: The template.
            context: The task's context.
            environment: Airflow's environment.
            render: Airflow's own `render_template`.
            is_whole: Whether the template is all of a template field.
        """
        kept = self._kept_natively(is_whole=is_whole)
        rendered = None
        try:
            if kept:
                watched, why_no_text = watch(environment, lists=True)
                rendered = render(template, context, watched)
            if not isinstance(rendered, kept) or isinstance(rendered, str):
                # The text of a whole list can be read again.
                watched, why_no_text = watch(environment, lists=Sequence in kept)
                rendered = render_text(watched.from_string(template), context)
        except Exception as error:
            if not is_of_the_template(error):
                raise
            # Raised here, each retry would repeat it and no one would see it. A ValueError often quotes a value.
            why = "" if isinstance(error, ValueError) else f": {error}"
            self._refuse(template, f"cannot be rendered ({type(error).__name__}{why})")
            return template
        self._refuse_without_text(template, rendered, why_no_text)
        return rendered

    def _refuse_without_text(self, template: object, rendered: object, why_no_text: Sequence[str]) -> None:
        if why_no_text:
            # Without the rendered text: an object's may contain a password, and a connection's does.
            self._refuse(template, f"does not render as intended, because an expression in it {why_no_text[0]}")
        elif isinstance(rendered, str) and is_blank(rendered):
            self._refuse(template, f"renders to {shown(rendered)}")

    @contextmanager
    def _inside(self, content: object) -> Iterator[None]:
        """Remember the list or object whose content is being rendered: its texts are the fields of a request."""
        before, self._holder = self._holder, content
        try:
            yield
        finally:
            self._holder = before

    def _kept_natively(self, *, is_whole: bool) -> tuple[type, ...]:
        """Return the classes of values that native rendering may return; anything else is rendered as a text."""
        if self._rendered_field not in self.native_fields or isinstance(self._holder, Mapping):
            return ()
        return (Sequence, Mapping) if is_whole else (Mapping,)

    def _refuse(self, template: object, problem: str) -> None:
        refusal = ValueError(
            f"{self._rendered_field} is {shown(template)}, which {problem}; it must be a template that renders to a "
            "value. Nothing was submitted. Pass the value, or a default in the template: {{ … or 'default' }}."
        )
        self.note_refusal(self._rendered_field, refusal)

    def note_refusal(self, name: str, refusal: ValueError) -> None:
        """Keep the error about an argument for `check_rendered`; an earlier error about it takes precedence."""
        self.refusals = {name: refusal} | dict(self.refusals)

    def check_rendered(self, *names: str) -> None:
        """Check the arguments in the running task, before it does anything.

        Args:
            names: The template fields; all of them if none is named.

        Raises:
            ValueError: If a template has no value, or an argument is not valid.
        """
        for name, refusal in self.refusals.items():
            if name in names or not names:
                raise refusal
        for field in names or self.template_fields:
            name = self.field_arguments.get(field, field)
            if name in self.argument_readers and name not in self.native_fields:
                setattr(self, field, self.argument_readers[name](name, getattr(self, field)))


def _find_names(operator: type[Any]) -> frozenset[str]:
    """Return the names of the arguments that an operator and its bases take."""
    inits = [vars(base)["__init__"] for base in operator.__mro__ if "__init__" in vars(base)]
    return frozenset(name for init in inits for name in inspect.signature(init).parameters)


_names: Callable[[Any], frozenset[str]] = functools.cache(_find_names)


def _defaults_of(mapped: OperatorPartial, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default arguments of a mapped task, which Airflow adds only when it creates the task."""
    holders = (mapped.kwargs.get("dag"), mapped.kwargs.get("task_group"))
    defaults = [getattr(holder, "default_args", None) for holder in holders] + [arguments.get("default_args")]
    return {name: value for each in defaults for name, value in (each or {}).items()}


@functools.cache
def _checking_class(partial: type[Any]) -> type[Any]:
    """Return a subclass of the class of a partial task, which also checks the values to map over."""

    def expand(self: Any, **mapped: Any) -> Any:
        # Otherwise Airflow warns about an unused partial task if a check raises.
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
                self.operator_class.check_name(str(name))
                self.operator_class.check_argument(name, value)
        return partial.expand_kwargs(self, kwargs, **more)

    return type(partial.__name__, (partial,), {"__slots__": (), "expand": expand, "expand_kwargs": expand_kwargs})
