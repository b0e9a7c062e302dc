"""Decide whether a batch that was killed repeatedly paid for an image twice or lost one. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# A row's prompt and seed. The API cannot tell equal rows apart.
Key = tuple[str, int]

SUCCESS = "SUCCESS"
UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Row:
    """A row of a manifest and the state of its images.

    Attributes:
        number: Counted from 1.
        image_task_id: The API's task id, if there is one.
        shares: Whether it shares the image of an earlier row.
        is_whole: Whether its images are stored, can be decoded and match their sidecars.
    """

    number: int
    key: Key
    status: str
    image_task_id: str | None = None
    shares: bool = False
    is_whole: bool = False


def unknown(rows: Sequence[Row]) -> Counter[Key]:
    """Return how many images may be paid according to a manifest."""
    return Counter(row.key for row in rows if row.status == UNKNOWN and not row.shares)


@dataclass(frozen=True)
class BatchEvidence:
    """The evidence on a batch at its end.

    Attributes:
        wanted: How many images were requested.
        accepted: The ids of the submissions that the API accepted and charged.
        consented: How many images were cleared after a report that they may be paid.
        rows: The manifest.
        leftovers: Files that belong to no row.
    """

    wanted: Mapping[Key, int]
    accepted: Mapping[Key, Sequence[str]]
    consented: Mapping[Key, int] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    leftovers: Sequence[str] = ()

    @property
    def paid_twice(self) -> int:
        """How many submissions were accepted without a row or a Clear."""
        return sum(max(0, len(ids) - self._allowed(key)) for key, ids in self.accepted.items())

    @property
    def lost(self) -> int:
        """How many requested images are not stored."""
        found = Counter(row.key for row in self.rows if not row.shares and self._wrong_with(row) is None)
        return sum(max(0, images - found[key]) for key, images in self.wanted.items())

    def complaints(self) -> list[str]:
        """Return everything that is wrong, one line each."""
        leftovers = (f"{name} is left over" for name in self.leftovers)
        return [*self._payment_complaints(), *self._row_complaints(), *leftovers]

    def _payment_complaints(self) -> Iterator[str]:
        for key, ids in self.accepted.items():
            if len(ids) > self._allowed(key):
                yield (
                    f"paid twice: {key} was accepted {len(ids)} times, for {self.wanted.get(key, 0)} images, of which "
                    f"{self.consented.get(key, 0)} were cleared after a report that they may be paid"
                )

    def _row_complaints(self) -> Iterator[str]:
        owners: dict[str, Row] = {}
        for row in self.rows:
            problem = self._wrong_with(row)
            if problem is None and not row.shares and row.image_task_id is not None:
                owner = owners.setdefault(row.image_task_id, row)
                problem = None if owner is row else f"has the image of row {owner.number}"
            if problem is not None:
                yield f"row {row.number} {row.key} {problem}"
        images = Counter(row.key for row in self.rows if not row.shares)
        if images != Counter(self.wanted):
            yield f"the manifest lists {images.total()} images of {sum(self.wanted.values())}, or different ones"

    def _wrong_with(self, row: Row) -> str | None:
        if row.status != SUCCESS:
            return f"is {row.status}"
        if not row.is_whole:
            return "has an image that is missing or broken"
        if row.image_task_id not in self.accepted.get(row.key, ()):
            return f"has the image of {row.image_task_id}, which was not accepted for it"
        return None

    def _allowed(self, key: Key) -> int:
        return self.wanted.get(key, 0) + self.consented.get(key, 0)
