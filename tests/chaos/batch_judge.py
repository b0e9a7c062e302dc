"""Decides whether a batch that was killed again and again has paid anything twice or lost anything. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# What the API sees of a row: its prompt and its seed. Equal rows can't be told apart there.
Key = tuple[str, int]

SUCCESS = "SUCCESS"
UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Row:
    """A row of a manifest, with what stands in the folder.

    Attributes:
        number: Its number, counted from 1.
        key: What the API sees of it.
        status: Its status.
        image_task_id: The API's id of its image task, if it has one.
        shares: Whether it shares the image of a row before it.
        is_whole: Whether its images are there, decode and are what their sidecars describe.
    """

    number: int
    key: Key
    status: str
    image_task_id: str | None = None
    shares: bool = False
    is_whole: bool = False


def unknown(rows: Sequence[Row]) -> Counter[Key]:
    """Return of how many images a manifest says that they may be paid."""
    return Counter(row.key for row in rows if row.status == UNKNOWN and not row.shares)


@dataclass(frozen=True)
class BatchEvidence:
    """What is known of a batch at its end.

    Attributes:
        wanted: How many images were asked for.
        accepted: The ids of the submissions that the API accepted, and charged.
        consented: For how many images a Clear followed the report that they may be paid.
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
        """How many submissions were accepted for which there was neither a row nor a Clear."""
        return sum(max(0, len(ids) - self._allowed(key)) for key, ids in self.accepted.items())

    @property
    def lost(self) -> int:
        """How many images were asked for and are not there."""
        found = Counter(row.key for row in self.rows if not row.shares and self._wrong_with(row) is None)
        return sum(max(0, images - found[key]) for key, images in self.wanted.items())

    def complaints(self) -> list[str]:
        """Return what is not as promised, one line each."""
        return [*self._of_payments(), *self._of_rows(), *(f"{name} is left over" for name in self.leftovers)]

    def _of_payments(self) -> Iterator[str]:
        for key, ids in self.accepted.items():
            if len(ids) > self._allowed(key):
                yield (
                    f"paid twice: {key} was accepted {len(ids)} times, for {self.wanted.get(key, 0)} images of which "
                    f"{self.consented.get(key, 0)} were cleared after they were said to be maybe paid"
                )

    def _of_rows(self) -> Iterator[str]:
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
            yield f"the manifest lists {images.total()} images of {sum(self.wanted.values())}, or other ones"

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
