"""TLS with real certificates and real connections: who is let in, and what a renewal does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from google.protobuf.wrappers_pb2 import StringValue

from chassis import client, tls
from chassis.callcontext import current_identity
from chassis.errors import StartError
from chassis.grpc_status import error_info
from chassis.peernames import THUMBPRINT, peer_names
from chassis.testing.certificates import Authority
from chassis.testing.echo import ECHO_SERVICE, echo_binding
from chassis.testing.grpc import loopback_settings
from chassis.testing.tokens import TokenMaker

pytestmark = pytest.mark.integration

UNARY = f"/{ECHO_SERVICE}/Unary"
WAIT = 10.0


class Echo:
    async def Unary(self, request: StringValue, context: Any) -> StringValue:
        return StringValue(value=current_identity().subject)


async def ask(channel: grpc.aio.Channel, **more: Any) -> str:
    call = channel.unary_unary(
        UNARY, request_serializer=StringValue.SerializeToString, response_deserializer=StringValue.FromString
    )
    return str((await call(StringValue(), timeout=WAIT, **more)).value)


def settings_of(files: dict[str, str], **changes: Any) -> Any:
    return loopback_settings(None, **files, **changes)


def certificates(files: dict[str, str]) -> tls.Certificates:
    return tls.Certificates(settings_of(files))


def end_of(files: dict[str, str]) -> float:
    """When a certificate ends."""
    pem = Path(files["tls_cert_file"]).read_bytes()
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()


async def refused(channel: grpc.aio.Channel) -> bool:
    try:
        await ask(channel)
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


@pytest.mark.parametrize(("clients", "without"), [("certified", False), ("any", True)])
async def test_who_is_let_in(grpc_server: Any, tmp_path: Path, clients: str, without: bool) -> None:
    authority, stranger = Authority(), Authority("somebody else")
    ours = authority.write(tmp_path / "server")
    server = await grpc_server([echo_binding(Echo())], settings=settings_of(ours, tls_clients=clients))
    theirs = certificates(stranger.write(tmp_path / "stranger"))
    mixed = authority.write(tmp_path / "mixed")
    dialer = client.Dialer(certificates(mixed))
    roots = Path(ours["tls_ca_file"]).read_bytes()
    bare = client.channel(server.address, grpc.ssl_channel_credentials(roots))
    plain = client.channel(server.address)
    other = client.channel(server.address, tls.channel_credentials(theirs))
    try:
        assert await ask(dialer.channel(server.address)) == "local"
        assert await refused(plain)
        assert await refused(other), "a server of another authority's name is not believed"
        assert await refused(bare) is not without
    finally:
        await dialer.close()
        for channel in (bare, plain, other):
            await channel.close()


async def test_a_server_of_another_name_is_not_believed(grpc_server: Any, tmp_path: Path) -> None:
    """Of the same authority, but not whom the client asked for."""
    authority = Authority()
    files = authority.write(tmp_path / "server", host="crm.example.org")
    server = await grpc_server([echo_binding(Echo())], settings=settings_of(files))
    dialer = client.Dialer(certificates(authority.write(tmp_path / "client")))
    try:
        assert await refused(dialer.channel(server.address))
    finally:
        await dialer.close()


async def reason_of(channel: grpc.aio.Channel, token: str) -> str:
    """The subject that the server knows, or why it refuses."""
    try:
        return await ask(channel, metadata=(("authorization", f"Bearer {token}"),))
    except grpc.aio.AioRpcError as error:
        info = error_info(error)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED and info is not None
        return str(info.reason)


async def test_a_token_is_bound_to_the_certificate_it_came_with(grpc_server: Any, tmp_path: Path) -> None:
    """Who steals a partner's token cannot use it over a connection of its own."""
    maker, authority = TokenMaker(), Authority()
    server = await grpc_server(
        [echo_binding(Echo())],
        settings=settings_of(
            authority.write(tmp_path / "server"),
            auth_mode="jwt",
            auth_jwks_file=str(maker.write_jwks(tmp_path / "jwks.json")),
            auth_binding="subject",
        ),
    )
    pbx = certificates(authority.write(tmp_path / "pbx", name="pbx-1"))
    thief = certificates(authority.write(tmp_path / "thief", name="pbx-2"))
    named = {THUMBPRINT: peer_names(pbx.current().certificate).thumbprint}
    tokens = [maker.token(subject="pbx-1"), maker.token(subject="gateway", cnf=named)]
    channels = [client.channel(server.address, tls.channel_credentials(one)) for one in (pbx, thief)]
    try:
        assert [await reason_of(channels[0], token) for token in tokens] == ["pbx-1", "gateway"]
        assert [await reason_of(channels[1], token) for token in tokens] == ["CERTIFICATE_MISMATCH"] * 2
    finally:
        for channel in channels:
            await channel.close()


async def test_a_bound_token_is_worth_nothing_in_plain_text(grpc_server: Any, tmp_path: Path) -> None:
    maker = TokenMaker()
    settings = loopback_settings(
        None, auth_mode="jwt", auth_jwks_file=str(maker.write_jwks(tmp_path / "jwks.json"))
    )
    server = await grpc_server([echo_binding(Echo())], settings=settings)
    channel = client.channel(server.address)
    try:
        assert await reason_of(channel, maker.token(cnf={THUMBPRINT: "x"})) == "CERTIFICATE_MISMATCH"
        assert await reason_of(channel, maker.token()) == "partner"
    finally:
        await channel.close()


async def test_a_renewed_certificate_counts_without_a_restart(grpc_server: Any, tmp_path: Path) -> None:
    """Both sides change their authority: open connections go on, new ones are made with the new files, and
    who still has the old ones is no longer let in.
    """
    old, new = Authority("old"), Authority("new")
    server_files, client_files = old.write(tmp_path / "server"), old.write(tmp_path / "client")
    server = await grpc_server([echo_binding(Echo())], settings=settings_of(server_files))
    ends = tls._ends.labels(settings_of(server_files).service)
    assert ends._value.get() == end_of(server_files)
    ends.set(0)
    dialer = client.Dialer(certificates(client_files))
    before = dialer.channel(server.address)
    late = client.channel(server.address, tls.channel_credentials(certificates(old.write(tmp_path / "late"))))
    try:
        assert await ask(before) == "local"
        new.write(tmp_path / "server")
        new.write(tmp_path / "client")
        after = dialer.channel(server.address)
        assert after is not before
        assert await ask(after) == "local"
        assert await ask(before) == "local", "what is connected stays so"
        assert await refused(late)
        assert ends._value.get() == end_of(server_files), "an alert looks at the one in use"
        assert dialer.channel(server.address) is after
    finally:
        await dialer.close()
        await late.close()


@pytest.mark.parametrize("broken", [b"", b"no certificate"])
async def test_a_broken_renewal_leaves_the_last_good_one(
    grpc_server: Any, tmp_path: Path, broken: bytes
) -> None:
    authority = Authority()
    files = authority.write(tmp_path / "server")
    server = await grpc_server([echo_binding(Echo())], settings=settings_of(files))
    other = Authority()
    other.write(tmp_path / "server")
    (tmp_path / "server" / "tls.key").write_bytes(broken)
    dialer = client.Dialer(certificates(authority.write(tmp_path / "client")))
    try:
        assert await ask(dialer.channel(server.address)) == "local"
    finally:
        await dialer.close()


async def test_a_token_from_a_file_is_read_again_when_it_changes(grpc_server: Any, tmp_path: Path) -> None:
    maker = TokenMaker()
    settings = loopback_settings(
        None, auth_mode="jwt", auth_jwks_file=str(maker.write_jwks(tmp_path / "jwks.json"))
    )
    server = await grpc_server([echo_binding(Echo())], settings=settings)
    file = tmp_path / "token"
    file.write_text(maker.token(subject="first") + "\n")
    dialer = client.Dialer(token=tls.TokenFile(str(file)))
    try:
        assert await ask(dialer.channel(server.address), metadata=dialer.metadata()) == "first"
        file.write_text(maker.token(subject="the second"))
        assert await ask(dialer.channel(server.address), metadata=dialer.metadata()) == "the second"
        file.unlink()
        assert await ask(dialer.channel(server.address), metadata=dialer.metadata()) == "the second"
    finally:
        await dialer.close()


async def test_retired_channels_are_closed_when_there_are_many(tmp_path: Path) -> None:
    files = Authority().write(tmp_path / "client")
    closed: list[int] = []

    class Channel:
        def __init__(self, number: int) -> None:
            self.number = number

        async def close(self, grace: float | None = None) -> None:
            closed.append(self.number)

    made: list[Channel] = []

    def connect(target: str, credentials: Any) -> Any:
        made.append(Channel(len(made)))
        return made[-1]

    dialer = client.Dialer(certificates(files), connect=connect)
    for _ in range(client.RETIRED_MAX + 3):
        Authority().write(tmp_path / "client")
        dialer.channel("router:7100")
    await asyncio.sleep(0)
    assert closed == [0, 1]
    await dialer.close()
    assert sorted(closed) == list(range(len(made)))


def test_a_start_without_its_files_is_refused(tmp_path: Path) -> None:
    files = Authority().write(tmp_path)
    with pytest.raises(StartError, match="cannot be read"):
        certificates({**files, "tls_key_file": str(tmp_path / "none.key")})
    Authority().write(tmp_path / "other")
    mixed = {**files, "tls_key_file": str(tmp_path / "other" / "tls.key")}
    with pytest.raises(StartError, match="cannot be used"):
        tls.server_credentials(certificates(mixed), certified=True)


async def test_a_client_shows_no_certificate_with_anothers_key(grpc_server: Any, tmp_path: Path) -> None:
    """Of two files that are renewed one after the other, the first is there before the second."""
    authority = Authority()
    settings = settings_of(authority.write(tmp_path / "server"))
    server = await grpc_server([echo_binding(Echo())], settings=settings)
    mine, renewed = authority.write(tmp_path / "mine"), authority.write(tmp_path / "renewed")
    found = certificates(mine)
    dialer = client.Dialer(found)
    try:
        assert await ask(dialer.channel(server.address))
        first = found.current()
        for name in ("tls_cert_file", "tls_key_file"):
            Path(mine[name]).write_bytes(Path(renewed[name]).read_bytes())
            assert await ask(dialer.channel(server.address)), name
            shown = found.showable()
            assert (shown == first) is (name == "tls_cert_file")
        assert found.showable() == found.current()
    finally:
        await dialer.close()


def test_a_token_file_that_is_empty_for_a_moment_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    token = tls.TokenFile(str(file))
    assert token.token() == "one"
    file.write_text("")
    assert token.token() == "one"
    file.write_text("second")
    assert token.token() == "second"
