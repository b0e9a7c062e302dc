"""Checks the arguments of the operators and the sensor: when the DAG is parsed, and once more when they are rendered.

What `arguments.ARGUMENTS` says of each is asked here at the moments that Airflow offers: while a task is made, while
one is mapped, and in the task. A mapped task is made in its worker, where an error of `__init__` would be met by every
retry and shown nowhere; it is kept there, and raised by the task itself.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeAlias

from airflow_provider_qwenimage.rules.arguments import (
    ARGUMENTS,
    REQUEST_FIELDS,
    Reader,
    is_rendered_later,
    is_template,
    read_path,
)
from airflow_provider_qwenimage.rules.templates import is_of_the_template, render_text, watch
from airflow_provider_qwenimage.text.messages import is_blank, shown

if TYPE_CHECKING:
    import os

    import jinja2
    from airflow.providers.common.compat.sdk import ObjectStoragePath, XComArg
    from airflow.sdk.definitions.mappedoperator import OperatorPartial
    from airflow.sdk.definitions.param import DagParam

    # What users may pass: a text or a template of it; the output of another task; `dag.param(…)`; a function of the
    # context.
    Text: TypeAlias = str | XComArg | DagParam | Callable[..., str]
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
            value = task.take_argument(name, arguments.get(name, default))
            if value is not missing:
                arguments[name] = value
                continue
            # The task is made all the same, to say what is wrong.
            arguments.pop(name, None)
            if name in own:
                arguments[name] = None if default is missing else default
        init(*given, **arguments)
        # What Airflow's own `__init__` has taken from the default arguments of the DAG.
        for name in (task.argument_readers.keys() & vars(task).keys()) - own.keys() - arguments.keys():
            task.take_argument(name, getattr(task, name))

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
    # What the content that is being rendered is in, below a template field.
    _holder: object = None

    @classmethod
    def partial(cls, **arguments: Any) -> OperatorPartial:
        """Map this operator, as any; its arguments are checked as if it were not mapped.

        Raises:
            ValueError: If an argument that is not a template is not what is allowed.
        """
        for name, value in arguments.items():
            cls.check_argument(name, value)
        mapped: Any = super().partial(**arguments)  # type: ignore[misc]  # BaseOperator's
        # Else Airflow would warn of the partial task that is left behind.
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
        """Check one of the arguments of a task that is mapped; what is Airflow's own passes."""
        if name in cls.argument_readers:
            cls.read_argument(name, value)

    @classmethod
    def check_name(cls, name: str) -> None:
        """Check that there is such an argument: Airflow looks only once it makes the mapped task, in each of its tries.

        Raises:
            ValueError: If there is none.
        """
        if name in _names(cls) or name.startswith("_"):
            return
        near = difflib.get_close_matches(name, cls.argument_readers, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{name!r} is no argument of {cls.__name__}{meant}; allowed are those that it documents.")

    def take_argument(self, name: str, value: object) -> Any:
        """Return an argument as `read_argument` does; `inspect.Parameter.empty` if a mapped task has to refuse it.

        Raises:
            ValueError: If it is not what is allowed, and the task is not mapped.
        """
        is_mapped = getattr(self, "_BaseOperator__from_mapped", False)
        try:
            if is_mapped:
                self.check_name(name)
            return self.read_argument(name, value) if name in self.argument_readers else value
        except ValueError as error:
            if not is_mapped:
                raise
            self.note_refusal(name, error)
            return inspect.Parameter.empty

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
        field = None
        if self._holder is None:
            field = next((name for name in self.template_fields if getattr(self, name, None) is content), None)
            self._rendered_field = field or self._rendered_field
        render: Any = super().render_template  # type: ignore[misc]  # BaseOperator's
        if self._rendered_field not in self.argument_readers:
            return render(content, context, jinja_env, seen_oids)
        if not is_template(content):
            with self._inside(content):
                rendered = render(content, context, jinja_env, seen_oids)
            # A field of a request may be left out.
            if rendered is None and content is not None and field is not None and field not in REQUEST_FIELDS:
                self._refuse(content, "is None when the task runs")
            return rendered
        kept = self._kept_natively(is_whole=field is not None)
        environment = jinja_env or self.get_template_env()  # type: ignore[attr-defined]  # BaseOperator's
        rendered = None
        try:
            if kept:
                watched, why_no_text = watch(environment, lists=True)
                rendered = render(content, context, watched)
            if not isinstance(rendered, kept) or isinstance(rendered, str):
                # The text of a whole list can be read again.
                watched, why_no_text = watch(environment, lists=Sequence in kept)
                rendered = render_text(watched.from_string(content), context)
        except Exception as error:
            if not is_of_the_template(error):
                raise
            # Raised here, it would be met by each retry and shown nowhere. A ValueError often quotes a value.
            why = "" if isinstance(error, ValueError) else f": {error}"
            self._refuse(content, f"cannot be rendered ({type(error).__name__}{why})")
            return content
        self._refuse_without_text(content, rendered, why_no_text)
        return rendered

    def _refuse_without_text(self, template: object, rendered: object, why_no_text: Sequence[str]) -> None:
        if why_no_text:
            # Not what was rendered: an object's text may have a password in it, a connection's has.
            self._refuse(template, f"does not render as meant, because an expression in it {why_no_text[0]}")
        elif isinstance(rendered, str) and is_blank(rendered):
            self._refuse(template, f"renders to {shown(rendered)}")

    @contextmanager
    def _inside(self, content: object) -> Iterator[None]:
        """Know, while an object is rendered, that what is rendered are the fields of a request: texts, as all are."""
        before, self._holder = self._holder, content
        try:
            yield
        finally:
            self._holder = before

    def _kept_natively(self, *, is_whole: bool) -> tuple[type, ...]:
        """Return the classes of what native rendering may make of a template; anything else is rendered as a text."""
        if self._rendered_field not in self.native_fields or isinstance(self._holder, Mapping):
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


def _find_names(operator: type[Any]) -> frozenset[str]:
    """Return the names of the arguments that an operator and its bases take."""
    inits = [vars(base)["__init__"] for base in operator.__mro__ if "__init__" in vars(base)]
    return frozenset(name for init in inits for name in inspect.signature(init).parameters)


_names: Callable[[Any], frozenset[str]] = functools.cache(_find_names)


def _defaults_of(mapped: OperatorPartial, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default arguments of a mapped task, which Airflow adds only once it is made."""
    holders = (mapped.kwargs.get("dag"), mapped.kwargs.get("task_group"))
    defaults = [getattr(holder, "default_args", None) for holder in holders] + [arguments.get("default_args")]
    return {name: value for each in defaults for name, value in (each or {}).items()}


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
                self.operator_class.check_name(str(name))
                self.operator_class.check_argument(name, value)
        return partial.expand_kwargs(self, kwargs, **more)

    return type(partial.__name__, (partial,), {"__slots__": (), "expand": expand, "expand_kwargs": expand_kwargs})
