"""What the record log promises: acknowledged is kept, a torn tail is cut, damage is named."""

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sameworld.errors import LogError
from sameworld.stores.record_log import RecordLog, read

MAGIC_BYTES = HEADER_BYTES = 8
PAYLOADS = [b"first", b"", b"third record", b"\0" * 40, b"the last one"]


def open_log(folder: Path, segment_bytes: int = 1 << 20) -> RecordLog:
    return RecordLog.open(folder, durability="process", segment_bytes=segment_bytes)


def written(folder: Path, payloads: Sequence[bytes] = PAYLOADS, segment_bytes: int = 1 << 20) -> Path:
    """A log with one group a record; returns its newest segment."""
    with open_log(folder, segment_bytes) as log:
        for payload in payloads:
            log.append([payload])
    return max(folder.iterdir())


def offset_of(number: int, payloads: Sequence[bytes] = PAYLOADS) -> int:
    return MAGIC_BYTES + sum(HEADER_BYTES + len(payload) for payload in payloads[:number])


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A real second process, without buffering between its print and our read."""
    command = [sys.executable, "-u", "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


groups_of_payloads = st.lists(st.lists(st.binary(max_size=60), max_size=5), max_size=12)


@settings(max_examples=60, deadline=None)
@given(groups=groups_of_payloads, segment_bytes=st.integers(1, 400), start=st.integers(0, 70), data=st.data())
def test_what_was_appended_is_read_back_in_order_across_segments_and_reopenings(
    groups: list[list[bytes]], segment_bytes: int, start: int, data: st.DataObject
) -> None:
    with TemporaryDirectory() as name:
        folder, expected = Path(name) / "log", list[tuple[int, bytes]]()
        log = open_log(folder, segment_bytes)
        for group in groups:
            if data.draw(st.booleans(), label="reopen"):
                log.close()
                log = open_log(folder, segment_bytes)
            numbers = log.append(group)
            assert numbers == range(len(expected), len(expected) + len(group))
            expected.extend(zip(numbers, group, strict=True))
            assert log.next_number == len(expected)
        log.close()

        assert list(read(folder)) == expected
        assert list(read(folder, start)) == expected[start:]
        assert list(read(folder, start, damaged="skip")) == expected[start:]


def test_a_record_larger_than_a_read_and_than_a_segment_is_kept(tmp_path: Path) -> None:
    payloads = [b"small", os.urandom(3 << 20), b"small again", bytes(1 << 20)]

    written(tmp_path, payloads, segment_bytes=1000)

    assert [payload for _, payload in read(tmp_path)] == payloads
    with open_log(tmp_path) as log:
        assert log.next_number == 4


def test_a_log_kept_on_disk_reads_the_same(tmp_path: Path) -> None:
    for reopened in range(3):
        with RecordLog.open(tmp_path / "a" / "b", durability="disk", segment_bytes=64) as log:
            assert log.append(PAYLOADS) == range(5 * reopened, 5 * reopened + 5)
    assert [payload for _, payload in read(tmp_path / "a" / "b")] == PAYLOADS * 3


def test_a_missing_or_empty_folder_reads_as_nothing(tmp_path: Path) -> None:
    assert list(read(tmp_path / "missing")) == []
    assert list(read(tmp_path)) == []
    assert not (tmp_path / "missing").exists()


def test_segments_are_named_after_their_first_record_and_other_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "writers.lock").write_bytes(b"")
    (tmp_path / "7.log").write_bytes(b"not one of ours")
    written(tmp_path, [bytes(100)] * 3, segment_bytes=150)
    names = [f"{number:020d}.log" for number in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "7.log", "writers.lock"]


def test_a_tail_torn_at_any_byte_is_not_read_and_then_cut_and_nothing_else_is(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole").read_bytes()
    for size in range(offset_of(4), len(whole)):
        folder = tmp_path / str(size)
        segment = written(folder)
        segment.write_bytes(whole[:size])

        assert [payload for _, payload in read(folder)] == PAYLOADS[:4]
        assert segment.read_bytes() == whole[:size], "a reader changes nothing"
        with open_log(folder) as log:
            assert segment.read_bytes() == whole[: offset_of(4)]
            assert log.append([b"instead"]) == range(4, 5)
        assert list(read(folder, 3)) == [(3, PAYLOADS[3]), (4, b"instead")]


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_segment_whose_writer_died_before_its_magic_is_begun_again(tmp_path: Path, size: int) -> None:
    written(tmp_path)
    magic = max(tmp_path.iterdir()).read_bytes()[:size]
    (tmp_path / f"{len(PAYLOADS):020d}.log").write_bytes(magic)

    assert [payload for _, payload in read(tmp_path)] == PAYLOADS
    written(tmp_path, [b"next"])
    assert [payload for _, payload in read(tmp_path)] == [*PAYLOADS, b"next"]


@pytest.mark.parametrize("kept", [0, 3, 8, 15])
def test_zeros_that_a_power_cut_leaves_at_the_end_are_a_torn_tail(tmp_path: Path, kept: int) -> None:
    segment = written(tmp_path)
    whole = segment.read_bytes()
    segment.write_bytes(whole[: offset_of(4) + kept] + bytes(5000))

    assert [payload for _, payload in read(tmp_path)] == PAYLOADS[:4]
    written(tmp_path, [b"next"])
    assert [payload for _, payload in read(tmp_path)] == [*PAYLOADS[:4], b"next"]


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_any_changed_bit_before_the_last_record_is_named_and_never_cut(tmp_path: Path, number: int) -> None:
    segment = written(tmp_path)
    whole = segment.read_bytes()
    named = re.escape(f"Log segment '{segment.name}' is damaged at byte {offset_of(number)}.")
    survivors = [(at, None if at == number else payload) for at, payload in enumerate(PAYLOADS)]
    for bit in range(offset_of(number) * 8, offset_of(number + 1) * 8):
        spoiled = bytearray(whole)
        spoiled[bit // 8] ^= 1 << bit % 8
        segment.write_bytes(spoiled)

        with pytest.raises(LogError, match=named):
            open_log(tmp_path)
        with pytest.raises(LogError, match=named):
            list(read(tmp_path))
        assert list(read(tmp_path, damaged="skip")) == survivors
        assert segment.read_bytes() == spoiled


def test_a_damaged_record_is_reported_in_full(tmp_path: Path) -> None:
    segment = written(tmp_path)
    spoiled = bytearray(segment.read_bytes())
    spoiled[offset_of(2) + HEADER_BYTES] ^= 1
    segment.write_bytes(spoiled)

    with pytest.raises(LogError) as caught:
        list(read(tmp_path))

    assert str(caught.value) == (
        f"Log segment '{segment.name}' is damaged at byte {offset_of(2)}.\n"
        f"  in: {segment}\n"
        "  expected: record 2\n"
        "  found: bytes that do not match their length and checksum, and more bytes after them\n"
        "  do: restore the segment from a copy; damaged='skip' reads the records that are whole."
    )


def test_neighbouring_damaged_records_are_each_named(tmp_path: Path) -> None:
    segment = written(tmp_path)
    spoiled = bytearray(segment.read_bytes())
    spoiled[offset_of(2) + HEADER_BYTES] ^= 1
    spoiled[offset_of(3) + HEADER_BYTES] ^= 1
    segment.write_bytes(spoiled)
    survivors = [PAYLOADS[0], PAYLOADS[1], None, None, PAYLOADS[4]]
    assert [payload for _, payload in read(tmp_path, damaged="skip")] == survivors


@pytest.mark.parametrize("lost_bytes", [1, 30, 120])
def test_an_older_segment_cut_short_is_damage_that_only_reading_meets(
    tmp_path: Path, lost_bytes: int
) -> None:
    payloads = [bytes([number]) * 50 for number in range(6)]
    written(tmp_path, payloads, segment_bytes=200)
    older = min(tmp_path.iterdir())
    os.truncate(older, older.stat().st_size - lost_bytes)

    with open_log(tmp_path) as log:
        assert log.next_number == 6
    with pytest.raises(LogError, match=f"{older.name}' is damaged"):
        list(read(tmp_path))
    lost = 1 + lost_bytes // 58
    survivors = [None if 3 - lost <= number < 3 else payload for number, payload in enumerate(payloads)]
    assert list(read(tmp_path, damaged="skip")) == list(enumerate(survivors))


def test_a_missing_segment_is_named_and_removed_oldest_ones_are_not_missed(tmp_path: Path) -> None:
    payloads = [bytes([number]) * 50 for number in range(5)]
    written(tmp_path, payloads, segment_bytes=1)
    segments = sorted(tmp_path.iterdir())

    segments[0].unlink()
    assert list(read(tmp_path)) == list(enumerate(payloads))[1:]

    segments[2].unlink()
    with pytest.raises(LogError, match="the next segment begins with record 3"):
        list(read(tmp_path))
    survivors = [(1, payloads[1]), (2, None), (3, payloads[3]), (4, payloads[4])]
    assert list(read(tmp_path, damaged="skip")) == survivors


def test_a_file_that_is_no_segment_is_refused_and_left_alone(tmp_path: Path) -> None:
    stranger = tmp_path / f"{0:020d}.log"
    stranger.write_bytes(b"a diary, dear to somebody")
    for attempt in (lambda: open_log(tmp_path), lambda: list(read(tmp_path))):
        with pytest.raises(LogError, match="damaged at byte 0"):
            attempt()
    assert stranger.read_bytes() == b"a diary, dear to somebody"


WRITE_UNTIL_KILLED = """
import sys
from pathlib import Path
from sameworld.stores.record_log import RecordLog
log = RecordLog.open(Path(sys.argv[1]), durability="process", segment_bytes=20_000)
while True:
    first = log.next_number
    numbers = log.append([b"%d " % number * (number % 50) for number in range(first, first + 7)])
    print(numbers.stop)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    chance, acknowledged = random.Random(9), 0
    for _ in range(6):
        writer = run(WRITE_UNTIL_KILLED, tmp_path)
        assert writer.stdout is not None
        for _ in range(chance.randrange(1, 400)):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        acknowledged = max([acknowledged, *map(int, rest.rpartition("\n")[0].split())])

        records = list(read(tmp_path))
        assert len(records) >= acknowledged
        assert records == [(number, b"%d " % number * (number % 50)) for number in range(len(records))]


FILL_A_SMALL_DISK = """
import resource, sys
from pathlib import Path
from sameworld.errors import LogError
from sameworld.stores.record_log import RecordLog, read

folder, durability = Path(sys.argv[1]), sys.argv[2]
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
log = RecordLog.open(folder, durability=durability)
kept = []
for limit in (1000, 1004, 1777, 4096, 0):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        while True:
            group = [b"%d" % log.next_number * 20] * 3
            log.append(group)
            kept += group
    except LogError as error:
        assert "cannot be read or written" in str(error), error
    assert log.next_number == len(kept)
    assert [payload for _, payload in read(folder)] == kept, "a failed group is not kept in part"
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert log.append([b"room again"]) == range(len(kept), len(kept) + 1)
    kept.append(b"room again")

log.close()
log = RecordLog.open(folder, durability=durability, segment_bytes=4000)
resource.setrlimit(resource.RLIMIT_FSIZE, (4, unlimited[1]))
for _ in range(2):  # not even the magic of a new segment fits
    try:
        log.append([bytes(3000)])
    except LogError:
        pass
    else:
        raise AssertionError("a full disk took a record")
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
assert log.append([b"small"]) == range(len(kept), len(kept) + 1)
assert [payload for _, payload in read(folder)] == [*kept, b"small"]
print("usable")
"""


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_a_full_disk_refuses_whole_groups_and_the_log_goes_on_when_there_is_room(
    tmp_path: Path, durability: str
) -> None:
    output, _ = run(FILL_A_SMALL_DISK, tmp_path, durability).communicate()
    assert output == "usable\n"


ALTERNATE = """
import fcntl, sys
from pathlib import Path
from sameworld.stores.record_log import RecordLog
folder, me = Path(sys.argv[1]), sys.argv[2].encode()
with open(folder / "writers.lock", "w") as lock:
    log = None
    for turn in range(150):
        fcntl.flock(lock, fcntl.LOCK_EX)
        if log is None:
            log = RecordLog.open(folder, durability="process", segment_bytes=700)
        log.refresh()
        numbers = log.append([b"%s %d %d" % (me, log.next_number + at, turn) for at in range(turn % 4)])
        fcntl.flock(lock, fcntl.LOCK_UN)
"""


def test_two_writers_taking_turns_under_a_lock_keep_each_others_records(tmp_path: Path) -> None:
    writers = [run(ALTERNATE, tmp_path, name) for name in "ab"]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0

    records = [(number, payload.split()) for number, payload in read(tmp_path)]

    assert [int(claimed) for _, (_, claimed, _) in records] == [number for number, _ in records]
    for name in (b"a", b"b"):
        turns = [int(turn) for _, (who, _, turn) in records if who == name]
        assert turns == [turn for turn in range(150) for _ in range(turn % 4)]


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.tuples(st.integers(0, 1), st.booleans(), groups_of_payloads), max_size=10))
def test_refresh_catches_up_with_the_other_writer_and_cuts_what_it_left_torn(
    turns: list[tuple[int, bool, list[list[bytes]]]],
) -> None:
    with TemporaryDirectory() as name:
        folder, expected = Path(name), list[bytes]()
        with open_log(folder, 200) as one, open_log(folder, 200) as other:
            for who, torn, groups in turns:
                log = (one, other)[who]
                log.refresh()
                assert log.next_number == len(expected)
                for group in groups:
                    log.append(group)
                    expected += group
                if torn:
                    with max(folder.iterdir()).open("ab") as segment:
                        segment.write(b"\x09\0\0\0torn")
            assert [payload for _, payload in read(folder)] == expected


def test_an_append_without_refresh_after_another_writer_is_refused(tmp_path: Path) -> None:
    with open_log(tmp_path) as one, open_log(tmp_path) as other:
        other.append([b"from the other"])

        with pytest.raises(LogError, match="Another writer changed log"):
            one.append([b"would get a number twice"])
        one.refresh()

        assert one.append([b"now"]) == range(1, 2)
        assert list(read(tmp_path)) == [(0, b"from the other"), (1, b"now")]


def test_a_writer_whose_records_or_segments_were_removed_says_so(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([b"kept?"])
        os.truncate(max(tmp_path.iterdir()), 10)
        with pytest.raises(LogError, match="the 21 bytes that were acknowledged"):
            log.refresh()
        max(tmp_path.iterdir()).unlink()
        with pytest.raises(LogError, match="found: no segment"):
            log.refresh()


def test_a_reader_beside_a_writer_sees_a_growing_prefix(tmp_path: Path) -> None:
    writer = run(WRITE_UNTIL_KILLED, tmp_path)
    assert writer.stdout is not None
    seen = acknowledged = 0
    try:
        while acknowledged < 6000:
            for _ in range(60):
                acknowledged = int(writer.stdout.readline())
            start = max(0, seen - 500)
            records = list(read(tmp_path, start))
            assert len(records) + start >= max(seen, acknowledged)
            numbers = range(start, start + len(records))
            assert records == [(number, b"%d " % number * (number % 50)) for number in numbers]
            seen = numbers.stop
    finally:
        writer.kill()
        writer.communicate()


def test_a_reader_goes_on_through_a_cut_an_append_and_a_new_segment(tmp_path: Path) -> None:
    segment = written(tmp_path)
    os.truncate(segment, offset_of(5) - 1)
    reader = read(tmp_path)
    assert [next(reader) for _ in range(2)] == [(0, b"first"), (1, b"")]

    written(tmp_path, [b"instead", bytes(200), b"after"], segment_bytes=200)

    assert [payload for _, payload in reader] == [*PAYLOADS[2:4], b"instead", bytes(200), b"after"]
