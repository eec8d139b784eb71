"""The classification of failed calls."""

import random
from itertools import islice

import pytest

from agent.control_plane.retry import Refused, Unreachable, backoff, classify, classify_auth, failure_of


@pytest.mark.parametrize(
    ("status", "code", "verdict"),
    [
        (500, "40001", "retry"),
        (500, "40P01", "retry"),
        (500, "55P03", "retry"),
        (500, "57014", "retry"),
        (503, "57P01", "retry"),
        (503, "57P03", "retry"),
        (503, "08006", "retry"),
        (503, "53300", "retry"),
        (503, "PGRST000", "retry"),
        (503, "PGRST002", "retry"),
        (404, "PGRST202", "retry"),
        (502, None, "retry"),
        (503, None, "retry"),
        (504, None, "retry"),
        (429, None, "retry"),
        (408, None, "retry"),
        (522, None, "retry"),
        (500, None, "retry"),
        (401, "PGRST301", "sign_in"),
        (401, "PGRST303", "sign_in"),
        (401, None, "sign_in"),
        (400, "TC001", "refused"),
        (400, "TC103", "refused"),
        (500, "XX000", "refused"),
        (403, "42501", "refused"),
        (401, "42501", "refused"),
        (400, "22P02", "refused"),
        (409, "23505", "refused"),
        (400, "PGRST102", "refused"),
        (404, None, "refused"),
        (413, None, "refused"),
        (302, None, "retry"),
        (308, None, "retry"),
    ],
)
def test_an_answer_is_retried_signed_in_for_or_taken_as_final(status: int, code: str | None, verdict: str) -> None:
    assert classify(status, code) == verdict


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (400, "refused"),
        (401, "refused"),
        (403, "refused"),
        (422, "refused"),
        (429, "retry"),
        (500, "retry"),
        (503, "retry"),
    ],
)
def test_auth_refuses_for_good_only_with_a_client_error(status: int, verdict: str) -> None:
    assert classify_auth(status) == verdict


def test_a_final_answer_names_its_code_and_what_to_do() -> None:
    error = failure_of("open_session", 400, "TC103", "not yours", "send a heartbeat")
    assert isinstance(error, Refused)
    assert error.code == "TC103"
    assert str(error) == "open_session: TC103: not yours (send a heartbeat)"


def test_a_call_with_a_gateway_error_may_have_been_executed() -> None:
    assert isinstance(failure_of("report_executions", 502, None, "bad gateway"), Unreachable)


def test_waits_double_up_to_the_cap_and_are_spread() -> None:
    waits = list(islice(backoff(1, 8, random.Random(1)), 6))
    for wait, window in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert window / 2 <= wait <= window
    assert len({round(wait, 6) for wait in waits}) == 6
