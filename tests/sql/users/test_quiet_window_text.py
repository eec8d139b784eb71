"""Quiet windows pasted as a table or a calendar: what is read, and what is refused with its line."""

from typing import Any

import psycopg
import pytest
from netting_harness import NettingWorld


def paste(world: NettingWorld, text: str, **more: Any) -> list[tuple[str, float, str, str, str | None]]:
    """The windows that are stored: begin in UTC, minutes, currencies, symbols, name."""
    world.as_user("import_quiet_windows", {"text": text} | more)
    rows = world.rows(
        "select to_char(begins_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as b,"
        " extract(epoch from ends_at - begins_at) / 60 as d, currencies, symbols, name"
        " from public.quiet_windows order by begins_at, ends_at"
    )
    return [(r["b"], float(r["d"]), " ".join(r["currencies"]), " ".join(r["symbols"]), r["name"]) for r in rows]


NFP = ("2099-12-04 13:30", 30.0, "USD", "", None)


@pytest.mark.covers("R38")
@pytest.mark.parametrize(
    "text",
    [
        "2099-12-04 13:30,2099-12-04 14:00,USD",
        "\ufeff2099-12-04T13:30Z,2099-12-04T14:00Z,usd,,\r\n\r\n",
        "2099-12-04 13:30;2099-12-04 14:00;USD\n",
        "2099-12-04 13:30\t2099-12-04 14:00\tUSD\n",
        '"2099-12-04 13:30" , "2099-12-04 14:00","USD"\n# a remark',
        "From,Until,Currency\n2099-12-04 13:30,2099-12-04 14:00,USD",
        "currencies,end,start,impact\nUSD,2099-12-04 14:00,2099-12-04 13:30,high",
        "Date,Time,Until,Currency\r2099-12-04,13:30,2099-12-04 14:00,USD",
        "2099-12-04 14:30+01:00,2099-12-04 09:00 -0500,USD",
    ],
)
def test_a_table(world: NettingWorld, text: str) -> None:
    assert paste(world, text) == [NFP]


def test_lists_names_and_quotes_in_a_table(world: NettingWorld) -> None:
    text = (
        "from,until,currencies,symbols,name\n"
        '2099-12-04 13:30,2099-12-04 14:00,USD;eur,"XAUUSD;Boom 500 Index","The ""big"" one, again"\n'
        "2099-12-25,,,,Christmas\n"
        "2099-12-31,2100-01-01,USD|EUR,,\n"
    )
    assert paste(world, text, time_zone="Europe/Berlin") == [
        ("2099-12-04 12:30", 30, "EUR USD", "BOOM 500 INDEX XAUUSD", 'The "big" one, again'),
        ("2099-12-24 23:00", 1440, "", "", "Christmas"),
        ("2099-12-30 23:00", 2880, "EUR USD", "", None),
    ]


def calendar(*lines: str) -> str:
    return "\r\n".join(["BEGIN:VCALENDAR", "VERSION:2.0", *lines, "END:VCALENDAR", ""])


def event(*lines: str) -> str:
    return calendar("BEGIN:VEVENT", "UID:1@example.test", *lines, "END:VEVENT")


@pytest.mark.parametrize(
    "text",
    [
        event("DTSTART:20991204T133000Z", "DTEND:20991204T140000Z", "CATEGORIES:USD"),
        event("DTSTART;TZID=America/New_York:20991204T083000", "DURATION:PT30M", "CATEGORIES:News,USD"),
        event('DTSTART;TZID="Eastern Standard Time":20991204T083000', "DURATION:PT30M", "CATEGORIES:USD"),
        event("DTSTART:20991204T133000", "DTEND:20991204T140000", "CATEGORIES:U", " SD"),
        event("DTSTART:20991204T133000Z", "DTEND:20991204T140000Z", "CATEGORIES:USD", "BEGIN:VALARM",
              "TRIGGER;RELATED=START:-PT5M", "DURATION:PT1M", "END:VALARM"),
        "\ufeff" + event("dtstart:20991204T133000Z", "DTEND:20991204T140000Z", "CATEGORIES:USD").replace("\r\n", "\n"),
        calendar("BEGIN:VTIMEZONE", "TZID:X", "BEGIN:STANDARD", "DTSTART:19700101T000000", "RRULE:FREQ=YEARLY",
                 "END:STANDARD", "END:VTIMEZONE", "BEGIN:VEVENT", "DTSTART:20991204T133000Z", "DURATION:PT30M",
                 "CATEGORIES:USD", "END:VEVENT",
                 "BEGIN:VEVENT", "DTSTART:20991205T133000Z", "STATUS:CANCELLED", "END:VEVENT"),
    ],
)  # fmt: skip
def test_a_calendar(world: NettingWorld, text: str) -> None:
    assert paste(world, text) == [NFP]


def test_titles_days_and_moments_of_a_calendar(world: NettingWorld) -> None:
    text = calendar(
        "BEGIN:VEVENT", "DTSTART;VALUE=DATE:20991225", "SUMMARY:Christmas\\, all closed", "END:VEVENT",
        "BEGIN:VEVENT", "DTSTART;VALUE=DATE:20991029", "DTEND;VALUE=DATE:20991031", "SUMMARY:Two days", "END:VEVENT",
        "BEGIN:VEVENT", "DTSTART;TZID=Europe/Berlin:20991025T013000", "DTEND;TZID=Europe/Berlin:20991025T033000",
        "SUMMARY:GBP an", "\td EUR rates", "END:VEVENT",
        "BEGIN:VEVENT", "DTSTART:20991204T133000Z", "SUMMARY:Speech", "END:VEVENT",
    )  # fmt: skip
    assert paste(world, text, time_zone="Europe/Berlin", currencies=["USD"]) == [
        ("2099-10-24 23:30", 180, "EUR GBP", "", "GBP and EUR rates"),  # the clocks go back meanwhile
        ("2099-10-28 23:00", 2880, "USD", "", "Two days"),
        ("2099-12-04 13:30", 0, "USD", "", "Speech"),
        ("2099-12-24 23:00", 1440, "USD", "", "Christmas, all closed"),
    ]


GOOD = "2099-12-04 13:30,2099-12-04 14:00,USD"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no window"),
        ("from,until\n", "has no window"),
        ("hello", "line 1 names no column from"),
        (f"{GOOD}\n\n04.12.2099 13:30,,USD", "line 3 has no time that can be read in from .04.12.2099 13:30"),
        (f"{GOOD}\n2099-12-04 13:30,2099-12-04 13:00,USD", "line 2 ends at .* before it begins"),
        (f'{GOOD}\n2099-12-04 13:30,"2099-12-04 14:00,USD', "line 2 has a quotation mark that is not closed"),
        (f"{GOOD}\n{GOOD},,,x", "line 2 has 6 fields, but there are 5 columns"),
        (f"{GOOD}\n2099-12-04,,U$D", "line 2 has a currency that is no code"),
        (calendar(), "has no window"),
        (event("SUMMARY:x"), "line 3 has no time that can be read"),
        (event("DTSTART:2099-12-04"), "line 3 has no time"),
        (event("DTSTART:20990230T100000Z"), "line 3 has no time"),
        (event("DTSTART;TZID=Mars/Base:20991204T083000"), "line 3 has a time in a zone that is not known .*Mars"),
        (event("DTSTART:20991204T133000Z", "DTEND:soon"), "line 3 has no time"),
        (event("DTSTART:20991204T133000Z", "DURATION:a while"), "line 3 has a duration"),
        (event("DTSTART:20991204T133000Z", "RRULE:FREQ=WEEKLY"), "line 3 is an event that repeats"),
        (event("DTSTART:20991204T133000Z", "DTEND:20991204T130000Z"), "before it begins"),
        (event("DTSTART:20991204T133000Z", "no colon here"), "line 6 is no line of a calendar"),
        (event("DTSTART:20991204T133000Z").replace("END:VEVENT", ""), "which was not begun"),
        (event("DTSTART:20991204T133000Z")[:-27], "cut off"),
    ],
)
def test_junk_is_refused_with_its_line_and_nothing_is_saved(world: NettingWorld, text: str, words: str) -> None:
    for more in ({}, {"replace": True}):
        with pytest.raises(psycopg.Error, match=words) as said:
            world.as_user("import_quiet_windows", {"text": text} | more)
        assert said.value.sqlstate == "TC323"
    assert world.one("select count(*) from public.quiet_windows") == 0


def test_a_long_text_is_refused_and_a_full_one_is_read(world: NettingWorld) -> None:
    with pytest.raises(psycopg.Error, match="at most 200000 characters") as said:
        world.as_user("import_quiet_windows", {"text": "x" * 200001})
    assert said.value.sqlstate == "TC001"
    many = "\n".join(f"2099-12-{1 + n % 28:02} {n // 28 % 24:02}:{n // 672:02},,USD" for n in range(1900))
    assert len(paste(world, many)) == 1900
    with pytest.raises(psycopg.Error, match="the limit of quiet windows is 2000"):
        paste(world, many.replace("2099", "2098"))
