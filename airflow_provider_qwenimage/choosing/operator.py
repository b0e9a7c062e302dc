"""The operator that has a person choose among images, with Airflow's human in the loop (Airflow 3.1 and later)."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import BaseOperator, BaseOperatorLink

from airflow_provider_qwenimage.airflow_versions import HAS_HUMAN_IN_THE_LOOP
from airflow_provider_qwenimage.links import GENERATED_IMAGES
from airflow_provider_qwenimage.rules.arguments import CHOOSE_ARGUMENTS
from airflow_provider_qwenimage.rules.choices import Question, UnfitAnswerError, options_of
from airflow_provider_qwenimage.rules.task_arguments import TaskArguments, reads_arguments
from airflow_provider_qwenimage.tasks.lineage import ReportsLineage
from airflow_provider_qwenimage.text.messages import shown

if TYPE_CHECKING:
    from typing import SupportsIndex

    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial
    from airflow.sdk.execution_time.hitl import HITLUser

    from airflow_provider_qwenimage.choosing.task import Choosing
    from airflow_provider_qwenimage.rules.arguments import Seconds
    from airflow_provider_qwenimage.rules.task_arguments import Text

# Arguments of Airflow's operator that the task sets, and what to write instead.
_SET_BY_THE_TASK = {
    "body": "the task writes the text with the pictures. Put the question into subject",
    "multiple": "at_most decides whether several can be chosen",
    "options": "the options are the numbers of the images",
}
_MISSING = ""
if TYPE_CHECKING:
    from airflow.providers.standard.operators.hitl import HITLOperator
elif HAS_HUMAN_IN_THE_LOOP:
    try:
        from airflow.providers.standard.operators.hitl import HITLOperator
    except ImportError:
        HITLOperator = BaseOperator
    # The first releases of Airflow 3.1 came with one whose operator has no time limit of its own.
    if "response_timeout" not in inspect.signature(HITLOperator.__init__).parameters:
        _MISSING = (
            "apache-airflow-providers-standard 1.12.2 or later, whose HITLOperator has a response_timeout; upgrade it "
            "where DAGs are parsed and run"
        )
else:
    HITLOperator = BaseOperator
    _MISSING = f"Airflow 3.1 or later, which can ask a person; Airflow {airflow_version} is installed"


class QwenImageChooseOperator(ReportsLineage, TaskArguments, HITLOperator):
    """Asks a person to choose among stored images, in Airflow's required actions. Costs no credits.

    The task waits, without a worker slot, until somebody answers on the page *Required Actions* of the Airflow UI or in
    the gallery; on Airflow 3.1 and 3.2 in the triggerer. It returns the list of the chosen images, each a dict as
    `QwenImageGenerateOperator` returns it, with the chosen path only; ``seed``, ``size`` and ``output_format`` are
    those of its sidecar. An answer that does not fit is not taken: the task asks again, and says why.

    It pushes the XComs `candidates`, a list with an object for each candidate, and `question` before it asks, and
    `verdict` at its end: ``chosen`` (numbers, counted from 1), ``by`` (``id`` and ``name`` of the user, or None),
    ``at`` and ``timed_out``. The ``.json`` sidecar of each candidate records it as well, in its field ``verdicts``.

    Args:
        images: What operators of this package return: a dict with ``paths``, the dict of a batch, or a list of these,
            as the output of a mapped task is; also lists of such lists. None, such as the output of a skipped mapped
            task, and failed images are left out, and a file counts once. At most 1,000 stored images. Templated.
        subject: The question, as the headline of the required action. Templated.
        at_least: How many images have to be chosen.
        at_most: How many may be chosen, or None for any number.
        defaults: The numbers of the images that are chosen if nobody answers within `response_timeout`: a number
            counted from 1, or a list of them. In ``dag.test()``, where nobody can answer, they are chosen at once.
        response_timeout: Seconds to wait for an answer, as a number or a timedelta; None for no limit. Without
            `defaults` the task then fails.
        assigned_users: Who may answer: a dict with the ``id`` and ``name`` of a user, or a list of them. Both
            are strings. None for everybody who may answer required actions of the DAG.
        **kwargs: What every operator takes, and ``notifiers`` of Airflow's `HITLOperator`.

    Raises:
        RuntimeError: On Airflow below 3.1, or with apache-airflow-providers-standard below 1.12.2.
        ValueError: If an argument is not allowed, or an image is not stored. What depends on the images is checked when
            the task runs; it then fails without a retry.
    """

    template_fields: Sequence[str] = ("images", "subject")
    native_fields = ("images",)
    argument_readers = CHOOSE_ARGUMENTS
    operator_extra_links: Collection[BaseOperatorLink] = (GENERATED_IMAGES,)
    ui_color = "#f9d9ec"

    @reads_arguments
    def __init__(
        self,
        *,
        images: Any,
        subject: Text,
        at_least: SupportsIndex = 1,
        at_most: SupportsIndex | None = 1,
        defaults: int | str | Sequence[int | str] | None = None,
        response_timeout: Seconds | None = None,
        assigned_users: HITLUser | Sequence[HITLUser] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_airflow()
        for name in [each for each in _SET_BY_THE_TASK if each in kwargs]:
            try:
                self.check_argument(name, kwargs.pop(name))
            except ValueError as error:
                self.refuse(name, error)
        seconds: Any = response_timeout
        users: Any = assigned_users
        question: Any = subject
        super().__init__(
            subject=question,
            # Those of the request depend on the images.
            options=options_of(1),
            response_timeout=None if seconds is None else timedelta(seconds=seconds),
            assigned_users=users,
            **kwargs,
        )
        self.images = images
        self.subject = question
        # As `reads_arguments` converted them.
        self.at_least: Any = at_least
        self.at_most: Any = at_most
        self.default_numbers: Any = defaults
        self._choosing: Choosing | None = None
        if not {"at_least", "at_most"} & self.refusals.keys():
            self._check_counts()

    def _check_counts(self) -> None:
        if self.at_most is not None and self.at_most < self.at_least:
            self.refuse(
                "at_most",
                ValueError(f"at_most is {self.at_most}; it must be at least at_least, {self.at_least}, or None."),
            )
        elif self.default_numbers is not None:
            try:
                self.question.check(self.default_numbers, self.default_numbers[-1])
            except UnfitAnswerError:
                how_many = self.question.how_many
                self.refuse(
                    "defaults",
                    ValueError(f"defaults is {self.default_numbers}; it must be {how_many} numbers, as may be chosen."),
                )

    @classmethod
    def partial(cls, **arguments: Any) -> OperatorPartial:
        """Map this operator; see `TaskArguments.partial`."""
        _check_airflow()
        return super().partial(**arguments)

    @classmethod
    def check_argument(cls, name: str, value: object) -> None:
        """Check an argument of a mapped task, and refuse those that the task sets itself."""
        if name in _SET_BY_THE_TASK:
            raise ValueError(f"{name} is {shown(value)}; it must be left out, because {_SET_BY_THE_TASK[name]}.")
        super().check_argument(name, value)

    @property
    def question(self) -> Question:
        """How it asks at first."""
        return Question(at_least=self.at_least, at_most=self.at_most)

    def execute(self, context: Context) -> Any:
        """Find the candidates and ask.

        Returns:
            The list of the chosen images, if nobody has to be asked.
        """
        return self._start(context).run()

    def execute_complete(self, context: Context, event: Any = None) -> list[dict[str, Any]]:
        """Take the answer, or ask again.

        Args:
            context: The task's context.
            event: What Airflow has of the answer.

        Returns:
            The list of the chosen images.
        """
        return self._start(context).resume(event)

    def ask(self, context: Context, question: Question, count: int, body: str, seconds: float | None) -> NoReturn:
        """Write the request and have Airflow end this process until somebody answers.

        Args:
            context: The task's context.
            question: How it asks.
            count: How many candidates there are.
            body: The text of the request, in Markdown.
            seconds: How long to wait for an answer, or None.
        """
        from airflow.sdk.definitions.param import ParamsDict

        from airflow_provider_qwenimage.choosing.request import form

        self.options = options_of(count)
        self.body = body
        self.multiple = question.at_most != 1
        self.defaults = None if self.default_numbers is None else [str(number) for number in self.default_numbers]
        # Not before: a DAG run may have a parameter of the same name.
        self.params = ParamsDict(form())
        self.response_timeout = None if seconds is None else timedelta(seconds=seconds)
        super().execute(context)
        raise AssertionError("Airflow's operator asks by an exception.")

    def lineage_facts(self) -> Mapping[str, Any]:
        """Return the facts about the chosen images for OpenLineage."""
        return self._choosing.facts if self._choosing is not None else {}

    def lineage_folders(self) -> Iterable[str]:
        """Return the folders of the candidates for OpenLineage."""
        return self._choosing.folders if self._choosing is not None else ()

    def _start(self, context: Context) -> Choosing:
        # Airflow parses DAG files all day: what only a task needs is not loaded for them.
        from airflow_provider_qwenimage.choosing.task import Choosing

        self._choosing = Choosing(self, context)
        return self._choosing


def _check_airflow() -> None:
    if _MISSING:
        raise RuntimeError(f"QwenImageChooseOperator needs {_MISSING}.")
