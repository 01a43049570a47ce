"""`callmesh locate`: CSV of many numbers, bad ones among them."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

SERVICES = Path(__file__).resolve().parents[3] / "services"
HEADER = ["number", "country", "province", "city", "latitude", "longitude", "precision"]
RUN = "import typer; from cli.locate import locate; typer.run(locate)"


def run(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SERVICES), **environment},
    )


def rows(done: subprocess.CompletedProcess[bytes]) -> list[list[str]]:
    found = list(csv.reader(io.StringIO(done.stdout.decode("utf-8"))))
    assert found[0] == HEADER
    return found[1:]


def test_numbers_as_arguments() -> None:
    done = run("13800138000", "+442083612345", "+80012345678")
    assert rows(done) == [
        ["+8613800138000", "CN", "北京", "北京", "39.9040", "116.4070", "CITY"],
        ["+442083612345", "GB", "", "London", "51.5090", "-0.1260", "CITY"],
        ["+80012345678", "", "", "", "", "", "UNKNOWN"],
    ]
    assert (done.returncode, done.stderr) == (0, b"")


def test_numbers_on_standard_input_with_bad_ones_among_them() -> None:
    done = run(stdin=b"0755-87654321\r\n\nnonsense\n110\n+12127365000")
    found = rows(done)
    assert [(row[0], row[6]) for row in found] == [
        ("+8675587654321", "CITY"),
        ("nonsense", "UNKNOWN"),
        ("110", "UNKNOWN"),
        ("+12127365000", "CITY"),
    ]
    assert done.returncode == 1
    errors = done.stderr.decode().splitlines()
    assert [error.split(":")[0] for error in errors] == ["line 3", "line 4"]
    assert "emergency" in errors[1]


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_chinese_is_utf_8_in_any_locale(locale: str) -> None:
    done = run("-", stdin=b"021-61234567", LC_ALL=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert rows(done)[0][3] == "上海"


def test_hostile_input_ends_no_run() -> None:
    stdin = b"\xff\xfe\x00\n" + b"1" * 500_000 + b"\n" + b"=cmd()\n" + b"13800138000\n"
    done = run(stdin=stdin)
    found = rows(done)
    assert [row[6] for row in found] == ["UNKNOWN", "UNKNOWN", "UNKNOWN", "CITY"]
    assert len(done.stdout) < 2_000
    assert [line.split(":")[0] for line in done.stderr.decode().splitlines()] == [
        "line 1",
        "line 2",
        "line 3",
    ]


def test_a_byte_order_mark_is_no_part_of_a_number() -> None:
    assert rows(run(stdin=b"\xef\xbb\xbf13800138000\n"))[0][0] == "+8613800138000"


def test_national_numbers_of_another_country() -> None:
    assert rows(run("--country", "US", "(212) 736-5000"))[0][:2] == ["+12127365000", "US"]


def test_an_unknown_country_is_a_usage_error() -> None:
    done = run("--country", "XX", "123")
    assert done.returncode == 2
    assert b"--country" in done.stderr
    assert done.stdout == b""


def test_no_input_is_a_header_alone() -> None:
    done = run()
    assert (rows(done), done.returncode) == ([], 0)
