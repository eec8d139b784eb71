"""Who reads a page: people their own rows, operators also everybody's; agents and strangers nothing."""

import json
from collections.abc import Callable
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from api_actors import Actor, Farm

Request = Callable[[UUID], dict[str, Any]]
#: every page function, with a request for one account
PAGES: dict[str, Request] = {
    "my_session": lambda _: {},
    "equity_curve": lambda account: {"account_id": account},
}
READER: LiteralString = "select private.page_reader(%s::jsonb) as reader"


@pytest.fixture
def owner(farm: Farm) -> Actor:
    return farm.user()


@pytest.mark.parametrize("page", PAGES)
def test_agents_are_refused_and_nobody_who_is_not_signed_in_may_call(farm: Farm, owner: Actor, page: str) -> None:
    account = farm.account(owner)
    farm.agent("a").cannot(page, PAGES[page](account), "TC105")
    farm.anonymous.cannot(page, PAGES[page](account), "42501")


@pytest.mark.parametrize("page", PAGES)
def test_a_misspelt_key_is_named(farm: Farm, owner: Actor, page: str) -> None:
    request = PAGES[page](farm.account(owner)) | {"colour": 1}
    assert "colour" in owner.cannot(page, request, "TC301")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_tells_the_databases_clock(farm: Farm, owner: Actor, page: str) -> None:
    request = PAGES[page](farm.account(owner))
    before = farm.row("select private.server_time() as now")["now"]
    told = owner.can(page, request)["server_time"]
    assert before <= told <= farm.row("select private.server_time() as now")["now"]


def test_everybodys_rows_are_for_operators_who_ask_for_them(farm: Farm, owner: Actor) -> None:
    operator = farm.operator()
    for request in ({}, {"all": False}, {"all": None}):
        assert owner.sees(READER, (json.dumps(request),)) == [{"reader": owner.user_id}]
        assert operator.sees(READER, (json.dumps(request),)) == [{"reader": operator.user_id}]
    assert operator.sees(READER, ('{"all": true}',)) == [{"reader": None}]


@pytest.mark.parametrize(("request_", "code"), [('{"all": true}', "TC107"), ('{"all": "true"}', "TC001")])
def test_others_who_ask_for_everybodys_are_refused(farm: Farm, owner: Actor, request_: str, code: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        owner.sees(READER, (request_,))
    assert refused.value.sqlstate == code
