"""What a sandbox's people do is told by the number, and its tokens are of the platform's own scopes."""

from __future__ import annotations

import json
from pathlib import Path

import jwt
import pytest

from cli import sandbox
from cli.sandbox_people import CALLS_MAX, Act, Story


@pytest.mark.parametrize(
    ("digit", "acts"),
    [
        ("0", [Act.ACCEPT, Act.ACCEPT]),
        ("4", [Act.ACCEPT]),
        ("5", [Act.ACCEPT]),
        ("6", [Act.DECLINE, Act.ACCEPT, Act.ACCEPT]),
        ("7", [Act.IGNORE, Act.ACCEPT]),
        ("8", [Act.DECLINE] * 5),
        ("9", [Act.ACCEPT]),
        ("", [Act.ACCEPT]),
    ],
)
def test_offers_are_answered_by_the_last_digit(digit: str, acts: list[Act]) -> None:
    story = Story()
    number = f"+8610640000{digit}" if digit else ""
    assert [story.on_offer("c", number) for _ in acts] == acts
    assert story.ends(number) == (digit == "5")
    assert [story.breaks_down("c", number) for _ in range(2)] == [digit == "9", False]


def test_calls_do_not_share_their_story_and_are_forgotten_in_the_end() -> None:
    story = Story()
    for n in range(CALLS_MAX + 1):
        assert story.on_offer(f"c{n}", "6") is Act.DECLINE
    assert story.on_offer("c5", "6") is Act.ACCEPT
    assert story.on_offer("c0", "6") is Act.DECLINE, "the oldest was forgotten"


def test_every_start_makes_its_own_keys_and_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "run-keys"
    sandbox.write_keys(folder)
    first = (folder / "partner.token").read_text()
    sandbox.write_keys(folder)
    assert (folder / "partner.token").read_text() != first
    keys = jwt.PyJWKSet.from_dict(json.loads((folder / "jwks.json").read_text()))
    told = {
        name: jwt.decode(
            (folder / name).read_text(), keys.keys[0], algorithms=["ES256"], audience=sandbox.AUDIENCE
        )["scope"].split()
        for name in ("partner.token", "limited.token", "peer.token")
    }
    assert {"crm.events.personal", "crm.events.read", "routing.calls.route"} <= set(told["partner.token"])
    assert "routing.shards.peer" not in told["partner.token"]
    assert told["limited.token"] == ["routing.calls.route"]
    assert all(Path(path).exists() for key, path in sandbox.environment(folder).items() if "FILE" in key)
