"""The files of a backup: how they are written, sealed and read again.

A backup is a directory:

    manifest.json                 what it holds, of which instant, with a checksum of every file
    <database>/<collection>.bson.gz      documents as BSON, one after another, compressed

Without a key the files have the form that mongorestore reads (`mongorestore --gzip --dir`). With a key (32
bytes) each file is cut into frames sealed by AES-256-GCM, named `.bson.gz.sealed`, and the manifest's
digest is an HMAC: who has no key reads nothing and changes nothing unnoticed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from chassis.ids import new_id

#: Version of the layout; a newer one is refused.
FORMAT = 1
MANIFEST = "manifest.json"
PLAIN, SEALED = ".bson.gz", ".bson.gz.sealed"
#: Length of a key, bytes.
KEY_BYTES = 32
#: Compressed bytes in one sealed frame, and the most that a reader takes for one.
FRAME_BYTES = 1 << 20
#: Compressed bytes read at once.
READ_BYTES = 1 << 20
#: Largest manifest, bytes.
MANIFEST_BYTES_MAX = 64 << 20
#: BSON's own limit with some room, bytes: what says to be longer is damaged.
DOCUMENT_BYTES_MAX = (16 << 20) + (16 << 10)
#: Fast and near the best that BSON allows.
COMPRESSION_LEVEL = 1
#: zlib's word for "with gzip's header".
GZIP_BITS = 31

#: How long a BSON document is: its first four bytes.
LENGTH = struct.Struct("<i")
_FRAME = struct.Struct(">I")
_NONCE_BYTES = 12


class BadBackup(Exception):
    """The backup cannot be used: one line that names the file."""


def read_key(path: Path | None) -> bytes | None:
    """The key in a file: 64 hexadecimal digits, or 32 bytes. Raises BadBackup."""
    if path is None:
        return None
    try:
        said = path.read_bytes()
    except OSError as error:
        raise BadBackup(f"the key file {path} cannot be read: {error.strerror}") from None
    if len(said) == KEY_BYTES:
        return said
    try:
        key = bytes.fromhex(said.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise BadBackup(
            f"the key file {path} must hold {KEY_BYTES} bytes, or {2 * KEY_BYTES} hexadecimal digits"
        )
    return key


class Writer:
    """One file of a backup on its way to disk."""

    def __init__(self, path: Path, name: str, key: bytes | None) -> None:
        """`name` is the file's place in the backup: a sealed file opens under no other."""
        self._file: BinaryIO = path.open("xb")
        self._squeeze = zlib.compressobj(COMPRESSION_LEVEL, wbits=GZIP_BITS)
        self._name = name
        self._seal = _cipher(key)
        self._held = bytearray()
        self._frames = 0
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Adds documents."""
        self._put(self._squeeze.compress(data))

    def _put(self, data: bytes, *, last: bool = False) -> None:
        if self._seal is None:
            self._store(data)
            return
        self._held += data
        while len(self._held) >= FRAME_BYTES or (last and self._held):
            piece = bytes(self._held[:FRAME_BYTES])
            del self._held[:FRAME_BYTES]
            nonce = os.urandom(_NONCE_BYTES)
            sealed = nonce + self._seal.encrypt(nonce, piece, f"{self._name}:{self._frames}".encode())
            self._frames += 1
            self._store(_FRAME.pack(len(sealed)) + sealed)

    def _store(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)

    def close(self) -> str:
        """Finishes the file on the disk; its SHA-256."""
        self._put(self._squeeze.flush(), last=True)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Closes without finishing."""
        self._file.close()


def _cipher(key: bytes | None) -> Any:
    if key is None:
        return None
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _stored(path: Path, name: str, key: bytes | None) -> Iterator[bytes]:
    """The compressed bytes of a file."""
    seal = _cipher(key)
    with path.open("rb") as file:
        if seal is None:
            while data := file.read(READ_BYTES):
                yield data
            return
        frame = 0
        while head := file.read(_FRAME.size):
            length = _FRAME.unpack(head)[0] if len(head) == _FRAME.size else 0
            if not _NONCE_BYTES < length <= FRAME_BYTES + 64:
                raise BadBackup(f"{name} is damaged: a frame of {length} bytes")
            sealed = file.read(length)
            try:
                yield seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], f"{name}:{frame}".encode())
            except Exception as error:
                raise BadBackup(f"{name} does not open with this key: {type(error).__name__}") from None
            frame += 1


def documents(path: Path, name: str, key: bytes | None) -> Iterator[bytes]:
    """The BSON documents of a file, one by one. Raises BadBackup naming it."""
    grow = zlib.decompressobj(wbits=GZIP_BITS)
    rest = b""
    try:
        for data in _stored(path, name, key):
            rest += grow.decompress(data)
            end = 0
            while len(rest) - end >= LENGTH.size:
                (length,) = LENGTH.unpack_from(rest, end)
                if not 5 <= length <= DOCUMENT_BYTES_MAX:
                    raise BadBackup(f"{name} is damaged: a document of {length} bytes")
                if len(rest) - end < length:
                    break
                yield rest[end : end + length]
                end += length
            rest = rest[end:]
    except (zlib.error, OSError) as error:
        raise BadBackup(f"{name} is damaged: {error}") from None
    if rest or not grow.eof:
        raise BadBackup(f"{name} ends in the middle")


def checksum(path: Path) -> str:
    """A file's SHA-256. Raises BadBackup naming it."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(READ_BYTES):
                digest.update(data)
    except OSError as error:
        raise BadBackup(f"{path.name} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def write_manifest(directory: Path, manifest: dict[str, Any], key: bytes | None) -> None:
    """Writes the manifest with its digest, last of all files. The order of names counts: an index has one."""
    said = {**manifest, "digest": _digest(manifest, key)}
    path = directory / MANIFEST
    with path.open("x", encoding="utf-8") as file:
        json.dump(said, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(directory: Path, key: bytes | None) -> dict[str, Any]:
    """The manifest of a backup, checked. Raises BadBackup."""
    path = directory / MANIFEST
    inside = sorted(each.parent.name for each in directory.glob(f"callmesh-*/{MANIFEST}"))
    if inside and not path.exists():
        raise BadBackup(
            f"{directory} holds backups and is none: name one of them, the newest is {inside[-1]}"
        )
    try:
        if path.stat().st_size > MANIFEST_BYTES_MAX:
            raise BadBackup(f"{path} has more than {MANIFEST_BYTES_MAX} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadBackup(f"{path} cannot be read: {type(error).__name__}") from None
    if not isinstance(found, dict) or not isinstance(found.get("databases"), dict):
        raise BadBackup(f"{path} is no manifest of a backup")
    if found.get("format") != FORMAT:
        raise BadBackup(f"{path} has format {found.get('format')!r}; this release reads {FORMAT}")
    if bool(found.get("sealed")) != (key is not None):
        raise BadBackup(
            f"{path}: " + ("it is sealed: name its key file" if key is None else "it is not sealed")
        )
    digest = found.pop("digest", "")
    if not hmac.compare_digest(str(digest), _digest(found, key)):
        raise BadBackup(
            f"{path} is not as it was written" + ("" if key is None else ", or the key is another")
        )
    return found


def _digest(manifest: dict[str, Any], key: bytes | None) -> str:
    said = json.dumps(manifest, separators=(",", ":")).encode()
    if key is None:
        return hashlib.sha256(said).hexdigest()
    return hmac.new(key, said, hashlib.sha256).hexdigest()


def fresh_name(stamp: str) -> str:
    """A backup's directory: the instant, and what tells two of one second apart."""
    return f"callmesh-{stamp}-{new_id()[-4:]}"
