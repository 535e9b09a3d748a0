"""Many machines: an engine that people have (Spark, Ray, Dask) moves rows and moments to each other; `worker` says what happens where they meet.

Nothing here knows which engine it is, and no engine knows what it moves.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypedDict, TypeVar, Unpack

import msgspec
import numpy as np
import pyarrow as pa

from sameworld.asof.plan import Grouping
from sameworld.asof.prepared import World
from sameworld.asof.schema import Schema, supported
from sameworld.definitions.moments import Moments
from sameworld.engines.answer import BATCH_ROWS
from sameworld.engines.blobs import (
    BLOBS,
    ERROR,
    FIRST_ANSWER,
    Blobs,
    Guarded,
    Stage,
    pieces,
    raised,
    unpacked,
)
from sameworld.engines.cache import Cache
from sameworld.engines.duckdb import DuckDBEngine, exactly, is_csv, on_clocks
from sameworld.engines.interface import Ask, Asked, MomentTable, Rows
from sameworld.engines.kept_parts import KIND, Keep, key_of, sweep
from sameworld.engines.kept_rows import code, named_content
from sameworld.engines.reading import (
    Digests,
    MomentSlices,
    PrepareBatches,
    PrepareSlices,
    Question,
    ReadMoments,
    Slice,
    Sums,
    moment_blobs,
    no_rows,
    prepared_blobs,
)
from sameworld.engines.staged import WriteMoments, staged
from sameworld.engines.worker import Answer, Finish, Live, in_order, no_answers
from sameworld.errors import DefinitionError, nearest

ROWS_A_TASK = 4_000_000
"""How many rows of a file are read by one task, at most."""
ROWS_A_PARTITION = 4_000_000
MOMENTS_A_PARTITION = 1_000_000
"""How many rows of a source and how many moments a partition has, about, where it is not said how many partitions there are."""
MEMORY_BYTES = 1 << 30
_FEW_FILES = 3
Given = TypeVar("Given")


class Flow(Protocol):
    """What an engine does for us: it runs stages in its workers and brings blobs of one partition together. What it makes in between is its own affair.

    A stage may be called again for the same blobs, when a worker was lost.
    """

    @property
    def parallelism(self) -> int:
        """How many tasks run at a time."""
        ...

    def owns(self, data: Any) -> bool:
        """Whether data are a table of the engine's own kind."""
        ...

    def describe(self, data: Any) -> dict[str, str]:
        """Give the columns of a table of its own and the DuckDB types that carry their values."""
        ...

    def table(self, data: Any) -> pa.Table:
        """Give a table of its own as Arrow."""
        ...

    def given(self, blobs: pa.Table) -> Any:
        """Have the driver's blobs."""
        ...

    def tasks(self, count: int, call: Callable[[int], Blobs]) -> Any:
        """Have the blobs of call(0) to call(count - 1)."""
        ...

    def batches(self, data: Any, columns: Sequence[str], stage: Stage) -> Any:
        """Have what a stage makes of batches of some columns of a table of its own."""
        ...

    def union(self, several: Sequence[Any]) -> Any:
        """Have the blobs of all."""
        ...

    def shuffled(self, blobs: Any, parts: int, stage: Stage) -> Any:
        """Have what a stage makes of blobs, all those of one partition (0 to parts - 1) in one call, sorted by (part, kind)."""
        ...

    def by_value(self, functions: Sequence[Callable[..., Any]]) -> AbstractContextManager[None]:
        """Have functions travel as their code meanwhile: workers cannot import a world file."""
        ...

    def collected(self, blobs: Any) -> Iterable[pa.RecordBatch]:
        """Give blobs to the driver, in any order."""
        ...

    def close(self) -> None:
        """Give back what it has of its own."""
        ...


@contextmanager
def pickled_by_value(cloudpickle: Any, functions: Sequence[Callable[..., Any]]) -> Generator[None]:
    """Have a cloudpickle, of which every engine has one, write the modules of functions as code meanwhile."""
    modules = {sys.modules[function.__module__] for function in functions} - {sys.modules["__main__"]}
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def silent(_: str) -> None:
    """Say nothing."""


def checked(given: Any, kind: type[Given], what: str, do: str) -> Given | None:
    """Give what an engine was told to work on, or None.

    Raises:
        DefinitionError: it is of another kind.
    """
    if given is not None and not isinstance(given, kind):
        found = f"{type(given).__module__}.{type(given).__qualname__}"
        raise DefinitionError(f"This is no {what}.", found=found, do=do)
    return given


class Options(TypedDict, total=False):
    """What every cluster's engine takes.

    Args:
        partitions: how many parts a source's rows are put into; about one for every 4 million rows by default.
        memory_bytes: how much of a partition's rows one task holds in memory; the rest waits on its machine's disk. 1 GiB by default.
        cache: a folder that all machines share, to keep there the rows of sources that are Parquet files, in partitions of entities; without it nothing is kept.
        say: told what is being done.
    """

    partitions: int | None
    memory_bytes: int
    cache: Path | None
    say: Callable[[str], None]


class ClusterEngine:
    """An engine that sends rows and moments to workers.

    Parquet files are read by the workers, in slices, and tables of the engine's own kind by the engine. Arrow tables, CSV files and DuckDB queries are
    read by the driver.

    Args:
        flow: the engine that moves them.
        folder: what relative paths in definitions start from; the same on every machine.
        options: see `Options`.

    Raises:
        DefinitionError: an option is none, or cannot be.
    """

    def __init__(self, flow: Flow, folder: Path | None = None, **options: Unpack[Options]) -> None:
        known, wrong = Options.__annotations__, options.get("partitions")
        for name in options:
            if name not in known:
                flow.close()
                raise DefinitionError(
                    f"A cluster's engine has no option {name!r}.",
                    expected=f"nearest: {nearest(name, known)}",
                    do="correct the name.",
                )
        if wrong is not None and wrong < 1:
            flow.close()
            raise DefinitionError(
                "There is at least one partition.", found=f"partitions={wrong}", do="give more, or none."
            )
        self._flow, self._partitions = flow, options.get("partitions")
        self._memory, self._say = options.get("memory_bytes", MEMORY_BYTES), options.get("say", silent)
        cache = options.get("cache")
        self._cache = None if cache is None else Cache(cache.resolve())
        # Workers need not be where the driver is.
        self._driver = DuckDBEngine((folder or Path()).resolve())

    @property
    def folder(self) -> Path:
        return self._driver.folder

    def close(self) -> None:
        """Stop what was started for this engine."""
        self._driver.close()
        self._flow.close()

    def describe(self, data: Any, what: str) -> dict[str, str]:
        return self._flow.describe(data) if self._flow.owns(data) else self._driver.describe(data, what)

    def table(self, data: Any, what: str, *, timezone: str | None = None) -> pa.Table:
        return self._driver.table(self._arrow(data), what, timezone=timezone)

    def batches(self, data: Any, what: str, *, rows: int, timezone: str | None = None) -> Iterator[pa.Table]:
        yield from self._driver.batches(self._arrow(data), what, rows=rows, timezone=timezone)

    def files(self, data: Any) -> list[Path] | None:
        return None if self._flow.owns(data) else self._driver.files(data)

    def digests(self, files: Sequence[Path]) -> list[tuple[int, str]]:
        if len(files) < _FEW_FILES:
            return self._driver.digests(files)
        take = functools.partial(_task, Digests(files), code())
        told = _checked(self._flow.collected(self._flow.tasks(len(files), take)))
        return [
            (size, digest) for _, size, digest in sorted(json.loads(data.to_pybytes()) for _, data in told)
        ]

    def sums(self, data: Any, what: str) -> tuple[int, str]:
        if not self._flow.owns(data):
            return self._driver.sums(data, what)
        schema = supported(self._flow.describe(data))
        found = self._flow.collected(self._flow.batches(data, list(schema), self._stage(Sums(schema))))
        sums = [json.loads(data.to_pybytes()) for _, data in _checked(found)]
        return sum(rows for rows, _ in sums), str(sum(int(total or 0) for _, total in sums))

    def _arrow(self, data: Any) -> Any:
        return self._flow.table(data) if self._flow.owns(data) else data

    def owns(self, data: Any) -> bool:
        """Whether data are a table of the engine's own kind."""
        return self._flow.owns(data)

    def staged(self, moments: Moments, folder: Path) -> Moments:
        """Give moments whose data are files, for those whose data are a table of the engine's own; other moments as they are.

        Args:
            moments: the moments.
            folder: where workers write the files; the same on every machine. Where it is already there, its files are those of the moments.
        """
        if not self._flow.owns(moments.data):
            return moments
        schema = dict(supported(self.describe(moments.data, "the moments")))

        def run(making: Path) -> Iterator[str]:
            self._say(f"writing the moments to {folder}")
            wrote = self._flow.batches(moments.data, list(schema), self._stage(WriteMoments(making, schema)))
            return (json.loads(data.to_pybytes()) for _, data in _checked(self._flow.collected(wrote)))

        return msgspec.structs.replace(
            moments, data=f"{exactly(staged(folder.resolve(), schema, run))}/*.parquet"
        )

    def aggregates(
        self,
        groupings: Sequence[Grouping],
        schemas: Mapping[str, Schema],
        asked: Asked,
        *,
        rows: Mapping[str, Rows],
        world: World,
    ) -> dict[str, pa.Array]:
        count, con = asked.at.shape[0], self._driver.connection
        questions = self._questions([Ask(grouping, world) for grouping in groupings], schemas, rows, count)
        if not questions:
            return {}
        found = {question.number: [no_answers(con, question)] for question in questions}
        times = (np.arange(count), asked.at, asked.as_of)
        moments = [b for question in questions for b in moment_blobs(con, question, asked.keys, *times)]
        with self._kept(questions, groupings, rows) as kept:
            prepared = self._prepared(questions, groupings, rows, given=moments, kept=kept)
            answer = self._stage(Answer(questions, self._memory, kept=kept))
            answers = self._flow.shuffled(prepared, _parts(questions), answer)
            for kind, data in _checked(self._flow.collected(answers)):
                found[kind - FIRST_ANSWER].append(unpacked(data))
        columns = [in_order(found.pop(question.number), count) for question in questions]
        return {name: column for some in columns for name, column in some.items()}

    def finish(
        self,
        asks: Sequence[Ask],
        schemas: Mapping[str, Schema],
        moments: Moments,
        read: Callable[[pa.Table], MomentTable],
        finish: Callable[[int, MomentTable, list[dict[str, pa.Array]]], bytes],
        *,
        rows: Mapping[str, Rows],
        rows_a_part: int,
        skip: Collection[int] = (),
        functions: Sequence[Callable[..., Any]] = (),
    ) -> tuple[int, list[bytes]]:
        """Have workers answer what is asked at all moments, and finish so many of them together.

        Moments are numbered as they lie in their files. The driver sees nothing of them where they are Parquet files; those of the engine's own table become such by `staged`.

        Args:
            asks: what is read.
            schemas: source content -> its pinned schema.
            moments: the table.
            read: gives the moments of a raw table whose naive timestamps have become instants. Called in workers, as the next one.
            finish: takes a part's number, its moments and the columns of every ask; gives what the driver is to know. It may be called twice for one part.
            rows: source content -> where its rows are.
            rows_a_part: how many moments are a part.
            skip: numbers of parts that need not be finished.
            functions: that `finish` calls and that are in no package.

        Returns:
            How many moments there are, and what `finish` gave of each part, in no order.
        """
        con = self._driver.connection
        schema = supported(self.describe(moments.data, "the moments"))
        slices = self._slices(moments.data)
        raw: list[pa.Table] = []
        if slices is None:
            self._say("the moments are no Parquet, so the driver reads them")
            raw = list(self._numbered(moments))
        count = sum(table.num_rows for table in raw) + _rows_in(slices)
        questions = self._questions(asks, schemas, rows, count)
        parts = -(-count // rows_a_part)
        send = ReadMoments(read, questions, rows_a_part, parts, frozenset(skip))
        empty = f"SELECT *{on_clocks(schema, moments.timezone)} FROM {no_rows(schema)}"
        nothing = read(con.sql(empty).to_arrow_table())
        if count == 0:
            nobody = [in_order([no_answers(con, question)], 0) for question in questions]
            return 0, [] if 0 in skip else [finish(0, nothing, nobody)]
        if skip and set(range(parts)) <= set(skip):
            return count, []
        sent = functools.partial(self._moments, send, slices, raw, dict(schema), moments.timezone)
        (asking, own), (finishing, mine) = sent(finishing=False), sent(finishing=True)
        groupings = [ask.grouping for ask in asks]
        given = [self._flow.given(pa.Table.from_batches(mine, BLOBS))] if mine else []
        last = Finish(questions, rows_a_part, nothing.fields.column_names, finish)
        with self._kept(questions, groupings, rows) as kept, self._flow.by_value(functions):
            prepared = self._prepared(questions, groupings, rows, given=own, more=asking, kept=kept)
            answer = self._stage(Answer(questions, self._memory, rows_a_part, parts, kept))
            answers = self._flow.shuffled(prepared, _parts(questions), answer)
            together = self._flow.union([*finishing, *given, answers])
            told = self._flow.collected(self._flow.shuffled(together, parts, self._stage(last)))
            finished = [data.to_pybytes() for _, data in _checked(told)]
        assert len(finished) == len(set(range(parts)) - set(skip)), (
            "every part is finished, or there is an error"
        )
        return count, finished

    def _moments(
        self,
        send: ReadMoments,
        slices: Sequence[Slice] | None,
        raw: Sequence[pa.Table],
        schema: dict[str, str],
        timezone: str | None,
        *,
        finishing: bool,
    ) -> tuple[list[Any], list[pa.RecordBatch]]:
        """Have moments where they are answered, or where they are finished: what workers read, and the driver's blobs."""
        con = self._driver.connection
        ways = (send.finishing(table) if finishing else send.asking(con, table) for table in raw)
        blobs = [blob for way in ways for blob in way]
        if not slices:
            return [], blobs
        read = MomentSlices(slices, schema, timezone, send, finishing)
        return [self._flow.tasks(len(slices), functools.partial(_task, read, code()))], blobs

    def _numbered(self, moments: Moments) -> Iterator[pa.Table]:
        first = 0
        about = (moments.data, "the moments")
        for table in self.batches(*about, rows=BATCH_ROWS, timezone=moments.timezone):
            yield table.append_column("__moment", pa.array(np.arange(first, first + table.num_rows)))
            first += table.num_rows

    def _questions(
        self, asks: Sequence[Ask], schemas: Mapping[str, Schema], rows: Mapping[str, Rows], moments: int
    ) -> list[Question]:
        known = [_rows_in(self._slices(_rows_of(ask.grouping, rows).data)) for ask in asks]
        by_rows = -(-max(known, default=0) // ROWS_A_PARTITION)
        by_moments = -(-moments // MOMENTS_A_PARTITION)
        parts = self._partitions or max(self._flow.parallelism, by_rows, by_moments)
        return [
            Question(
                number,
                parts,
                _bare(ask.grouping),
                dict(schemas[ask.grouping.source.content]),
                ask.world,
                ask.as_of,
            )
            for number, ask in enumerate(asks)
        ]

    def _stage(self, stage: Stage) -> Stage:
        return Guarded(stage, code())

    def _prepared(
        self,
        questions: Sequence[Question],
        groupings: Sequence[Grouping],
        rows: Mapping[str, Rows],
        *,
        given: Sequence[pa.RecordBatch],
        more: Sequence[Any] = (),
        kept: Mapping[int, Path] = MappingProxyType({}),
    ) -> Any:
        """Have, for every question, moments and the rows that they may read, in partitions of entities.

        Args:
            questions: what is asked.
            groupings: theirs, with their data.
            rows: source content -> where its rows are.
            given: the moments that the driver has.
            more: those that the engine has.
            kept: the questions whose rows need not be read.
        """
        asked = [(q, g) for q, g in zip(questions, groupings, strict=True) if q.number not in kept]
        plain = [(q, g) for q, g in asked if g.source.id is None]
        facts = [(q, g) for q, g in asked if g.source.id is not None]
        found = [*more, *self._read(plain, rows, given)]
        if facts:
            versions = self._flow.union(self._read(facts, rows, ()))
            live = self._stage(Live(questions))
            found.append(self._flow.shuffled(versions, _parts(questions), live))
        return self._flow.union(found)

    @contextmanager
    def _kept(
        self, questions: Sequence[Question], groupings: Sequence[Grouping], rows: Mapping[str, Rows]
    ) -> Generator[dict[int, Path]]:
        """Give the folders in which the rows of questions are kept; where they could be and are not yet, workers write them first."""
        found: dict[int, Path] = {}
        with ExitStack() as pins:
            for question, grouping in zip(questions, groupings, strict=True):
                where = _rows_of(grouping, rows)
                if self._cache is None or where.log is not None or self._slices(where.data) is None:
                    continue
                files = self._driver.files(where.data) or []
                contents = [
                    named_content(file, digest)
                    for file, (_, digest) in zip(files, self.digests(files), strict=True)
                ]
                key, made_of = key_of(question, grouping, contents, where.cutover)
                with self._cache.lock(KIND, key):
                    if self._cache.get(KIND, key) is None:
                        self._keep(self._cache, key, made_of, question, grouping, rows)
                folder = pins.enter_context(self._cache.pinned(KIND, key))
                if folder is not None:
                    found[question.number] = folder
            yield found

    def _keep(
        self,
        cache: Cache,
        key: str,
        made_of: Mapping[str, Any],
        question: Question,
        grouping: Grouping,
        rows: Mapping[str, Rows],
    ) -> None:
        """Have workers write the rows of a question."""
        title = f"{grouping.source.name} by {', '.join(grouping.keys)}"
        self._say(f"putting {title} into {question.parts:,} partitions")
        alone = dataclasses.replace(question, number=0)
        with cache.build(KIND, key, title, made_of) as building:
            prepared = self._prepared([alone], [grouping], rows, given=())
            written = self._flow.shuffled(prepared, alone.parts, self._stage(Keep(building.folder)))
            told = list(_checked(self._flow.collected(written)))
            assert not told, "who writes rows tells nothing but errors"
            sweep(building.folder)

    def _read(
        self,
        asked: Sequence[tuple[Question, Grouping]],
        rows: Mapping[str, Rows],
        given: Sequence[pa.RecordBatch],
    ) -> list[Any]:
        """Have all rows of some questions' sources, prepared, and what is given beside them."""
        blobs, found = list(given), list[Any]()
        tasks: list[tuple[Question, Slice, int | None]] = []
        con = self._driver.connection
        for question, grouping in asked:
            where, what = _rows_of(grouping, rows), f"source {grouping.source.name!r}"
            slices = self._slices(where.data)
            if self._flow.owns(where.data):
                stage = self._stage(PrepareBatches(question, where.cutover))
                found.append(self._flow.batches(where.data, list(question.schema), stage))
            elif slices is not None:
                tasks += [(question, some, where.cutover) for some in slices]
            else:
                if not isinstance(where.data, pa.Table):
                    self._say(f"{what} is no Parquet, so the driver reads it")
                with self._driver.readable(where.data, what) as relation:
                    blobs += prepared_blobs(con, question, relation, what, cutover=where.cutover)
            if where.log is not None:
                with self._driver.readable(where.log, f"the event log of {what}") as logged:
                    blobs += prepared_blobs(con, question, logged, what, stamped=True)
        if tasks:
            read = functools.partial(_task, PrepareSlices(tasks), code())
            found.append(self._flow.tasks(len(tasks), read))
        if blobs or not found:
            found.append(self._flow.given(pa.Table.from_batches(blobs, BLOBS)))
        return found

    def _slices(self, data: Any) -> list[Slice] | None:
        """Give the tasks of reading Parquet files; None for other data."""
        if self._flow.owns(data):
            return None
        files = self._driver.files(data)
        if not files or any(is_csv(str(path)) or not path.exists() for path in files):
            return None
        counts = self._driver.counts(files)
        size = max(min(ROWS_A_TASK, -(-sum(counts) // (2 * self._flow.parallelism))), 100_000)
        slices: list[Slice] = []
        offset = 0
        for path, rows in zip(files, counts, strict=True):
            slices += [Slice(path, first, min(first + size, rows), offset) for first in range(0, rows, size)]
            offset += rows
        return slices


def _task(prepare: Callable[[int], Blobs], known: str, number: int) -> Blobs:
    """One task of reading: as a stage of nothing, so that its errors travel as all others do."""
    yield from Guarded(lambda _: prepare(number), known)(iter(()))


def _rows_of(grouping: Grouping, rows: Mapping[str, Rows]) -> Rows:
    return rows.get(grouping.source.content, Rows(grouping.source.data))


def _rows_in(slices: Sequence[Slice] | None) -> int:
    return sum(some.last - some.first for some in slices or ())


def _bare(grouping: Grouping) -> Grouping:
    """Leave out where data lie."""
    source = msgspec.structs.replace(grouping.source, data=None)
    return Grouping(source, grouping.keys, grouping.inputs, grouping.reads)


def _parts(questions: Sequence[Question]) -> int:
    return sum(question.parts for question in questions)


def _checked(blobs: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.Buffer]]:
    """Give (kind, data) of every blob.

    Raises:
        SameworldError: what went wrong in a worker; of several errors always the same one.
    """
    wrong: list[pa.Buffer] = []
    for _, kind, data in pieces(blobs):
        if kind == ERROR:
            wrong.append(data)
        else:
            yield kind, data
    if wrong:
        raise raised(min(wrong, key=lambda data: data.to_pybytes()))
