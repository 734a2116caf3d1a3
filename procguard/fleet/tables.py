"""The tables of the fleet's state: durable records by key, with indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from procguard.fleet.model.records import Record
from procguard.fleet.store.interface import StoredRecord

R = TypeVar("R", bound=Record)


class RecordTable(Generic[R]):
    """Rows by key. `index` and `unindex` maintain further indexes of them."""

    def __init__(
        self,
        name: str,
        index: Callable[[R], object] = lambda _: None,
        unindex: Callable[[R], Callable[[], object]] = lambda _: lambda: None,
    ) -> None:
        """`unindex(record)` returns a function that reverts it."""
        self.name = name
        self._rows: dict[str, R] = {}
        self.rows: Mapping[str, R] = MappingProxyType(self._rows)
        self._index = index
        self._unindex = unindex

    def insert(self, record: R) -> None:
        self._rows[record.key] = record
        self._index(record)

    def delete(self, record: R) -> Callable[[], None]:
        """Delete a row. Returns a function that reverts it."""
        del self._rows[record.key]
        back = self._unindex(record)

        def undo() -> None:
            self._rows[record.key] = record
            back()

        return undo

    def restore(self, records: Iterable[R]) -> None:
        for record in records:
            self.insert(record)
            record.close()

    def stored(self) -> dict[str, StoredRecord]:
        return {key: record.stored() for key, record in self._rows.items()}
