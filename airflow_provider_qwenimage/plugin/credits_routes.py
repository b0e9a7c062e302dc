"""The page Credits: what was spent, by whom, and what is left of the budgets."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.utils.session import create_session
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.plugin import metadata_db
from airflow_provider_qwenimage.plugin.access import (
    may_read_connection,
    may_read_every_dag,
    may_read_xcoms,
    readable_dags,
)
from airflow_provider_qwenimage.plugin.bounds import number
from airflow_provider_qwenimage.plugin.credit_accounts import Account, find_accounts
from airflow_provider_qwenimage.plugin.credit_books import BOOKS, MOST_ROWS_OF_A_LIST, UnreadableBooksError
from airflow_provider_qwenimage.plugin.credit_values import Details, Overview
from airflow_provider_qwenimage.plugin.credits_view import (
    DAYS,
    CreditsPage,
    Rights,
    days_until,
    may_read,
    page_of_books,
    page_of_xcoms,
)
from airflow_provider_qwenimage.plugin.fresh_values import FreshValues
from airflow_provider_qwenimage.plugin.page_routes import render
from airflow_provider_qwenimage.plugin.time_limits import Shares
from airflow_provider_qwenimage.plugin.xcom_values import decoded
from airflow_provider_qwenimage.rules.gallery_urls import CREDITS_PATH, PREFIX

# The time for all reads of a page.
_PAGE_SECONDS = 12.0
_FRESH_SECONDS = 10.0
_MOST_XCOMS = 50_000
# Separate from the threads of Airflow's own pages, and from those of the images.
_SHARES = Shares(4, of_dag=4)
_XCOMS = FreshValues(_FRESH_SECONDS, most_weight=100_000, most_values=200)
_ACCOUNTS = FreshValues(_FRESH_SECONDS, most_weight=1000, most_values=1)

router = APIRouter()


@router.get(CREDITS_PATH)
async def show_credits(request: Request, user: GetUserDep) -> HTMLResponse:
    """Show what the DAGs that the user may read have spent."""
    try:
        return await _SHARES.run("", lambda: _show(request, user))
    except TimeoutError:
        raise HTTPException(503, "Airflow's database is slow. Try again in a few seconds.") from None


def _show(request: Request, user: Any) -> HTMLResponse:
    now = datetime.now(UTC)
    deadline = time.monotonic() + _PAGE_SECONDS
    accounts = _ACCOUNTS.get("", find_accounts, len, deadline)
    root = str(request.scope.get("root_path", ""))
    if any(account.options.conn_id for account in accounts):
        page = _page_of_books(request, user, accounts, now, deadline)
    else:
        page = _page_of_xcoms(request, user, accounts, now, deadline)
    html = render(
        "credits.html",
        page=page,
        days=DAYS,
        now=f"{now:%Y-%m-%d %H:%M}",
        static=f"{root}/static",
        gallery_url=f"{root}/",
        version=__version__,
    )
    return HTMLResponse(html)


def _page_of_books(
    request: Request, user: Any, accounts: Sequence[Account], now: datetime, deadline: float
) -> CreditsPage:
    begin = _begin(now)
    # The budget of a month may have been spent before the first day that the page shows.
    since = min(begin, now.replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    by_books: dict[str, list[Account]] = defaultdict(list)
    for account in accounts:
        if account.options.conn_id:
            by_books[account.options.conn_id].append(account)
    overviews: dict[str, Overview | str] = {}
    for conn_id, own in by_books.items():
        try:
            overviews[conn_id] = BOOKS.overview(conn_id, own, since, now, deadline)
        except UnreadableBooksError as error:
            overviews[conn_id] = str(error)
    found = {conn_id: one for conn_id, one in overviews.items() if isinstance(one, Overview)}
    known = {dag_id for one in found.values() for dag_ids in one.dag_ids.values() for dag_id in dag_ids}
    rights = _rights(request, user, known, accounts)
    details: dict[str, Details | str] = {}
    for conn_id, overview in found.items():
        own_dags = {dag_id for dag_ids in overview.dag_ids.values() for dag_id in dag_ids if may_read(dag_id, rights)}
        try:
            details[conn_id] = BOOKS.details(conn_id, own_dags, begin, deadline) if own_dags else Details()
        except UnreadableBooksError as error:
            details[conn_id] = str(error)
    return page_of_books(
        now=now,
        accounts=accounts,
        overviews=overviews,
        details=details,
        rights=rights,
        root=_airflow_root(request),
        most_rows=MOST_ROWS_OF_A_LIST,
    )


def _page_of_xcoms(
    request: Request, user: Any, accounts: Sequence[Account], now: datetime, deadline: float
) -> CreditsPage:
    with create_session(scoped=False) as session:
        known = metadata_db.dags_with_images(session)
    rights = _rights(request, user, known, accounts)
    begin = _begin(now)
    amounts, is_cut = _XCOMS.get(
        (rights.dag_ids, begin), lambda: _read_xcoms(rights.dag_ids, begin), lambda read: 1 + len(read[0]), deadline
    )
    return page_of_xcoms(now, amounts, accounts, rights, is_cut=is_cut)


def _read_xcoms(dag_ids: Collection[str], since: datetime) -> tuple[dict[tuple[str, str], float], bool]:
    amounts: dict[tuple[str, str], float] = defaultdict(float)
    with create_session(scoped=False) as session:
        rows = metadata_db.consumed_credits(session, dag_ids, since, _MOST_XCOMS)
    for dag_id, moment, stored in rows:
        amounts[f"{moment.astimezone(UTC):%Y-%m-%d}", dag_id] += number(decoded(stored)) or 0
    return dict(amounts), len(rows) >= _MOST_XCOMS


def _rights(request: Request, user: Any, dag_ids: Collection[str], accounts: Sequence[Account]) -> Rights:
    reads_every = may_read_every_dag(request, user)
    listed = readable_dags(user)
    # Airflow may not know a DAG of the books any more.
    own = {dag_id for dag_id in dag_ids if dag_id and (reads_every or dag_id in listed)}
    return Rights(
        dag_ids=frozenset(dag_id for dag_id in own if may_read_xcoms(request, user, dag_id)),
        all_dags=reads_every,
        conn_ids=frozenset(one.conn_id for one in accounts if may_read_connection(user, one.conn_id)),
    )


def _begin(now: datetime) -> datetime:
    return datetime.combine(days_until(now)[0], datetime.min.time(), UTC)


def _airflow_root(request: Request) -> str:
    return str(request.scope.get("root_path", "")).removesuffix(PREFIX)
