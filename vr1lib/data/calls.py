"""Every call to a teacher, on disk: what was paid is never paid again, and the ledger is the sum of what lies there.

One SQLite file in the run folder (our choice: 600,000 long replies are found by their key without being read at the
start, and a `kill -9` costs nothing that was written). A call is known by model, sampling, seed, prompt and pictures.
Before it leaves it is marked as pending; its reply is stored, and the mark taken away, before anybody uses the reply.
A mark that is still there when the file is opened is a call that was in flight when the run was killed: it may have
been paid, so the ledger counts it as a failure of that name, and it is asked again. The file is locked as long as it
is open: two runs cannot build in one folder.
"""

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vr1lib.data.teachers import Failure, NoReply, Purpose, Reply, Teacher
from vr1lib.records import RequestError

KILLED = "in flight when the run was killed"
WAL_PAGES = 8000  # 32 MB between two checkpoints: each waits for the disk
SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    key BLOB PRIMARY KEY, purpose TEXT, model TEXT, endpoint TEXT, prompt_tokens INTEGER, completion_tokens INTEGER,
    estimated INTEGER, cost REAL, seconds REAL, finish TEXT
);
CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, text TEXT, reasoning TEXT);
CREATE TABLE IF NOT EXISTS failures (
    purpose TEXT, endpoint TEXT, reason TEXT, sent INTEGER, requests INTEGER, prompt_tokens INTEGER,
    completion_tokens INTEGER, estimated INTEGER, cost REAL, seconds REAL, PRIMARY KEY (purpose, endpoint, reason, sent)
);
CREATE TABLE IF NOT EXISTS pending (key BLOB PRIMARY KEY, purpose TEXT, model TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


@dataclass
class Sum:
    """What calls or failures come to, cost in the currency of the endpoints' prices."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    cost: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "cost": round(self.cost, 6), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Ledger:
    """What was asked, kept or not: calls by (purpose, model, endpoint), failures by (purpose, endpoint, reason, sent).

    A call is a request that brought a reply. `estimated` of them came without a count of tokens.
    """

    calls: defaultdict[tuple[str, str, str], Sum] = field(default_factory=lambda: defaultdict(Sum))
    failures: defaultdict[tuple[str, str, str, bool], Sum] = field(default_factory=lambda: defaultdict(Sum))

    @property
    def spent(self) -> Sum:
        """All calls and failures together; a failure may have cost something too."""
        return sum([*self.calls.values(), *self.failures.values()], Sum())

    def as_dict(self) -> dict[str, Any]:
        """`by_purpose`, `failures`, and `total`: its tokens and cost hold what failed requests cost, `requests` is what
        the servers got to see."""
        calls, failed = (sum(entry.requests for entry in part.values()) for part in (self.calls, self.failures))
        total = self.spent.as_dict()
        total["requests"] -= sum(entry.requests for (*_, sent), entry in self.failures.items() if not sent)
        return {
            "by_purpose": [
                {"purpose": purpose, "model": model, "endpoint": endpoint, **_as_calls(entry)}
                for (purpose, model, endpoint), entry in self.calls.items()
            ],
            "failures": [
                {"purpose": purpose, "endpoint": endpoint, "reason": reason, "sent": sent, **entry.as_dict()}
                for (purpose, endpoint, reason, sent), entry in self.failures.items()
            ],
            "total": {"calls": calls, "failed": failed, **total},
        }


def _as_calls(entry: Sum) -> dict[str, Any]:
    row = entry.as_dict()
    return {"calls": row.pop("requests"), **row}


@dataclass(frozen=True)
class Budget:
    """What a run may spend in all, those before it in the same folder included. None: no limit."""

    tokens: int | None = None
    cost: float | None = None

    def reached(self, ledger: Ledger) -> str | None:
        """Why no more may be spent, if so."""
        if self == Budget():
            return None
        spent = ledger.spent
        tokens = spent.prompt_tokens + spent.completion_tokens
        if self.tokens is not None and tokens >= self.tokens:
            return f"the budget of {self.tokens:,} tokens is spent ({tokens:,})"
        if self.cost is not None and spent.cost >= self.cost:
            return f"the budget of {self.cost:g} is spent ({spent.cost:.4f})"
        return None


class BudgetReached(Exception):
    """The next call would go beyond the budget."""


class CallStore:
    """The calls of one run folder. `ledger` is their sum, `cached` how many replies were found here."""

    def __init__(self, path: str | Path, budget: Budget = Budget()):
        self.path, self.budget, self.cached, self.ledger = Path(path), budget, 0, Ledger()
        self._database = sqlite3.connect(self.path, timeout=0.5, isolation_level=None)
        try:
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
            self._database.executescript(SCHEMA)
            self._sum_up()
        except sqlite3.OperationalError as error:
            self._database.close()
            if "locked" not in str(error):
                raise RequestError(
                    f"{self.path}: cannot be opened ({error}); make room or choose another run"
                ) from None
            raise RequestError(
                f"{self.path}: another run is building here; wait for it or choose another run"
            ) from None
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise RequestError(f"{self.path}: no store of calls ({error}); move it away") from None

    async def ask(
        self,
        teacher: Teacher,
        purpose: Purpose,
        prompt: str,
        images: Sequence[str],
        image_sha256: Sequence[str],
        seed: int,
    ) -> Reply:
        """The stored reply, or a new one, stored before it is returned. Raises NoReply and BudgetReached."""
        settings = teacher.settings(purpose)
        keys = {model: call_key(model, settings, prompt, image_sha256, seed) for model in teacher.models}
        if not teacher.paid:
            reply = await teacher.ask(purpose, prompt, images, seed)
            self._store(keys[reply.model], purpose, reply)
            return reply
        for key in keys.values():
            if known := self._find(key):
                self.cached += 1
                return known
        if reason := self.budget.reached(self.ledger):
            raise BudgetReached(reason)
        model, pending = next(iter(keys.items()))
        self._database.execute("INSERT OR IGNORE INTO pending VALUES (?, ?, ?)", (pending, purpose, model))
        try:
            reply = await teacher.ask(purpose, prompt, images, seed)
        except NoReply as error:
            with self._transaction():
                self._store_failures(purpose, error.failures)
                self._database.execute("DELETE FROM pending WHERE key = ?", (pending,))
            raise
        with self._transaction():
            key = keys[reply.model]
            self._store(key, purpose, reply)
            self._database.execute("INSERT INTO texts VALUES (?, ?, ?)", (key, reply.text, reply.reasoning))
            self._store_failures(purpose, reply.failures)
            self._database.execute("DELETE FROM pending WHERE key = ?", (pending,))
        return reply

    def agree(self, name: str, value: Any) -> None:
        """Hold a setting against what the folder was begun with. Raises RequestError if they differ."""
        text = json.dumps(value, sort_keys=True)
        self._database.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, text))
        [begun] = self._database.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        if begun != text:
            raise RequestError(
                f"{self.path}: begun with {name} = {begun}, now it is {text}; set it back or choose another run"
            )

    def close(self) -> None:
        self._database.close()

    def _find(self, key: bytes) -> Reply | None:
        row = self._database.execute(
            "SELECT text, reasoning, model, prompt_tokens, completion_tokens, seconds, finish, endpoint, cost, "
            "estimated FROM calls JOIN texts USING (key) WHERE key = ?",
            (key,),
        ).fetchone()
        return row and Reply(*row[:-1], estimated=bool(row[-1]), cached=True)

    def _store(self, key: bytes, purpose: Purpose, reply: Reply) -> None:
        numbers = (reply.prompt_tokens, reply.completion_tokens, int(reply.estimated), reply.cost, reply.seconds)
        new = self._database.execute(
            "INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (key, purpose, reply.model, reply.endpoint, *numbers, reply.finish),
        )
        if new.rowcount:
            self.ledger.calls[purpose, reply.model, reply.endpoint] += Sum(1, *numbers)

    def _store_failures(self, purpose: str, failures: Sequence[Failure]) -> None:
        for failure in failures:
            name = (purpose, failure.endpoint, failure.reason, failure.sent)
            numbers = (failure.prompt_tokens, failure.completion_tokens, 0, failure.cost, failure.seconds)
            self.ledger.failures[name] += Sum(1, *numbers)
            self._database.execute(
                "INSERT INTO failures VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "requests = requests + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
                "completion_tokens = completion_tokens + excluded.completion_tokens, cost = cost + excluded.cost, "
                "seconds = seconds + excluded.seconds",
                (*name, *numbers),
            )

    def _sum_up(self) -> None:
        """The ledger from what lies here; what was pending when the run was killed becomes a failure."""
        for row in self._database.execute(
            "SELECT purpose, model, endpoint, COUNT(*), SUM(prompt_tokens), SUM(completion_tokens), SUM(estimated), "
            "SUM(cost), SUM(seconds) FROM calls GROUP BY purpose, model, endpoint ORDER BY MIN(rowid)"
        ):
            self.ledger.calls[row[:3]] = Sum(*row[3:])
        for row in self._database.execute("SELECT * FROM failures"):
            self.ledger.failures[(*row[:3], bool(row[3]))] = Sum(*row[4:])
        with self._transaction():
            for purpose, model in self._database.execute("SELECT purpose, model FROM pending").fetchall():
                self._store_failures(purpose, [Failure(model, KILLED)])
            self._database.execute("DELETE FROM pending")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def call_key(model: str, settings: dict[str, Any], prompt: str, image_sha256: Sequence[str], seed: int) -> bytes:
    """What makes two calls the same call, in 16 bytes."""
    parts = [model, settings, hashlib.sha256(prompt.encode()).hexdigest(), list(image_sha256), seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()[:16]
