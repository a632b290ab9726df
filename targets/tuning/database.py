"""Measurements of kernel parameters, in one SQLite file that many processes may share.

Each measurement is one row, written in a transaction of its own: a killed process loses at most the
measurement under way, and tuning goes on where it stopped. Costs are times relative to those of the
default parameters, taken in turns with them, so that rows written on busy and idle days compare.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError, OutputError, TuningCacheError

_WAIT = 60  # seconds for another process to finish writing
_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurements (
    family TEXT, version TEXT, problem TEXT, target TEXT, compiler TEXT, params TEXT,
    cost REAL NOT NULL,
    PRIMARY KEY (family, version, problem, target, compiler, params)
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Key:
    """What a measurement holds for.

    Attributes:
        family, version: the template, and a digest of its code.
        problem: shapes, dtypes and sizes, as JSON.
        target: the CPU that it was measured on, and the instruction sets used.
        compiler: the version of TVM.
    """

    family: str
    version: str
    problem: str
    target: str
    compiler: str


class Database:
    """The measurements in a file, or in memory for as long as this lives.

    Raises:
        TuningCacheError: the file is missing (if read only), damaged, or something else.
        OutputError: it cannot be created or written.
    """

    def __init__(self, path: Path | None, read_only: bool = False) -> None:
        self.path = path
        if read_only and (path is None or not path.is_file()):
            raise TuningCacheError(f"{path}: no such tuning cache")
        if path is None:
            where = ":memory:"
        else:
            where = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        try:
            self._connection = sqlite3.connect(
                where, timeout=_WAIT, isolation_level=None, uri=path is not None
            )
            if not read_only:
                self._connection.execute(_SCHEMA)
            self._connection.execute("SELECT cost FROM measurements LIMIT 1")
        except sqlite3.Error as error:
            raise self._explained(error) from None

    def costs(self, key: Key) -> dict[str, float]:
        """What is known for `key`: the cost of parameters, which are JSON texts."""
        where = " AND ".join(f"{field} = :{field}" for field in asdict(key))
        query = f"SELECT params, cost FROM measurements WHERE {where}"
        try:
            with closing(self._connection.execute(query, asdict(key))) as rows:
                return dict(rows.fetchall())
        except sqlite3.Error as error:
            raise self._explained(error) from None

    def add(self, key: Key, params: Mapping[str, Any], cost: float) -> None:
        """Keep one measurement; the latest one of the same parameters counts."""
        row = {**asdict(key), "params": as_text(params), "cost": cost}
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        try:
            self._connection.execute(
                f"INSERT OR REPLACE INTO measurements ({names}) VALUES ({values})", row
            )
        except sqlite3.Error as error:
            raise self._explained(error) from None

    def close(self) -> None:
        self._connection.close()

    def _explained(self, error: sqlite3.Error) -> GraphoptError:
        if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
            return OutputError(f"{self.path}: the tuning cache cannot be used ({error})")
        return TuningCacheError(f"{self.path}: not a tuning cache ({error}); choose another file")


def as_text(fields: Mapping[str, Any]) -> str:
    """Fields as JSON that compares equal where they are equal."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
