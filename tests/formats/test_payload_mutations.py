"""Every wrong payload of the list, as far as bytes alone can tell."""

from __future__ import annotations

import pytest

from bascule.errors import BasculeError
from bascule.formats.signature import load_keys
from payload_builder import public_pem
from payload_mutations import MUTATIONS, Mutation, Stage
from payload_reading import prove

FOUND_HERE = {Stage.METADATA, Stage.DATA, Stage.TRUST}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_mutation_is_refused_with_its_number(mutation: Mutation) -> None:
    keys = load_keys(public_pem(), "update")
    data = mutation.build()
    if mutation.stage not in FOUND_HERE:
        prove(data, keys)
        return
    with pytest.raises(BasculeError) as caught:
        prove(data, keys)
    assert caught.value.number == mutation.number
    assert str(caught.value)


def test_names_are_unique_and_enough() -> None:
    names = [m.name for m in MUTATIONS]
    assert len(set(names)) == len(names) >= 32
