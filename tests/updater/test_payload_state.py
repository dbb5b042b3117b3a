"""URL failover and back-off, rule by rule (reference flatcar.md 3.5)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bascule.errors import BackingOff, BasculeError, catalogue, omaha_code
from bascule.formats.omaha import Offer
from bascule.updater.payload_state import (
    BAD_PAYLOAD,
    DAY,
    TRANSIENT,
    PayloadState,
    backing_off,
    downloaded,
    failed,
    received,
    refuse_if_backing_off,
    take_offer,
)

NOW = 1_800_000_000
MIDDLE = 0.5
OFFER = Offer(
    version="3602.1.5",
    urls=("http://a/u", "http://b/u"),
    name="u",
    size=10,
    sha256=bytes(32),
    max_failures=3,
)
FRESH = take_offer(PayloadState(), OFFER, NOW)


def fail(state: PayloadState, number: int, offer: Offer = OFFER) -> PayloadState:
    return failed(state, offer, number, NOW, MIDDLE)


@pytest.mark.parametrize("number", sorted(BAD_PAYLOAD))
def test_a_bad_payload_means_the_next_address(number: int) -> None:
    assert fail(FRESH, number) == replace(FRESH, url_index=1)


@pytest.mark.parametrize("number", sorted(TRANSIENT))
def test_transient_failures_are_counted(number: int) -> None:
    state = FRESH
    for count in (1, 2):
        state = fail(state, number)
        assert (state.url_index, state.url_failures) == (0, count)
    assert fail(state, number) == replace(FRESH, url_index=1)


@pytest.mark.parametrize(
    "number", [2, 3, 4, 5, 7, 8, 13, 15, 16, 19, 30, 31, 34, 35, 36, 40, 41, 44]
)
def test_other_failures_have_nothing_to_do_with_the_address(number: int) -> None:
    assert fail(FRESH, number) == FRESH


@pytest.mark.parametrize("number", [2404, 2503, 2999, 2000])
def test_http_errors_are_transient(number: int) -> None:
    assert fail(FRESH, number).url_failures == 1


@pytest.mark.parametrize("flags", [1 << 28, 1 << 29, 1 << 30, 7 << 28])
def test_flag_bits_are_taken_off(flags: int) -> None:
    assert fail(FRESH, 10 | flags) == fail(FRESH, 10)
    assert fail(FRESH, 9 | flags) == fail(FRESH, 9)


def test_the_three_buckets_hold_every_number_of_the_original() -> None:
    other = {2, 3, 4, 5, 7, 8, 13, 15, 16, 19, 30, 31, 34, 35, 36, 40, 41, 42, 43, 44}
    assert BAD_PAYLOAD | TRANSIENT | other | {6} == set(range(1, 45))
    assert not BAD_PAYLOAD & TRANSIENT


def test_a_byte_clears_the_failures() -> None:
    state = fail(fail(FRESH, 9), 9)
    assert received(state) == FRESH
    assert received(FRESH) is FRESH


def test_past_the_last_address_the_round_counts_and_backs_off() -> None:
    state = fail(fail(FRESH, 10), 10)
    assert (state.url_index, state.attempt) == (0, 1)
    assert state.backoff_until == NOW + DAY
    with pytest.raises(BackingOff, match="2027-01-16") as caught:
        refuse_if_backing_off(state, OFFER, NOW)
    assert caught.value.context["until"] == state.backoff_until
    refuse_if_backing_off(state, OFFER, state.backoff_until)


@pytest.mark.parametrize(
    ("attempts", "days"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 16), (40, 16), (5000, 16)]
)
def test_the_days_double_up_to_sixteen(attempts: int, days: int) -> None:
    state = replace(FRESH, attempt=attempts - 1)
    assert downloaded(state, OFFER, NOW, MIDDLE).backoff_until == NOW + days * DAY


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 100))
def test_the_spread_is_six_hours_either_way(jitter: float, attempts: int) -> None:
    state = downloaded(replace(FRESH, attempt=attempts), OFFER, NOW, jitter)
    days = min(2**attempts, 16)
    assert abs(state.backoff_until - NOW - days * DAY) <= 6 * 3600


def test_a_completed_download_counts_even_if_it_succeeds() -> None:
    state = downloaded(FRESH, OFFER, NOW, MIDDLE)
    assert state.attempt == 1 and backing_off(state, OFFER, NOW + 3600) == NOW + DAY


def test_deltas_are_exempt() -> None:
    delta = replace(OFFER, is_delta=True)
    state = take_offer(PayloadState(), delta, NOW)
    assert downloaded(state, delta, NOW, MIDDLE) == state
    assert fail(fail(state, 10, delta), 10, delta) == state
    assert backing_off(replace(state, backoff_until=NOW + 5), delta, NOW) is None


def test_the_server_may_disable_the_back_off() -> None:
    eager = replace(OFFER, disable_backoff=True)
    state = downloaded(take_offer(PayloadState(), eager, NOW), eager, NOW, MIDDLE)
    assert (state.attempt, state.backoff_until) == (1, 0)
    assert backing_off(replace(state, backoff_until=NOW + 5), eager, NOW) is None


def test_developer_mode_ignores_the_back_off() -> None:
    state = downloaded(FRESH, OFFER, NOW, MIDDLE)
    assert backing_off(state, OFFER, NOW, dev_mode=True) is None


@pytest.mark.parametrize(
    "change",
    [
        {"urls": ("http://a/u",)},
        {"urls": ("http://b/u", "http://a/u")},
        {"size": 11},
        {"sha256": bytes(31) + b"x"},
        {"is_delta": True},
        {"max_failures": 4},
        {"disable_backoff": True},
    ],
)
def test_another_offer_starts_afresh(change: dict[str, object]) -> None:
    worn = replace(FRESH, attempt=3, url_index=1, url_failures=2, backoff_until=NOW + DAY)
    other = replace(OFFER, **change)  # type: ignore[arg-type]
    state = take_offer(worn, other, NOW)
    assert (state.attempt, state.url_index, state.url_failures, state.backoff_until) == (0,) * 4
    assert state.signature != worn.signature


@pytest.mark.parametrize("change", [{"version": "9"}, {"packages": ()}, {"attributes": {"a": "b"}}])
def test_words_do_not_make_another_offer(change: dict[str, object]) -> None:
    worn = replace(FRESH, attempt=3, backoff_until=NOW + DAY)
    assert take_offer(worn, replace(OFFER, **change), NOW) == worn  # type: ignore[arg-type]


def test_a_back_off_from_a_wrong_clock_ends_now() -> None:
    wrong = replace(FRESH, attempt=1, backoff_until=NOW + 17 * DAY)
    assert take_offer(wrong, OFFER, NOW).backoff_until == NOW
    right = replace(FRESH, attempt=9, backoff_until=NOW + 16 * DAY)
    assert take_offer(right, OFFER, NOW) == right


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"attempt": "3"},
        {"attempt": -1},
        {"attempt": True},
        {"signature": None},
        {"backoff_until": 1.5},
        {"url_index": [0]},
    ],
)
def test_a_damaged_state_starts_afresh(data: dict[str, object]) -> None:
    assert PayloadState.from_dict(data) == PayloadState()


def test_an_index_beyond_the_addresses_is_mended() -> None:
    assert take_offer(replace(FRESH, url_index=7), OFFER, NOW).url_index == 0


_EVENTS = st.one_of(
    st.sampled_from([*range(1, 46), 100, 2000, 2500, 3005, 10 | 1 << 28]),
    st.sampled_from(["downloaded", "received", "reload"]),
)


@settings(max_examples=150)
@given(
    st.lists(_EVENTS, max_size=40),
    st.integers(1, 3),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    st.floats(0, 1, exclude_max=True),
)
def test_whatever_happens_the_state_makes_sense(
    events: list[int | str], urls: int, most: int, delta: bool, eager: bool, jitter: float
) -> None:
    offer = replace(
        OFFER,
        urls=tuple(f"http://{i}/u" for i in range(urls)),
        max_failures=most,
        is_delta=delta,
        disable_backoff=eager,
    )
    state = take_offer(PayloadState(), offer, NOW)
    for event in events:
        before = state
        if isinstance(event, int):
            state = failed(state, offer, event, NOW, jitter)
        elif event == "downloaded":
            state = downloaded(state, offer, NOW, jitter)
        elif event == "received":
            state = received(state)
        else:
            state = PayloadState.from_dict(json.loads(json.dumps(state.as_dict())))
            assert state == before
        assert 0 <= state.url_index < urls
        assert 0 <= state.url_failures < most
        assert before.attempt <= state.attempt <= before.attempt + 1
        assert take_offer(state, offer, NOW).attempt == state.attempt
        if delta or eager:
            assert state.backoff_until == 0
        if state.attempt and not (delta or eager):
            assert backing_off(state, offer, NOW) == state.backoff_until > NOW


def test_every_error_of_the_catalogue_falls_into_a_bucket() -> None:
    for kind in catalogue():
        error: BasculeError = kind("x")
        number = omaha_code(error, custom_server=True) & ~(0xF << 28)
        failed(FRESH, OFFER, number, NOW, MIDDLE)
