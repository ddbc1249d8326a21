"""What a follower of the log is promised, on any transport, and whether it was kept: judged by the log in PostgreSQL.

The promises are those of etcd's watch. Of all that matches what is followed, a follower is told

- in the order of the log (ordered), each event once (unique), as it is stored, byte for byte;
- everything between the position that it resumed from and the last one that it was told (reliable);
- from whatever position it resumes, wherever that was learned (resumable);
- and a position that is given as a mark (an acknowledgement, the id that an event stream opens with, the `position` of
  a last page) says that everything up to it has been told, and that what is told from then on is above it
  (bookmarkable).

Atomic: nothing of a transaction is told, nor shown by a list of events, before all of it can be read. So the position
that REST shows is always the end of a transaction, and is not below the end of one of which anything was told.

The log itself is held to this: no gap; a transaction is one stretch of it; an event is there once, unless it was taken
back before; a `stream.reverted` names exactly what it takes back, each once.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

Kind = Literal["lost", "doubled", "reordered", "altered", "uncalled", "bookmark", "split", "seam"]
REVERTED = "stream.reverted"
_SHOWN = 5  # of many breaks of one kind

# PostgreSQL notes which transaction wrote which rows; what commits them knows nothing of it.
WATCH_TRANSACTIONS = (
    "CREATE TABLE transactions (id bigint, first bigint, last bigint, rows bigint)",
    """
    CREATE FUNCTION note_transaction() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO transactions SELECT pg_current_xact_id()::text::bigint, min(position), max(position), count(*)
        FROM added HAVING count(*) > 0;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER note_transaction AFTER INSERT ON events REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION note_transaction()
    """,
)
_TRANSACTIONS = """
    SELECT min(first) AS first, max(last) AS last, sum(rows)::bigint AS rows FROM transactions
    GROUP BY id ORDER BY first
"""
_ROWS = """
    SELECT position, event_id, stream_id, event, action, ledger, timestamp_ms, reverted_by, payload::text AS payload
    FROM events WHERE position > $1 ORDER BY position LIMIT 5000
"""


class Selector(NamedTuple):
    """What is followed, as the wire names it: `streamId` ("*": everything), `sender` or `recipient`."""

    name: Literal["streamId", "sender", "recipient"]
    value: str


ALL = Selector("streamId", "*")


class Asked(Protocol):
    """Whatever can ask PostgreSQL: tests/runtime/truth.py, for one."""

    async def rows(self, text: str, *args: Any) -> Sequence[Any]:
        """The rows of a query."""
        ...


class Break(NamedTuple):
    """A promise that was not kept."""

    kind: Kind
    what: str


@dataclass
class Session:
    """One connection, or one walk through the pages of REST: what it began behind, and what it was told.

    `after` is None where it began with what was new; its first mark says where that was. `told` are positions and
    `prints` what each looked like. `marks` are (how many had been told, position) of each bookmark, `looks` (a position
    that was told, the position that REST showed after that), `lists` the last positions of lists that nothing followed.
    `end` says why it ended.
    """

    transport: str
    after: int | None
    told: list[int] = field(default_factory=list)
    prints: list[int] = field(default_factory=list)
    marks: list[tuple[int, int]] = field(default_factory=list)
    looks: list[tuple[int, int]] = field(default_factory=list)
    lists: list[int] = field(default_factory=list)
    end: str = ""

    def tell(self, position: int, looks_like: int) -> None:
        """An event has come."""
        self.told.append(position)
        self.prints.append(looks_like)

    def mark(self, position: int) -> None:
        """Everything up to it has been told, as the server says."""
        self.marks.append((len(self.told), position))

    @property
    def reached(self) -> int | None:
        """Where to go on: behind everything that is known to have been told."""
        known = (self.after, *self.told[-1:], *(at for _, at in self.marks[-1:]))
        return max((position for position in known if position is not None), default=None)

    @property
    def begins(self) -> int | None:
        """The position behind which everything was promised; None where it ended before it was given any."""
        return self.after if self.after is not None else self.marks[0][1] if self.marks else None


def fingerprint(*parts: str | int | None) -> int:
    """64 bits that stand for an event as it was told."""
    text = "\x00".join("" if part is None else str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def broadcast_print(event: str, stream_id: str | None, time: str, payload: str) -> int:
    """An event as the first protocol tells it."""
    return fingerprint(event, stream_id, time, payload)


def time_text(ms: int) -> str:
    """Unix milliseconds as the wire writes them."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


class Told(msgspec.Struct, rename="camel"):
    """A message of a WebSocket, of either protocol, or an event of the others; `payload` is as it came."""

    type: str = ""
    event: str = ""
    event_id: str = ""
    stream_id: str | None = None
    position: str = ""
    action: str = ""
    ledger: int | None = None
    timestamp: str = ""
    payload: msgspec.Raw = msgspec.Raw()

    @property
    def looks_like(self) -> int:
        payload = bytes(self.payload).decode()
        return fingerprint(self.event_id, self.stream_id, self.event, self.action, self.ledger, self.timestamp, payload)


told = msgspec.json.Decoder(Told).decode


class Row(NamedTuple):
    """A row of the log. `payload` is its text."""

    position: int
    event_id: str
    stream_id: str | None
    event: str
    action: str
    ledger: int | None
    timestamp_ms: int
    reverted_by: int | None
    payload: str


class Log:
    """The log as it stands, position by position, with whom each event concerns and where each transaction ends."""

    def __init__(self, transactions: Sequence[tuple[int, int, int]] = ()) -> None:
        """`transactions`: first and last position, and how many rows that was."""
        self.prints: list[int] = []
        self.event_ids: list[str] = []
        self.broadcasts: defaultdict[int, list[int]] = defaultdict(list)  # the first protocol has no positions
        self.faults: list[str] = []
        self.live: dict[str, int] = {}  # ids of events that stand, and their positions
        self.undone = 0
        self._transactions = transactions
        self._ends = [last for _, last, _ in transactions]
        self._matching: defaultdict[Selector, list[int]] = defaultdict(list)
        self._concerned: dict[str, list[Selector]] = {}  # by whom an event that stands was told
        self._undone_by: defaultdict[int, list[str]] = defaultdict(list)
        self._reverts: list[tuple[int, list[str]]] = []
        self._standing: dict[str, int] = {}

    @classmethod
    async def read(cls, books: Asked) -> Log:
        """The whole log of a database in which `WATCH_TRANSACTIONS` were made before anything was written."""
        found = await books.rows(_TRANSACTIONS)
        log = cls([(row["first"], row["last"], row["rows"]) for row in found])
        while page := await books.rows(_ROWS, log.head):
            for row in page:
                log.add(Row(*row))
        log.check()
        return log

    @property
    def head(self) -> int:
        return len(self.prints)

    def matching(self, selector: Selector, after: int, end: int) -> list[int]:
        """Positions above `after`, up to `end`, of what is followed."""
        found = self._matching.get(selector, [])
        return found[bisect_right(found, after) : bisect_right(found, end)]

    def concerns(self, selector: Selector, position: int) -> bool:
        """Whether the event at a position is followed."""
        found = self._matching.get(selector, [])
        at = bisect_left(found, position)
        return at < len(found) and found[at] == position

    def is_end(self, position: int) -> bool:
        """Whether a transaction ends there; so does, in a way, an empty log."""
        at = bisect_left(self._ends, position)
        return position == 0 or (at < len(self._ends) and self._ends[at] == position)

    def end_of(self, position: int) -> int:
        """Where the transaction ends that wrote a position."""
        return self._ends[bisect_left(self._ends, position)]

    # -- taking it in ----------------------------------------------------------------------------------------------

    def add(self, row: Row) -> None:
        """Take the next row."""
        position, time = row.position, time_text(row.timestamp_ms)
        if position != self.head + 1:
            self.faults.append(f"position {position} follows on {self.head}")
        self.event_ids.append(row.event_id)
        self.prints.append(
            fingerprint(row.event_id, row.stream_id, row.event, row.action, row.ledger, time, row.payload)
        )
        self.broadcasts[broadcast_print(row.event, row.stream_id, time, row.payload)].append(position)
        payload = json.loads(row.payload)
        concerned = [ALL]
        if row.stream_id is not None:
            concerned += [Selector("streamId", row.stream_id), *_parties(payload.get("stream") or payload)]
        if row.event == REVERTED:
            concerned += self._take_back(position, payload["reverts"])
        elif row.event_id in self._standing:
            self.faults.append(
                f"{row.event_id} comes at {position}, and stands already at {self._standing[row.event_id]}"
            )
        else:
            self._standing[row.event_id] = position
            self._concerned[row.event_id] = concerned
        if row.reverted_by is not None:
            self.undone += 1
            self._undone_by[row.reverted_by].append(row.event_id)
        elif row.event != REVERTED:
            self.live[row.event_id] = position
        for selector in dict.fromkeys(concerned):
            self._matching[selector].append(position)

    def _take_back(self, position: int, reverts: list[str]) -> Iterator[Selector]:
        """Whom the taken back events were told."""
        self._reverts.append((position, reverts))
        for event_id in reverts:
            if self._standing.pop(event_id, None) is None:
                self.faults.append(f"{position} takes back {event_id}, which does not stand")
            yield from (one for one in self._concerned.get(event_id, ()) if one.name != "streamId")

    def check(self) -> None:
        """Hold the log as a whole to what it promises; whatever is wrong is in `faults`."""
        for position, reverts in self._reverts:
            if Counter(self._undone_by.pop(position, [])) != Counter(reverts):
                self.faults.append(f"{position} names other events than it takes back")
        self.faults += [f"{position} takes something back, and does not say so" for position in self._undone_by]
        if self.live != self._standing:
            self.faults.append("what stands is not what was never taken back")
        after = 0
        for first, last, rows in self._transactions:
            if first != after + 1 or last - first + 1 != rows:
                self.faults.append(f"a transaction of {rows} rows lies between {first} and {last}, behind {after}")
            after = last
        if self._transactions and after != self.head:
            self.faults.append(f"the last transaction ends at {after}, the log at {self.head}")


def _parties(payload: dict[str, Any]) -> Iterator[Selector]:
    """Those of the stream as it is shown, and those that it had before, where the event says so."""
    change = payload.get("change") or {}
    for name, former in (("sender", "oldSender"), ("recipient", "oldRecipient")):
        for value in (payload.get(name), change.get(former)):
            if isinstance(value, str):
                yield Selector(name, value)  # type: ignore[arg-type]


# -- the judge ---------------------------------------------------------------------------------------------------------


def judge(log: Log, selector: Selector, sessions: Sequence[Session], *, continuous: bool = True) -> list[Break]:
    """Every promise that one follower was not kept; `continuous`: each session went on where the one before ended."""
    broken: list[Break] = []
    reached: int | None = None
    for number, session in enumerate(sessions):
        where = f"session {number} ({session.transport}) of {selector.name} {selector.value}"
        if continuous and number and session.after != reached:
            broken.append(Break("seam", f"{where} begins behind {session.after}, the one before reached {reached}"))
        for check in (_order, _content, _wholeness, _marks, _atomicity):
            broken += [Break(kind, f"{where}: {what}") for kind, what in check(log, selector, session)]
        reached = session.reached
    return broken


def _order(_log: Log, _selector: Selector, session: Session) -> Iterator[Break]:
    """Ordered, and unique: also what it had before it began comes again."""
    last = session.begins or 0
    seen: set[int] = set()
    for position in session.told:
        if position in seen or position <= (session.begins or 0):
            yield Break("doubled", f"{position} comes again, behind {last}")
        elif position < last:
            yield Break("reordered", f"{position} comes behind {last}")
        seen.add(position)
        last = max(last, position)


def _content(log: Log, selector: Selector, session: Session) -> Iterator[Break]:
    """What was told is what is stored, and was asked for."""
    for position, looks_like in zip(session.told, session.prints, strict=True):
        if not 1 <= position <= log.head:
            yield Break("altered", f"{position} is not in the log, which ends at {log.head}")
        elif log.prints[position - 1] != looks_like:
            yield Break("altered", f"{position} is not told as it is stored")
        elif not log.concerns(selector, position):
            yield Break("uncalled", f"{position} is not what is followed")


def _wholeness(log: Log, selector: Selector, session: Session) -> Iterator[Break]:
    """Reliable: no gap up to the last event, and none up to the last mark."""
    begins = session.begins
    if begins is None or session.reached is None:
        return
    missing = sorted(set(log.matching(selector, begins, max(session.told, default=0))) - set(session.told))
    if missing:
        yield Break("lost", f"{len(missing)} of what lies behind {begins}: {missing[:_SHOWN]}")


def _marks(log: Log, selector: Selector, session: Session) -> Iterator[Break]:
    """Bookmarkable."""
    begins = session.begins
    for count, position in session.marks:
        missing = set(log.matching(selector, begins or 0, position)) - set(session.told[:count])
        if missing:
            yield Break("bookmark", f"{position} was a mark, and {sorted(missing)[:_SHOWN]} had not been told")
        late = [one for one in session.told[count:] if one <= position]
        if late:
            yield Break("bookmark", f"{position} was a mark, and {late[:_SHOWN]} came behind it")


def _atomicity(log: Log, _selector: Selector, session: Session) -> Iterator[Break]:
    """Nothing of a transaction before all of it."""
    for position, shown in session.looks:
        if not log.is_end(shown):
            yield Break("split", f"REST showed position {shown}, in the middle of a transaction")
        elif 1 <= position <= log.head and shown < log.end_of(position):
            yield Break(
                "split",
                f"{position} was told while REST showed {shown}, and its transaction ends at {log.end_of(position)}",
            )
    for last in session.lists:
        if not log.is_end(last):
            yield Break("split", f"a list without more ends at {last}, in the middle of a transaction")


def located(log: Log, prints: Sequence[int], *, known: int) -> Session:
    """What a client of the first protocol was told, as a session: each event at the position that it must be from.

    `known` is what REST showed once the connection was open: everything above it is promised.
    """
    places = [log.broadcasts.get(one, []) for one in prints]
    first = max((at for at in places[0] if at <= known + 1), default=known + 1) if places else known + 1
    session = Session("broadcast", first - 1)
    expected = first
    for found in places:
        at = (
            expected if expected in found else min((one for one in found if one > expected), default=(found or [0])[-1])
        )
        session.tell(at, log.prints[at - 1] if at else 0)
        expected = at + 1
    return session
