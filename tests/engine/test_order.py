"""Conditions of operations: who waits for whom, and where blocks are read."""

from __future__ import annotations

from bascule.engine.order import Order, Run, Step
from bascule.formats.manifest import (
    HOLE,
    Extent,
    Manifest,
    Operation,
    OperationType,
    Part,
    PartInfo,
)

BLOCK = 4096


def manifest(
    *moves: tuple[str, list[int], list[int]], blocks: int = 10, in_place: bool = True
) -> Manifest:
    kinds = {"move": OperationType.MOVE, "replace": OperationType.REPLACE}

    def runs(numbers: list[int]) -> tuple[Extent, ...]:
        return tuple(Extent(n, 1) for n in numbers)

    operations = tuple(
        Operation(
            index=i,
            part="usr",
            type=kinds[kind],
            data_offset=0,
            data_length=0,
            source=runs(source),
            target=runs(target),
            data_sha256=None,
            source_length=len(source) * BLOCK,
            target_length=len(target) * BLOCK if kind == "move" else None,
        )
        for i, (kind, source, target) in enumerate(moves)
    )
    info = PartInfo(blocks * BLOCK, bytes(32))
    part = Part("usr", True, False, info if in_place else None, info, operations, in_place)
    return Manifest(1, 0, BLOCK, 20, 20, (part,), None, None, None, bytes(32))


def steps(of: Manifest) -> list[Step]:
    order = Order(of)
    return [order.step(operation) for operation in of.operations]


def test_unwritten_blocks_are_read_from_the_booted_slot() -> None:
    first, second = steps(manifest(("move", [5, 6], [0, 1]), ("move", [0, 2, 1], [7, 8, 9])))
    assert first.source == (Run(5, 1, written=False), Run(6, 1, written=False))
    assert not first.after
    assert [run.written for run in second.source] == [True, False, True]
    assert second.after == {0}
    assert second.barrier == 0
    assert not second.keeps


def test_one_extent_may_lie_in_both() -> None:
    of = manifest(("replace", [], [3]), ("move", [2], [9]))
    part = of.parts[0]
    wide = Operation(
        2,
        "usr",
        OperationType.MOVE,
        0,
        0,
        (Extent(1, 5),),
        (Extent(5, 5),),
        None,
        None,
        5 * BLOCK,
        5 * BLOCK,
    )
    order = Order(of)
    for operation in part.operations:
        order.step(operation)
    assert order.step(wide).source == (
        Run(1, 2, written=False),
        Run(3, 1, written=True),
        Run(4, 2, written=False),
    )


def test_a_later_writer_waits_for_the_reader_to_be_durable() -> None:
    of = manifest(
        ("replace", [], [0]),
        ("move", [0], [1]),
        ("move", [0], [2]),
        ("replace", [], [0]),
        ("replace", [], [0]),
    )
    found = steps(of)
    assert [step.barrier for step in found] == [0, 0, 0, 3, 0]
    assert found[3].after == {0}
    assert found[4].after == {3}


def test_reading_the_booted_slot_asks_for_no_barrier() -> None:
    found = steps(manifest(("move", [0, 1], [1, 2]), ("move", [3], [0]), ("move", [0], [3])))
    assert [step.barrier for step in found] == [0, 0, 0]
    assert not any(step.keeps for step in found)


def test_overwriting_what_it_reads_itself_asks_for_a_journal() -> None:
    found = steps(manifest(("replace", [], [0, 1]), ("move", [0, 1], [1, 2])))
    assert found[1].keeps
    assert found[1].after == {0}


def test_holes_and_blocks_behind_the_image_belong_to_nobody() -> None:
    of = manifest(("move", [HOLE, 4], [HOLE, 12]), ("move", [4], [12]))
    found = steps(of)
    assert found[0].source[0] == Run(HOLE, 1, written=False)
    assert found[1].after == frozenset()


def test_what_nothing_writes_is_found() -> None:
    of = manifest(("replace", [], [0, 1, 5]), ("move", [0], [9]))
    order = Order(of)
    for operation in of.operations:
        order.step(operation)
    assert list(order.untouched(of.parts[0], BLOCK)) == [Extent(2, 3), Extent(6, 3)]


def test_bare_blocks_are_those_that_nothing_wrote_before() -> None:
    found = steps(manifest(("replace", [], [0, 1]), ("replace", [], [1, 2, 3])))
    assert found[0].bare == {0, 1}
    assert found[1].bare == {2, 3}
    full = steps(manifest(("replace", [], [0, 1]), ("replace", [], [1, 2]), in_place=False))
    assert full[1].bare == frozenset()
    assert full[1].after == {0}
