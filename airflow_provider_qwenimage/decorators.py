"""The decorators `@task.qwenimage` and `@task.qwenimage_batch`: the function returns what the operator draws.

`from airflow_provider_qwenimage.decorators import qwenimage_task` is the same as `task.qwenimage`, with arguments that
editors and type checkers know.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, overload

from airflow.providers.common.compat.sdk import Asset, DecoratedOperator, conf, context_merge, task_decorator_factory

from airflow_provider_qwenimage import contract
from airflow_provider_qwenimage.client.connection import DEFAULT_CONN_ID
from airflow_provider_qwenimage.operators import QwenImageBatchOperator, QwenImageGenerateOperator
from airflow_provider_qwenimage.rules import wait_defaults
from airflow_provider_qwenimage.text.messages import shown

try:
    from airflow.sdk.bases.decorator import determine_kwargs
except ImportError:
    # Below Airflow 3.2. Not from the compatibility provider: the oldest one that this package allows does not have it.
    from airflow.utils.operator_helpers import determine_kwargs  # type: ignore[attr-defined]

if TYPE_CHECKING:
    import os
    from typing import SupportsIndex, TypeAlias, Unpack

    from airflow.providers.common.compat.sdk import Context, ObjectStoragePath
    from airflow.sdk.bases.decorator import Task

    from airflow_provider_qwenimage.rules.arguments import Number, Seconds
    from airflow_provider_qwenimage.rules.task_arguments import Dataset, Folder, Provenance, Text
    from airflow_provider_qwenimage.rules.task_options import TaskOptions

    Request: TypeAlias = str | Mapping[str, Any]
    Rows: TypeAlias = Iterable[Any] | os.PathLike[str] | ObjectStoragePath

__all__ = ["qwenimage_batch_task", "qwenimage_task"]

_Parameters = ParamSpec("_Parameters")
_Request = TypeVar("_Request", bound="Request")
_Rows = TypeVar("_Rows", bound="Rows")

# Stands for an argument until the function returns it.
_RETURNED = object()


class _DecoratedOperator(DecoratedOperator):
    """The task of a function that returns one argument of its operator, the next class in the order of inheritance."""

    # The argument that the function returns. It is no template field: nobody wrote what the function returned as one.
    returned_argument: ClassVar[str]
    _was_ended: bool = False

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.returned_argument in kwargs:
            task: Any = self
            name = self.returned_argument
            task.refuse(name, _returned_by_function(name, kwargs.pop(name), python_callable))
        kwargs[self.returned_argument] = _RETURNED
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    @classmethod
    def read_argument(cls, name: str, value: object) -> Any:
        """Return an argument, checked as that of the operator; the returned one is read when the task runs."""
        operator: Any = super()
        return value if value is _RETURNED else operator.read_argument(name, value)

    def execute(self, context: Context) -> Any:
        """Call the function, and execute the operator with what it returned.

        A deferred task is resumed without a call.
        """
        from airflow_provider_qwenimage.tasks.drawing import ended_from_outside
        from airflow_provider_qwenimage.tasks.failures import reporting_failures

        task: Any = self
        with reporting_failures(context["ti"]):
            task.check_rendered()
        # Its errors are those of any function: Airflow retries the task, or skips it.
        returned = self._call_function(context)
        if self._was_ended:
            raise ended_from_outside()
        with reporting_failures(context["ti"]):
            self.take_returned(_name_of(self.python_callable), returned)
        self.inlets.extend(each for each in (*self.op_args, *self.op_kwargs.values()) if isinstance(each, Asset))
        # Not `DecoratedOperator.execute`, which in Airflow 3.0 needs a method that its subclasses have, at its end.
        operator: Any = super(DecoratedOperator, self)
        return operator.execute(context)

    def on_kill(self) -> None:
        """Draw nothing, if the function is still running."""
        self._was_ended = True
        super().on_kill()

    def take_returned(self, function: str, returned: object) -> None:
        """Set the arguments that the function returned.

        Raises:
            ValueError: If they are not valid.
        """
        raise NotImplementedError

    def _call_function(self, context: Context) -> Any:
        # A copy: the function's arguments may have the names of the context's values.
        given: Any = copy.copy(context)
        context_merge(given, self.op_kwargs)
        # Airflow would refuse a value that is also given by position.
        for name in inspect.signature(self.python_callable).bind_partial(*self.op_args).arguments:
            if name in given:
                del given[name]
        return self.python_callable(*self.op_args, **determine_kwargs(self.python_callable, (), given))


class _QwenImageDecoratedOperator(_DecoratedOperator, QwenImageGenerateOperator):
    """The task of `@task.qwenimage`."""

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in QwenImageGenerateOperator.template_fields if name != "prompt"),
    )
    template_fields_renderers = DecoratedOperator.template_fields_renderers
    custom_operator_name = "@task.qwenimage"
    returned_argument = "prompt"

    def take_returned(self, function: str, returned: object) -> None:
        from airflow_provider_qwenimage.rules.arguments import check_named_image
        from airflow_provider_qwenimage.rules.returned_request import read_returned_request

        fields = {argument: field for field, argument in self.field_arguments.items()}
        for name, value in read_returned_request(function, returned).items():
            setattr(self, fields.get(name, name), value)
        check_named_image(self.image_name, self.output_path)

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Store and return the image; the function is not called again, so its label is the one that was pushed."""
        if self._was_mapped:
            from airflow_provider_qwenimage.rules.image_texts import check_label
            from airflow_provider_qwenimage.tasks.failures import logging_errors

            ti = context["ti"]
            with logging_errors("the label"):
                pushed = ti.xcom_pull(task_ids=ti.task_id, key="request", map_indexes=ti.map_index)
                self.image_label = check_label("label", pushed.get("label")) or self.image_label
            self.show_label(context)
        return super().execute_complete(context, event)


class _QwenImageBatchDecoratedOperator(_DecoratedOperator, QwenImageBatchOperator):
    """The task of `@task.qwenimage_batch`."""

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in QwenImageBatchOperator.template_fields if name != "requests"),
    )
    template_fields_renderers = DecoratedOperator.template_fields_renderers
    custom_operator_name = "@task.qwenimage_batch"
    returned_argument = "requests"

    def _call_function(self, context: Context) -> Any:
        from airflow_provider_qwenimage.batch.returned_requests import read_rows

        # A function that yields its rows runs while they are read.
        return read_rows(super()._call_function(context))

    def take_returned(self, function: str, returned: object) -> None:
        from airflow_provider_qwenimage.batch.returned_requests import read_returned_requests

        self.requests = read_returned_requests(function, returned)


@overload
def qwenimage_task(python_callable: Callable[_Parameters, _Request], /) -> Task[_Parameters, _Request]: ...
@overload
def qwenimage_task(
    *,
    multiple_outputs: bool = False,
    size: Text | None = contract.DEFAULT_SIZE,
    seed: Text | Number | None = contract.RANDOM_SEED,
    output_format: Text | None = contract.DEFAULT_OUTPUT_FORMAT,
    callback_url: Text | None = None,
    qwenimage_conn_id: Text = DEFAULT_CONN_ID,
    wait_for_completion: bool = False,
    deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
    poll_interval: Seconds = wait_defaults.DEFAULT_POLL_INTERVAL,
    timeout: Seconds = wait_defaults.DEFAULT_TIMEOUT,
    max_consecutive_failures: SupportsIndex = wait_defaults.DEFAULT_MAX_CONSECUTIVE_FAILURES,
    defer_after: Seconds = wait_defaults.DEFAULT_DEFER_AFTER,
    output_path: Folder | None = None,
    image_name: Text | Number | None = None,
    label: Text | Number | None = None,
    max_image_bytes: SupportsIndex = contract.DEFAULT_MAX_IMAGE_BYTES,
    overwrite: bool = False,
    durable: bool = True,
    max_credits: Number | None = None,
    prompt_in_asset_events: bool = False,
    provenance: Provenance = "mark",
    **kwargs: Unpack[TaskOptions],
) -> Callable[[Callable[_Parameters, _Request]], Task[_Parameters, _Request]]: ...
def qwenimage_task(python_callable: Callable[..., Any] | None = None, **arguments: Any) -> Any:
    """Draw the image that a function asks for. Costs credits (5 for each image, as documented).

    The function returns a prompt, or a dict with ``prompt`` and, if needed, ``size``, ``seed``, ``output_format``,
    ``callback_url``, ``image_name`` and ``label``, which take precedence over the decorator's. Nothing in it is
    rendered as a template. The task returns what `QwenImageGenerateOperator` returns, pushes the same XComs and records
    what it submits in the same way. The function is called in each try, and not when a deferred task is resumed; a
    retry resumes what is submitted, whatever the function then returns.

    Args:
        python_callable: The function, which is not async.
        **arguments: Those of `QwenImageGenerateOperator` but `prompt`. With `multiple_outputs` each entry of the
            returned dict is also an XCom of its own; the type that the function returns does not matter for that.

    Raises:
        ValueError: If an argument that is not a template is not valid.
    """
    return _decorator(_QwenImageDecoratedOperator, python_callable, arguments)


@overload
def qwenimage_batch_task(python_callable: Callable[_Parameters, _Rows], /) -> Task[_Parameters, _Rows]: ...
@overload
def qwenimage_batch_task(
    *,
    multiple_outputs: bool = False,
    output_path: Folder,
    max_in_flight: SupportsIndex = 16,
    max_credits: Number | None = None,
    max_failures: SupportsIndex = 0,
    overwrite: bool = False,
    qwenimage_conn_id: Text = DEFAULT_CONN_ID,
    poll_interval: Seconds = wait_defaults.DEFAULT_POLL_INTERVAL,
    timeout: Seconds = wait_defaults.DEFAULT_TIMEOUT,
    max_consecutive_failures: SupportsIndex = wait_defaults.DEFAULT_MAX_CONSECUTIVE_FAILURES,
    max_image_bytes: SupportsIndex = contract.DEFAULT_MAX_IMAGE_BYTES,
    provenance: Provenance = "mark",
    contact_sheet: bool = False,
    dataset: Dataset | None = None,
    dry_run: bool = False,
    **kwargs: Unpack[TaskOptions],
) -> Callable[[Callable[_Parameters, _Rows]], Task[_Parameters, _Rows]]: ...
def qwenimage_batch_task(python_callable: Callable[..., Any] | None = None, **arguments: Any) -> Any:
    """Draw the images that a function asks for, in one task. Each image costs credits (5, as documented).

    The function returns what `QwenImageBatchOperator` takes as `requests`: an iterable of prompts and of dicts with the
    fields of a request, or the path or URL of a file of them. It may also yield them. Nothing in the rows is rendered
    as a template. The function is called in each try, and should return the same rows: a retry finds its images by
    their names or requests, and draws, and pays for, those that it does not find.

    Args:
        python_callable: The function, which is not async.
        **arguments: Those of `QwenImageBatchOperator` but `requests`.

    Raises:
        ValueError: If an argument that is not a template is not valid.
    """
    return _decorator(_QwenImageBatchDecoratedOperator, python_callable, arguments)


def _decorator(operator_class: Any, python_callable: Callable[..., Any] | None, arguments: Mapping[str, Any]) -> Any:
    """Return a task, or a decorator of functions if there is no function yet."""
    _check_arguments(operator_class, arguments, python_callable)
    # Airflow would split what the task returns by the type that the function returns.
    options = {"multiple_outputs": False, **arguments}

    def decorate(function: Callable[..., Any]) -> Any:
        unwrapped = inspect.unwrap(function)
        if inspect.iscoroutinefunction(unwrapped) or inspect.isasyncgenfunction(unwrapped):
            raise ValueError(
                f"The function {_name_of(function)} is async; it must be a plain function (def), which may call "
                "asyncio.run(…)."
            )
        decorated: Any = task_decorator_factory(function, decorated_operator_class=operator_class, **options)
        checking: Any = _checking_class
        decorated.__class__ = checking(type(decorated))
        return decorated

    return decorate if python_callable is None else decorate(python_callable)


@functools.cache
def _checking_class(decorated: type[Any]) -> type[Any]:
    """Return a subclass of the class of a decorated function, which also checks the arguments of `override`."""

    def override(self: Any, **arguments: Any) -> Any:
        _check_arguments(self.operator_class, arguments, self.function)
        return decorated.override(self, **arguments)

    return type(decorated.__name__, (decorated,), {"override": override})


def _check_arguments(operator_class: Any, arguments: Mapping[str, Any], function: Callable[..., Any] | None) -> None:
    """Check the arguments of a decorator: a mapped task would report a bad one only when it runs."""
    for name, value in arguments.items():
        if name == operator_class.returned_argument:
            raise _returned_by_function(name, value, function)
        operator_class.check_name(name)
        operator_class.check_argument(name, value)


def _returned_by_function(name: str, value: object, function: Callable[..., Any] | None) -> ValueError:
    what = "the decorated function" if function is None else f"the function {_name_of(function)}"
    return ValueError(f"{name} is {shown(value)}; it must be left out, because {what} returns it.")


def _name_of(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
