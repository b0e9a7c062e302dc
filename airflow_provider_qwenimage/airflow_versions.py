"""Differences between the supported versions of Airflow, each under the name of its effect."""

from __future__ import annotations

from airflow import __version__

_VERSION = tuple(int(part) for part in __version__.split(".")[:2])

# Tasks and triggers ask a supervisor instead of the metadata database.
HAS_SUPERVISOR = _VERSION >= (3, 0)
# The event of an asset alias is a part of a key before it is stored: a list in it would fail the finished task.
HASHES_ALIAS_EVENTS = _VERSION < (3, 1)
# Airflow 3.0 resumes a retry of a deferred try with the event of that try, instead of starting it afresh.
RESUMES_RETRIES = _VERSION == (3, 0)
# Plugins can add pages to Airflow's UI.
HAS_PLUGIN_PAGES = _VERSION >= (3, 1)
# Tasks can wait for a person's answer.
HAS_HUMAN_IN_THE_LOOP = _VERSION >= (3, 1)
# The number of Clears of a run counts each Clear that may run the DAG again. Before, only those of a finished run.
COUNTS_EVERY_CLEAR = _VERSION >= (3, 2)
# A trigger is told that a user ended its task. Before, it is only cancelled, as when the triggerer stops.
CALLS_TRIGGER_ON_KILL = _VERSION >= (3, 3)
# Tasks take a `retry_policy`.
HAS_RETRY_POLICIES = _VERSION >= (3, 3)
# A retry policy can have a try repeated later, without using a retry.
HAS_RESCHEDULING_POLICIES = _VERSION >= (3, 4)
# Tasks can be in a loop: each iteration has task instances of its own, which their regions tell apart.
HAS_LOOPS = _VERSION >= (3, 4)
# Each try of a task is a task instance of its own. Before, earlier tries are in the history of task instances.
KEEPS_TRIES = _VERSION >= (3, 4)
