"""Who may become an operator (base/operator.sql): the owner of a confirmed address, and nobody who only typed it."""

import psycopg
import pytest
from api_actors import Actor, Farm


def email_of(farm: Farm, user: Actor) -> str:
    return str(farm.row("select email from auth.users where id = %s", (user.user_id,))["email"])


def confirm(farm: Farm, user: Actor) -> None:
    farm.rows(
        "update auth.users set email_confirmed_at = created_at + interval '1 minute' where id = %s", (user.user_id,)
    )


def test_a_grant_to_an_address_that_is_not_confirmed_is_refused(farm: Farm) -> None:
    boss = farm.user("boss")  # or whoever typed the boss's address first
    said = farm.service.cannot("grant_operator", email_of(farm, boss), "TC217")
    assert email_of(farm, boss) in said
    farm.service.cannot("operator_candidate", email_of(farm, boss), "TC217")
    assert farm.rows("select from public.operators") == []
    confirm(farm, boss)
    granted = farm.service.can("grant_operator", f" {email_of(farm, boss).upper()} ")
    assert (granted["user_id"], granted["operator"]) == (str(boss.user_id), True)
    assert farm.rows("select user_id from public.operators") == [{"user_id": boss.user_id}]


def test_who_would_become_one_is_told_and_nothing_is_changed(farm: Farm) -> None:
    boss = farm.user("boss")
    confirm(farm, boss)
    told = farm.service.can("operator_candidate", email_of(farm, boss))
    assert (told["user_id"], told["email"], told["operator"]) == (str(boss.user_id), email_of(farm, boss), False)
    assert told["signed_up_at"] < told["confirmed_at"]
    assert farm.rows("select from public.operators") == []


def test_the_one_that_was_shown_becomes_one_and_nobody_else(farm: Farm) -> None:
    boss, other = farm.user("boss"), farm.user("other")
    confirm(farm, boss)
    grant, email = "select public.grant_operator(%s, %s)", email_of(farm, boss)
    with pytest.raises(psycopg.Error) as refused, farm.service.transaction() as request:
        request.execute(grant, (email, other.user_id))
    assert refused.value.sqlstate == "TC218"
    with farm.service.transaction() as request:
        request.execute(grant, (email, boss.user_id))
    assert farm.rows("select user_id from public.operators") == [{"user_id": boss.user_id}]


def test_an_address_of_two_users_is_nobodys(farm: Farm) -> None:
    boss, second = farm.user("boss"), farm.user("second")
    farm.rows(
        "update auth.users set is_sso_user = true, email = %s where id = %s",
        (email_of(farm, boss).upper(), second.user_id),
    )
    for user in (boss, second):
        confirm(farm, user)
    farm.service.cannot("grant_operator", email_of(farm, boss), "TC218")
    assert farm.rows("select from public.operators") == []
