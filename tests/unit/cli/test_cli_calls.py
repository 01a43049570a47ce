"""`callmesh calls` against a router that says what a test wants it to: what the tables show, what is hidden,
what a region that does not answer does to the others. tests/e2e/test_platform_day_two.py asks a platform.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result
from typer.testing import CliRunner

from callmesh.common.v1 import common_pb2
from callmesh.routing.v1 import call_pb2, directory_pb2, directory_pb2_grpc, routing_pb2, routing_pb2_grpc
from chassis.testing.certificates import Authority
from cli.calls import calls
from cli.directory import Refused

NOW = 1_800_000_000
CALLS = [
    call_pb2.Call(
        name="calls/talks",
        call_id="talks",
        state=call_pb2.CALL_STATE_CONNECTED,
        caller_number="+8613800138001",
        channel=common_pb2.CHANNEL_VOICE,
        queue="queues/service",
        region="regions/beijing",
        agent="agents/ann",
        queue_time={"seconds": NOW - 300},
        connect_time={"seconds": NOW - 260},
        attributes={"callback": "ring 13800138002 back"},
    ),
    call_pb2.Call(
        name="calls/lost-line",
        call_id="lost-line",
        state=call_pb2.CALL_STATE_WAITING,
        detached=True,
        priority=-3,
        queue="queues/service",
        region="regions/beijing",
        queue_time={"seconds": NOW - 75},
    ),
    call_pb2.Call(
        name="calls/" + "long" * 32,
        call_id="long" * 32,
        state=call_pb2.CALL_STATE_WAITING,
        callback_number="+8613800138003",
        queue="queues/service",
        region="regions/beijing",
        queue_time={"seconds": NOW - 5},
    ),
]


class Router(routing_pb2_grpc.RoutingServiceServicer, directory_pb2_grpc.DirectoryServiceServicer):  # type: ignore[misc]
    """Beijing has CALLS, two a page; nobody leads chengdu; shanghai has none."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.tokens: list[str] = []

    def ListRegions(self, request: Any, context: Any) -> Any:
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        names = ["beijing", "chengdu"] if not request.page_token else ["shanghai"]
        return directory_pb2.ListRegionsResponse(
            regions=[{"name": f"regions/{name}"} for name in names],
            next_page_token="" if request.page_token else "more",
        )

    def ListCalls(self, request: Any, context: Any) -> Any:
        self.asked.append(routing_pb2.ListCallsRequest.FromString(request.SerializeToString()))
        if request.region == "regions/chengdu":
            context.abort(grpc.StatusCode.UNAVAILABLE, "nobody leads chengdu")
        if request.region == "regions/mars":
            context.abort(grpc.StatusCode.NOT_FOUND, "There is no region regions/mars.")
        rows = CALLS if request.region == "regions/beijing" else []
        begin = int(request.page_token or 0)
        end = begin + min(2, request.page_size)
        return routing_pb2.ListCallsResponse(
            calls=rows[begin:end],
            next_page_token=str(end) if end < len(rows) else "",
            read_time={"seconds": NOW},
        )

    def GetCall(self, request: Any, context: Any) -> Any:
        return next(call for call in CALLS if call.name == request.name)

    def ExplainRoute(self, request: Any, context: Any) -> Any:
        self.asked.append(routing_pb2.ExplainRouteRequest.FromString(request.SerializeToString()))
        return routing_pb2.ExplainRouteResponse(
            summary="Was offered to ann. Just before: free.",
            replayed=True,
            offered_agent="agents/ann",
            decision_time={"seconds": NOW},
            region="regions/beijing",
            priority_parts={"TIER": 2, "REQUEST": 0},
            regions=[
                {"region": "regions/beijing", "distance_km": 12, "cost": 9.5, "cost_parts": {"wait": 9.5}},
                {"region": "regions/chengdu", "distance_km": -1, "skipped_reason": "DOWN"},
            ],
            agents=[{"agent": "agents/ann", "rank": 1}, {"agent": "agents/bob", "skipped_reason": "PAUSED"}],
        )


@contextmanager
def serving(credentials: grpc.ServerCredentials | None = None) -> Iterator[tuple[Router, str]]:
    """The router and where it is."""
    says = Router()
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        routing_pb2_grpc.add_RoutingServiceServicer_to_server(says, server)
        directory_pb2_grpc.add_DirectoryServiceServicer_to_server(says, server)
        at = "127.0.0.1:0"
        port = server.add_secure_port(at, credentials) if credentials else server.add_insecure_port(at)
        server.start()
        try:
            yield says, f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@pytest.fixture
def router() -> Iterator[tuple[Router, str]]:
    with serving() as (says, at):
        yield says, at


def run(at: str, *words: str) -> Result:
    """What the command said; its refusals are errors."""
    done = CliRunner().invoke(calls, [*words, "--address", at])
    if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_list_shows_who_waits_how_long_and_a_region_that_does_not_answer(
    router: tuple[Router, str],
) -> None:
    says, at = router
    done = run(at, "list", "--queue", "service", "--state", "waiting", "--state", "connected")
    assert done.exit_code == 1
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert list(rows) == ["call", "talks", "lost-line", "long" * 32]
    assert "CONNECTED" in rows["talks"] and "40 s" in rows["talks"] and "4 min 20 s" in rows["talks"]
    assert rows["talks"].endswith("+**********001") and "ann" in rows["talks"]
    assert "WAITING, line lost" in rows["lost-line"] and "1 min 15 s" in rows["lost-line"]
    assert rows["lost-line"].split()[-2:] == ["-3", "withheld"]
    assert "WAITING, call-back" in rows["long" * 32]
    assert "chengdu: UNAVAILABLE: nobody leads chengdu" in done.stderr
    assert [each.region[8:] for each in says.asked] == ["beijing", "beijing", "chengdu", "shanghai"]
    assert {each.queue for each in says.asked} == {"queues/service"}
    assert set(says.asked[0].states) == {call_pb2.CALL_STATE_WAITING, call_pb2.CALL_STATE_CONNECTED}


def test_a_list_is_as_long_as_it_is_wanted_and_masked_unless_wanted(router: tuple[Router, str]) -> None:
    _, at = router
    assert run(at, "list", "--region", "shanghai").output == "no live calls\n"
    cut = run(at, "list", "--region", "beijing", "--limit", "1", "--json")
    assert (cut.exit_code, cut.stderr) == (0, "there are more: only 1 of each region are shown (--limit)\n")
    (call,) = json.loads(cut.stdout)
    assert call["caller_number"] == "+**********001"
    assert call["attributes"] == {"callback": "ring ********002 back"}
    whole = json.loads(run(at, "list", "--region", "beijing", "--json", "--numbers").stdout)
    assert [each["call_id"] for each in whole] == [each.call_id for each in CALLS]
    assert whole[0]["caller_number"] == "+8613800138001" and whole[2]["callback_number"] == "+8613800138003"


def test_one_call_is_shown_in_words(router: tuple[Router, str]) -> None:
    _, at = router
    shown = run(at, "show", "talks").output
    assert "connect time" in shown and "CONNECTED" in shown and "138001" not in shown
    assert json.loads(run(at, "show", "talks", "--json", "--numbers").output)["queue"] == "queues/service"


def test_an_explanation_is_asked_for_and_told(router: tuple[Router, str]) -> None:
    says, at = router
    told = run(at, "explain", "c1", "--region", "beijing", "--around", "2027-01-15T16:00:00+08:00").output
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert lines[:2] == [
        "Was offered to ann. Just before: free.",
        "Offered to ann at 2027-01-15T08:00:00+00:00, replayed from the journal.",
    ]
    assert "Points of priority: TIER 2." in lines
    assert {"beijing 12 9.5 wait 9.5", "chengdu ? DOWN", "ann 1", "bob - PAUSED"} <= set(lines)
    assert (says.asked[0].name, says.asked[0].around_time.seconds) == ("calls/c1", NOW)

    words = ("--queue", "service", "--number", "10086", "--skill", "english:3", "--skill", "tv")
    told = run(at, "explain", *words, "--channel", "chat", "--priority", "5", "--agents", "1").output
    assert "bob" not in told and "... and 1 more (--agents)" in told
    call = says.asked[1].call
    assert [(each.skill, each.level_min) for each in call.skills] == [("english", 3), ("tv", 0)]
    assert (call.channel, call.priority) == (common_pb2.CHANNEL_CHAT, 5)
    assert json.loads(run(at, "explain", "c1", "--json").output)["replayed"] is True


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("list", "--state", "ended"), "state: must be one of waiting, offered"),
        (("list", "--region", "mars"), "NOT_FOUND: There is no region"),
        (("explain",), "say which"),
        (("explain", "c1", "--queue", "service"), "say which"),
        (("explain", "c1", "--around", "2027-01-15T16:00:00"), "around: must be a time with its zone"),
        (("explain", "c1", "--around", "noon"), "around: must be a time with its zone"),
        (("explain", "--queue", "service", "--skill", "english:6"), "skill: "),
        (("explain", "--queue", "service", "--channel", "pigeon"), "channel: must be one of voice"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    router: tuple[Router, str], words: tuple[str, ...], named: str
) -> None:
    with pytest.raises(Refused, match=named):
        run(router[1], *words)


def test_it_shows_its_token_and_certificate_and_says_which_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every command does (`stub_at`): a server that wants a certificate of its own authority."""
    authority, stranger = Authority(), Authority("somebody else")
    ours, theirs = authority.write(tmp_path / "server"), stranger.write(tmp_path / "stranger")
    key, certificate, roots = (Path(ours[f"tls_{name}_file"]).read_bytes() for name in ("key", "cert", "ca"))
    wanted = grpc.ssl_server_credentials([(key, certificate)], roots, require_client_auth=True)
    (tmp_path / "token").write_text("signed\n")
    monkeypatch.delenv("CALLMESH_TOKEN", raising=False)
    monkeypatch.setenv("CALLMESH_TOKEN_FILE", str(tmp_path / "token"))

    def shown(files: dict[str, str], *names: str) -> None:
        for name in ("tls_ca_file", "tls_cert_file", "tls_key_file"):
            monkeypatch.setenv(name.upper(), files[name] if name in names else "")

    with serving(wanted) as (says, at):
        shown(ours, "tls_ca_file", "tls_cert_file", "tls_key_file")
        assert "talks" in run(at, "list").stdout
        assert says.tokens == ["Bearer signed"] * 2
        for files, names, named in (
            (ours, (), "wants TLS"),
            (theirs, ("tls_ca_file",), "of another authority than TLS_CA_FILE"),
            (ours, ("tls_ca_file",), "a certificate that it knows"),
            (ours, ("tls_ca_file", "tls_cert_file"), "TLS_CERT_FILE comes with its key"),
        ):
            shown(files, *names)
            with pytest.raises(Refused, match=named):
                run(at, "list")
    with serving() as (_, at):
        shown(ours, "tls_ca_file")
        with pytest.raises(Refused, match="speaks plain text: unset TLS_CA_FILE"):
            run(at, "list")
