"""Prove: recompute every logged vector from the sources, without opening the store, and compare bit by bit; every difference gets a named cause."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sameworld.asof.plan import Grouping, aggregates_of, groupings_of
from sameworld.asof.request import evaluate, feature_columns, fields_read
from sameworld.asof.schema import VALUE_TYPES, supported
from sameworld.definitions.feature import Aggregate, Category, Derive, Feature
from sameworld.definitions.model import Model, as_json
from sameworld.definitions.parts import aggregate_columns, seen_by_tiers
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked, Engine, Rows
from sameworld.errors import ProofError
from sameworld.evaluation.kept import kept_answers, not_judged, wrong_answers
from sameworld.stores import event_log
from sameworld.stores import fingerprint as fingerprints
from sameworld.stores.history import served_rows
from sameworld.stores.prediction_log import Prediction, column_of, predictions
from sameworld.training.bundle import Bundle, Registry, environment
from sameworld.training.world_file import functions_in

Say = Callable[[str], None]
Against = Literal["log", "files"]

_DIAGNOSED = 200


@dataclass(frozen=True)
class Difference:
    """One cell that differs.

    Args:
        where: the log record.
        model, feature: names.
        entity: key field -> value of the feature's entity, or the inputs of a derived feature.
        t: microseconds; the moment.
        logged, recomputed: the two values.
        cause: late row, correction, missing source, default, definition, code, environment, replay order, kept answer, log.
        detail: what the cause rests on.
    """

    where: str
    model: str
    feature: str
    entity: dict[str, Any]
    t: int
    logged: Any
    recomputed: Any
    cause: str
    detail: str

    def text(self) -> str:
        """The difference as a person reads it."""
        entity = ", ".join(f"{name}={value!r}" for name, value in self.entity.items())
        moment = np.datetime64(self.t, "us")
        return (
            f"{self.model} {self.feature} of {entity or 'the request'} at {moment}Z ({self.where})\n"
            f"  logged: {_shown(self.logged)}\n  recomputed: {_shown(self.recomputed)}\n  cause: {self.cause}; {self.detail}"
        )


def _shown(value: Any) -> str:
    return f"{value!r} ({struct.pack('>d', value).hex()})" if isinstance(value, float) else repr(value)


@dataclass
class Proof:
    """What a proof found.

    Args:
        vectors: logged vectors recomputed; of a ranking one a candidate.
        values: cells compared: those that the tier saw.
        different: cells that differ, and records that are damaged.
        without_vector: answers from a fallback, which used no vector; by reason in `defaults`.
        differences: the first ones, with their causes.
        causes: cause -> count over all differences.
        defaults: reason -> number of answers without a vector.
        replaced: feature -> number of vectors that had null in its place, since its source was stale or unreadable; a null is what has to be there.
        kept: how many answers had been computed for the same vector before; each must be what the bundle says of it.
        kept_unjudged: how many of these cannot be computed here, where flat trees do not answer as they did where they were made.
    """

    vectors: int = 0
    values: int = 0
    different: int = 0
    without_vector: int = 0
    differences: list[Difference] = field(default_factory=list[Difference])
    causes: Counter[str] = field(default_factory=Counter[str])
    defaults: Counter[str] = field(default_factory=Counter[str])
    replaced: Counter[str] = field(default_factory=Counter[str])
    kept: int = 0
    kept_unjudged: int = 0

    def as_json(self, listed: int = 20) -> dict[str, Any]:
        """The proof for a script."""
        return {
            "vectors": self.vectors,
            "values": self.values,
            "different": self.different,
            "without_vector": self.without_vector,
            "causes": dict(self.causes),
            "defaults": dict(self.defaults),
            "replaced": dict(self.replaced),
            "kept": self.kept,
            "kept_unjudged": self.kept_unjudged,
            "differences": [
                {
                    **{
                        name: getattr(d, name)
                        for name in ("where", "model", "feature", "entity", "t", "cause", "detail")
                    },
                    "logged": repr(d.logged),
                    "recomputed": repr(d.recomputed),
                }
                for d in self.differences[:listed]
            ],
        }


def prove(
    models: Mapping[str, Model],
    registry: Registry,
    state: Path,
    *,
    engine: Engine,
    against: Against = "log",
    say: Say = lambda _: None,
) -> Proof:
    """Recompute every logged vector.

    Args:
        models: the world's, as it is now; a definition that changed since is a cause.
        registry: where the bundles that answered are.
        state: the server's folder.
        engine: recomputes from the sources. Where it is not of one machine, the causes of what differs are looked for here all the same.
        against: "log": files up to the cutover and the event log after it; "files": the files alone, as training reads them.
        say: told what is being done.

    Raises:
        ProofError: there is nothing to prove.
    """
    if not (state / "predictions").exists():
        raise ProofError(
            "There is no prediction log.", where=str(state), do="serve the model first, or give --state."
        )
    proof = Proof()
    by_version: dict[str, list[tuple[str, Prediction]]] = {}
    for where, prediction in predictions(state):
        if prediction is None:
            proof.different += 1
            proof.causes["log"] += 1
            proof.differences.append(
                Difference(
                    where, "", "", {}, 0, None, None, "log", "the record's bytes do not match their checksum"
                )
            )
        elif prediction.ranked is not None and not prediction.ranked.candidates:
            continue  # there was nothing to compute
        elif prediction.features is None:
            proof.without_vector += 1
            proof.defaults[prediction.reason] += 1
        else:
            rows = by_version.setdefault(prediction.version, [])
            rows += (
                (_candidate(where, prediction, number), row) for number, row in enumerate(prediction.rows())
            )
    functions = functions_in(models.values())
    here = engine if isinstance(engine, DuckDBEngine) else DuckDBEngine(engine.folder)
    done: list[tuple[_Version, dict[str, pa.Array]]] = []
    for version, logged in by_version.items():
        bundle = registry.load(version, functions, without_code=True, unpickle=False)
        say(
            f"recomputing {len(logged):,} vectors of {bundle.model.name} ({version[:8]}, trained {bundle.description.world})"
        )
        # In the order of time, so that versions that were asked the same can share what is recomputed.
        logged.sort(key=lambda row: (row[1].t, repr(row[1].request)))
        current = models.get(bundle.model.name, bundle.model)
        asked = _Version(proof, bundle, current, logged, state, engine, here, against)
        known = next((columns for other, columns in done if asked.asks_the_same_as(other)), None)
        columns = asked.recompute(asked.rows, asked.features) if known is None else known
        done.append((asked, dict(columns)))
        asked.compare(dict(columns))
        kept = kept_answers(logged)
        unjudged, reason = not_judged(bundle, kept)
        proof.kept += len(kept)
        proof.kept_unjudged += unjudged
        if unjudged:
            say(
                f"{unjudged:,} kept answers of {bundle.model.name} ({version[:8]}) are not judged, their vectors are: {reason}"
            )
        for where, row, value in wrong_answers(bundle, kept):
            proof.different += 1
            proof.causes["kept answer"] += 1
            detail = "it had been computed before, and is not what the bundle says of this vector"
            proof.differences.append(
                Difference(where, row.model, "(answer)", {}, row.t, row.value, value, "kept answer", detail)
            )
    return proof


def _candidate(where: str, prediction: Prediction, number: int) -> str:
    return where if prediction.ranked is None else f"{where}, candidate {number}"


class _Version:
    """The vectors of one bundle."""

    def __init__(
        self,
        proof: Proof,
        bundle: Bundle,
        current: Model,
        logged: list[tuple[str, Prediction]],
        state: Path,
        engine: Engine,
        here: DuckDBEngine,
        against: Against,
    ) -> None:
        self.proof = proof
        self.bundle = bundle
        self.logged = logged
        self.state = state
        self.engine = engine
        self.here = here
        self.schemas = bundle.description.schemas
        self.current = current
        # What changed in the world file since the bundle was made is recomputed as it is now: that is the difference a user has to hear of.
        self.features = {
            name: current.features.get(name, feature) for name, feature in bundle.model.features.items()
        }
        self.feature_of = dict(feature_columns(bundle.model.features))
        self.changed = {
            name: _change(bundle.model.features[name], feature) for name, feature in self.features.items()
        }
        self.features = self._possible()
        self.named: dict[tuple[str, int], tuple[str, str]] = {}
        self.fingerprints: dict[str, fingerprints.Fingerprint] = {}
        self.entities: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        self.at = np.array([p.t for _, p in logged], np.int64)
        self.tiers = _Alike([p.tier for _, p in logged])
        self.defaults = _Alike([tuple(p.defaults or ()) for _, p in logged])
        seen = seen_by_tiers(bundle.model.features, bundle.model.fallbacks)
        self.seen = {tier: {name for name, _ in feature_columns(features)} for tier, features in seen.items()}
        request = bundle.description.request
        columns = zip(*(p.request for _, p in logged), strict=True)
        self.fields = {
            name: pa.array(list(values), VALUE_TYPES[family])
            for (name, family), values in zip(request.items(), columns, strict=True)
        }
        self.aggregates = aggregates_of(self.features.values())
        self.sources = {a.source.content: a.source for a in self.aggregates}
        for content, source in self.sources.items():
            if content not in self.schemas:
                self.schemas = {
                    **self.schemas,
                    content: engine.describe(source.data, f"source {source.name!r}"),
                }
        # Live, what was readable is what was in the snapshot: a delivery may have been stamped before the moment and have come into the index after it.
        self.as_of = event_log.first_unseen(
            state / "events", np.array([p.sequence for _, p in logged], np.int64)
        )
        self.schemas = {content: supported(schema) for content, schema in self.schemas.items()}
        self.served = served_rows(state, self.sources.values(), self.schemas)
        self.rows = self.served if against == "log" else {c: Rows(s.data) for c, s in self.sources.items()}

    def _possible(self) -> dict[str, Feature]:
        """Give the features that can be recomputed, and note why the others cannot and which derived ones rest on a changed input."""
        possible = dict(self.features)
        known = {
            *self.bundle.description.request,
            *self.feature_of,
            *(name for name, _ in feature_columns(possible)),
        }
        settled = False
        while not settled:
            settled = True
            for name, feature in list(possible.items()):
                plain = _plain(feature)
                lost = (
                    fields_read({name: feature}) | set(plain.keys if isinstance(plain, Aggregate) else ())
                ) - known
                if isinstance(plain, Derive) and plain.function.call is None:
                    self.changed[name] = (
                        "code",
                        f"the code of {plain.function.name!r} ({plain.function.code}) is no longer in the world",
                    )
                elif lost:
                    self.changed[name] = (
                        "definition",
                        f"it reads {', '.join(sorted(lost))}, which the logged requests do not have",
                    )
                else:
                    continue
                del possible[name]
                known -= {column for column, of in self.feature_of.items() if of == name}
                settled = False
        settled = False
        while not settled:
            settled = True
            for name, feature in self.features.items():
                plain = _plain(feature)
                for item in plain.inputs if isinstance(plain, Derive) and not self.changed[name] else ():
                    of = self.changed.get(self.feature_of.get(item, ""))
                    if of:
                        self.changed[name] = (of[0], f"its input {item!r}: {of[1]}")
                        settled = False
        return possible

    def recompute(
        self,
        rows: Mapping[str, Rows],
        features: Mapping[str, Feature],
        chosen: np.ndarray[Any, Any] | None = None,
        at: Any = None,
    ) -> dict[str, pa.Array]:
        at, as_of = self.at if at is None else at, self.as_of
        fields = self.fields
        if chosen is not None:
            at, as_of = at[chosen], as_of[chosen]
            fields = {name: array.take(pa.array(chosen)) for name, array in fields.items()}
        engine = self.engine if chosen is None else self.here
        aggregates = engine.aggregates(
            groupings_of(aggregates_of(features.values())),
            self.schemas,
            Asked(pa.table(fields), at, np.minimum(at, as_of)),
            rows=rows,
            world="as_of",
        )
        return evaluate(features, self._as_replaced(aggregates, features, chosen), fields, self.bundle.types)

    def _as_replaced(
        self,
        aggregates: Mapping[str, pa.Array],
        features: Mapping[str, Feature],
        chosen: np.ndarray[Any, Any] | None,
    ) -> dict[str, pa.Array]:
        """Put null where the log says that the server did: what was derived from it has to be derived from null."""
        result = dict(aggregates)
        for column, _, own in aggregate_columns(features):
            gone = self.defaults.rows(lambda names, column=column: column in names)
            gone = gone if chosen is None else gone[chosen]
            if gone.any():
                result[own] = _null_where(gone, result[own])
        return result

    def asks_the_same_as(self, other: _Version) -> bool:
        """Whether the vectors of another bundle have the same definitions, moments and requests."""
        return (
            self.features == other.features
            and self.bundle.types == other.bundle.types
            and np.array_equal(self.at, other.at)
            and np.array_equal(self.as_of, other.as_of)
            and self.defaults.values == other.defaults.values
            and self.fields == other.fields
        )

    def compare(self, recomputed: dict[str, pa.Array]) -> None:
        """Compare every cell with what was recomputed."""
        names = list(self.bundle.types)
        columns = zip(*(p.features or [] for _, p in self.logged), strict=True)
        self.proof.vectors += len(self.logged)
        self.proof.replaced.update(name for names in self.defaults.values for name in names)
        wrong: dict[str, np.ndarray[Any, Any]] = {}
        kept: dict[str, pa.Array] = {}
        for name, values in zip(names, columns, strict=True):
            kept[name] = column_of(values, self.bundle.types[name])
            # A column that the world does not have any more is one that gives nothing.
            recomputed.setdefault(name, pa.nulls(len(self.logged), kept[name].type))
            sees = self.tiers.rows(lambda tier, name=name: name in self.seen.get(tier, ()))
            self.proof.values += int(sees.sum())
            if not sees.all():  # what a tier does not see is null in its vector
                recomputed[name] = _null_where(~sees, recomputed[name])
            different = np.flatnonzero(~same_bits(kept[name], recomputed[name]))
            if different.size:
                wrong[name] = different
        # Inputs first: what is derived from a wrong value is wrong for the same reason.
        for name in sorted(wrong, key=lambda name: self._depth(self.feature_of[name])):
            self.proof.different += int(wrong[name].size)
            self._diagnose(name, self.feature_of[name], wrong[name], kept[name], recomputed[name])

    def _depth(self, feature: str) -> int:
        """How many derivations a feature is away from the sources and the request."""
        plain = _plain(self.bundle.model.features[feature])
        inputs = plain.inputs if isinstance(plain, Derive) else ()
        deeper = [
            self._depth(self.feature_of[item])
            for item in inputs
            if self.feature_of.get(item, feature) != feature
        ]
        return 1 + max(deeper, default=0) if inputs else 0

    def _diagnose(
        self, column: str, feature: str, places: np.ndarray[Any, Any], logged: pa.Array, recomputed: pa.Array
    ) -> None:
        chosen = places[:_DIAGNOSED]
        changed = self.changed[feature]
        plain = _plain(self.features.get(feature, self.bundle.model.features[feature]))
        as_served = None
        if not changed:
            as_served = (
                self.recompute(self.served, {feature: self.features[feature]}, chosen).get(column)
                if isinstance(plain, Aggregate)
                else None
            )
        causes: Counter[str] = Counter()
        for number, place in enumerate(chosen.tolist()):
            where, prediction = self.logged[place]
            old, new = logged[place].as_py(), recomputed[place].as_py()
            if changed:
                cause, detail = changed
            else:
                cause, detail = self._cause(
                    plain,
                    place,
                    old,
                    new,
                    as_served[number].as_py() if as_served is not None else None,
                    prediction,
                )
            entity = (
                {key: self.fields[key][place].as_py() for key in plain.keys}
                if isinstance(plain, Aggregate)
                else {}
            )
            causes[cause] += 1
            self.named[column, place] = cause, detail
            self.proof.differences.append(
                Difference(
                    where, self.bundle.model.name, column, entity, prediction.t, old, new, cause, detail
                )
            )
        most = causes.most_common(1)[0][0]
        causes[most] += int(places.size) - len(chosen)
        self.proof.causes.update(causes)

    def _cause(
        self, plain: Feature, place: int, old: Any, new: Any, served: Any, prediction: Prediction
    ) -> tuple[str, str]:
        """Name why a cell differs, from what the server had read and what the sources say now."""
        if isinstance(plain, Aggregate):
            found = self._source_cause(plain, place, old, served)
            if found:
                return found
            if old is None and new is not None:
                return "default", "a null was served where the sources give a value"
            by_order = self._by_sequence(plain, place, prediction)
            if by_order is not None and _bits(by_order) == _bits(old):
                return (
                    "replay order",
                    f"the value is that of the events up to sequence {prediction.sequence}, whenever they became readable",
                )
        if isinstance(plain, Derive):
            for item in plain.inputs:
                if (item, place) in self.named:
                    cause, detail = self.named[item, place]
                    return cause, f"its input {item!r}: {detail}"
        here, there = environment(), self.bundle.description.environment
        differing = [
            f"{name} {there.get(name)} -> {here[name]}" for name in here if here[name] != there.get(name)
        ]
        if differing and not isinstance(plain, Aggregate):
            return "environment", ", ".join(differing)
        return (
            "log",
            "nothing the sources ever held gives the logged value: the log was altered, or the server computed otherwise",
        )

    def _source_cause(self, plain: Aggregate, place: int, old: Any, served: Any) -> tuple[str, str] | None:
        source = plain.source
        grouping = groupings_of([plain])[0]
        if self.rows is not self.served and _bits(served) == _bits(old):
            return self._row_cause(grouping, place)
        then = fingerprints.load(self.state).get(source.content)
        if source.content not in self.fingerprints:
            self.fingerprints[source.content] = fingerprints.fingerprint(
                self.here,
                source,
                self.schemas[source.content],
                self.served[source.content].cutover,
            )
        now = self.fingerprints[source.content]
        if then is None or then == now:
            return None
        if now.rows < then.rows:
            return self._past_cutover(grouping, place) or (
                "missing source",
                f"source {source.name!r} had {then.rows:,} readable rows when the store was filled and has {now.rows:,} now",
            )
        if now.contents == then.contents:
            return (
                "late row",
                f"rows of source {source.name!r} say another available time than when the store was filled",
            )
        if now.rows == then.rows:
            return (
                "correction",
                f"source {source.name!r} has as many readable rows as when the store was filled, with other contents",
            )
        if source.id is not None and now.facts == then.facts:
            return (
                "correction",
                f"source {source.name!r} has {now.rows - then.rows:,} more versions of the same facts than when the store was filled",
            )
        return (
            "late row",
            f"source {source.name!r} had {then.rows:,} readable rows when the store was filled and has {now.rows:,} now",
        )

    def _rows_of(self, grouping: Grouping, place: int, rows: Rows) -> list[dict[str, Any]]:
        """Give all row versions of the entity of one moment; cells that differ are mostly of a few entities."""
        keys = pa.table({key: self.fields[key].slice(place, 1) for key in grouping.keys})
        entity = tuple(column.to_pylist()[0] for column in keys.columns)
        known = grouping.content, entity, rows.cutover, rows.log is None
        if known not in self.entities:
            schema = self.schemas[grouping.source.content]
            self.entities[known] = self.here.entity_rows(grouping, schema, keys, rows)
        return self.entities[known]

    def _past_cutover(self, grouping: Grouping, place: int) -> tuple[str, str] | None:
        """Look for a row of before the cutover that the files now say became readable after it, and that was never delivered."""
        rows = self.served[grouping.source.content]
        delivered = {_identity(row) for row in self._rows_of(grouping, place, rows)}
        for row in self._rows_of(grouping, place, Rows(rows.data)):
            late = rows.cutover is not None and row["event_time"] < rows.cutover <= row["available_at"]
            if late and _identity(row) not in delivered:
                return (
                    "late row",
                    f"the row of {np.datetime64(row['event_time'], 'us')}Z became readable at {np.datetime64(row['available_at'], 'us')}Z, after the cutover, and was not delivered",
                )
        return None

    def _row_cause(self, grouping: Grouping, place: int) -> tuple[str, str] | None:
        """Compare the rows of one entity as the server had them with those of the sources now."""
        content = grouping.source.content
        t = int(self.at[place])
        had, has = (self._rows_of(grouping, place, rows[content]) for rows in (self.served, self.rows))
        before = [row for row in had if row["available_at"] < t]
        after = [row for row in has if row["available_at"] < t]
        # The tie is a hash of the whole row, and the available time may be one of its columns.
        exactly = {row["tie"]: row for row in has}
        alike = {_identity(row): row for row in has}
        for row in before:
            there = exactly.get(row["tie"]) or alike.get(_identity(row))
            if there is None:
                newer = [other for other in has if row["fact"] is not None and other["fact"] == row["fact"]]
                if newer:
                    return (
                        "correction",
                        f"fact {row['fact']!r} has another version in the sources than the server had",
                    )
                return (
                    "missing source",
                    f"the row of {np.datetime64(row['event_time'], 'us')}Z that the server had is not in the source",
                )
            if there["available_at"] >= t:
                return (
                    "late row",
                    f"the row of {np.datetime64(row['event_time'], 'us')}Z became readable at {np.datetime64(there['available_at'], 'us')}Z, after the moment",
                )
            if there["superseded_at"] != row["superseded_at"] and there["superseded_at"] < t:
                return (
                    "correction",
                    f"fact {row['fact']!r} was corrected at {np.datetime64(there['superseded_at'], 'us')}Z, which the server did not know",
                )
        known = {_identity(row) for row in before}
        for row in after:
            if _identity(row) not in known:
                if row["fact"] is not None and any(other["fact"] == row["fact"] for other in had):
                    return "correction", f"fact {row['fact']!r} has a version that the server did not have"
                return (
                    "late row",
                    f"the row of {np.datetime64(row['event_time'], 'us')}Z is in the source and was not with the server",
                )
        if len(after) != len(before):
            cause = "late row" if len(after) > len(before) else "missing source"
            return (
                cause,
                f"the server had {len(before)} readable rows of the entity, and the source has {len(after)}",
            )
        return None

    def _by_sequence(self, plain: Aggregate, place: int, prediction: Prediction) -> Any:
        """The value from the events up to the sequence seen, however they are stamped."""
        table = self.served[plain.source.content].log
        if table is None:
            return None
        upto = table.filter(pa.array(table["__sequence"].to_numpy() <= prediction.sequence))
        stamped = upto.set_column(
            upto.schema.get_field_index("__available_us"),
            "__available_us",
            pa.array(np.full(upto.num_rows, prediction.t - 1, np.int64)),
        )
        content = plain.source.content
        rows = {content: Rows(plain.source.data, self.served[content].cutover, stamped)}
        return next(iter(self.recompute(rows, {"x": plain}, np.array([place])).values()))[0].as_py()


class _Alike:
    """What rows say where many say the same: asked about once for all of those."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = list(values)
        places = {value: place for place, value in enumerate(dict.fromkeys(values))}
        self._different = list(places)
        self._places = np.array([places[value] for value in values], np.int64)

    def rows(self, holds: Callable[[Any], bool]) -> np.ndarray[Any, Any]:
        """Give for which rows something holds of what they say, shape (rows,)."""
        return np.array([holds(value) for value in self._different], np.bool_)[self._places]


def _null_where(gone: np.ndarray[Any, Any], column: pa.Array) -> pa.Array:
    return pc.if_else(pa.array(gone), pa.scalar(None, column.type), column)


def _plain(feature: Feature) -> Feature:
    return feature.of if isinstance(feature, Category) else feature


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Give what makes two rows the same whenever they became readable."""
    unlike = ("entity", "came_at", "available_at", "superseded_at", "tie")
    return tuple(repr(value) for name, value in sorted(row.items()) if name not in unlike)


def _change(old: Feature, new: Feature) -> tuple[str, str] | None:
    """Name how a feature's definition differs from the bundle's, if it does."""
    first, second = _plain(old), _plain(new)
    if (
        isinstance(first, Derive)
        and isinstance(second, Derive)
        and first.function.code != second.function.code
    ):
        return (
            "code",
            f"the code of {second.function.name!r} is not that of the bundle ({first.function.code} -> {second.function.code})",
        )
    before, after = (_meaning(feature) for feature in (old, new))
    if before == after:
        return None
    parts = [
        f"{name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    return "definition", "; ".join(parts)


def _meaning(feature: Feature) -> dict[str, Any]:
    data = as_json(feature)
    flat = {**data, **data["of"]} if "of" in data else dict(data)
    if isinstance(flat.get("source"), dict):
        without = ("data", "fresh_within")
        flat["source"] = {name: value for name, value in flat["source"].items() if name not in without}
    for name in ("of", "stale"):  # no value depends on when a source counts as stale
        flat.pop(name, None)
    return flat


def same_bits(first: pa.Array, second: pa.Array) -> np.ndarray[Any, Any]:
    """Give, for each row, whether two columns have the same bits (or are both null)."""
    nulls = [array.is_null().to_numpy(zero_copy_only=False) for array in (first, second)]
    if first.type != second.type:
        return nulls[0] & nulls[1]
    if pa.types.is_list(first.type):
        return _same_lists(first, second)
    if pa.types.is_floating(first.type):
        bits = [
            array.fill_null(0.0).to_numpy(zero_copy_only=False).view(np.int64) for array in (first, second)
        ]
    else:
        bits = [array.to_numpy(zero_copy_only=False) for array in (first, second)]
        if any(b.dtype == np.float64 for b in bits):  # integers with nulls: compare them exactly
            bits = [array.fill_null(0).to_numpy(zero_copy_only=False) for array in (first, second)]
    return np.where(nulls[0] | nulls[1], nulls[0] & nulls[1], bits[0] == bits[1])


def _same_lists(first: pa.Array, second: pa.Array) -> np.ndarray[Any, Any]:
    """Give `same_bits` of two columns of lists."""
    lengths = [
        array.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False) for array in (first, second)
    ]
    same = lengths[0] == lengths[1]
    alike = [array.filter(pa.array(same)) for array in (first, second)]
    row_of = np.repeat(np.flatnonzero(same), np.maximum(lengths[0][same], 0))
    same[row_of[~same_bits(alike[0].flatten(), alike[1].flatten())]] = False
    return same


def _bits(value: Any) -> Any:
    if isinstance(value, list):
        return [_bits(item) for item in value]
    return struct.pack("<d", value) if isinstance(value, float) else value
