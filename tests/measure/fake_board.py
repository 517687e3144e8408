"""A board on loopback: an ssh server with its own user, home, host key and Python, which has two packages.

The client is OpenSSH's own; the server is asyncssh's. Faults are put in by name: ``cut`` breaks the connection when a
command with that text in it has run for a moment.
"""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

USER = "board"


@dataclass
class FakeBoard:
    """What a test sees: how to reach the board, and what is on it.

    Attributes:
        host: ``ssh://user@127.0.0.1:port``.
        ssh_config: the client's configuration: the user's key, the board's known host key.
        home: the board user's home; its temporary folder is ``home/tmp``.
        site: the packages of the board's Python.
        commands: what was run there.
        cut: text of a command in whose middle the connection breaks.
    """

    host: str
    ssh_config: Path
    home: Path
    site: Path
    commands: list[str] = field(default_factory=list)
    cut: str | None = None


@contextmanager
def running(folder: Path, packages: tuple[str, ...] = ("numpy", "onnxruntime")) -> Iterator[FakeBoard]:
    """Serve a board from ``folder`` until the block ends; ``packages`` are all that its Python can import."""
    home = folder / "home"
    (home / "tmp").mkdir(parents=True)
    site = _python(folder / "python", packages)
    keys = {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("host", "user")}
    (folder / "user").write_bytes(keys["user"].export_private_key())
    (folder / "user").chmod(0o600)
    (folder / "known_hosts").write_bytes(b"fake-board " + keys["host"].export_public_key())
    config = folder / "ssh_config"
    settings = {
        "IdentityFile": folder / "user", "IdentitiesOnly": "yes", "UserKnownHostsFile": folder / "known_hosts",
        "GlobalKnownHostsFile": "/dev/null", "HostKeyAlias": "fake-board", "StrictHostKeyChecking": "yes",
    }  # fmt: skip
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()), encoding="utf-8")
    board = FakeBoard("", config, home, site)
    environment = {
        "HOME": str(home), "USER": USER, "TMPDIR": str(home / "tmp"), "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1",
        "PATH": f"{folder / 'python/bin'}:/usr/bin:/bin",
    }  # fmt: skip

    async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await _run(process, board, environment)

    class OneUser(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return True  # a key is asked for; a name that is not USER has none

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            return username == USER and key.public_data == keys["user"].public_data

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1", 0, server_factory=OneUser, server_host_keys=[keys["host"]],
            process_factory=serve, encoding=None,
        )  # fmt: skip

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
        board.host = f"ssh://{USER}@127.0.0.1:{server.get_port()}"
        yield board
        asyncio.run_coroutine_threadsafe(_closed(server), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(_settled(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


async def _closed(server: asyncssh.SSHAcceptor) -> None:
    """Close the server in its own loop: from another thread a connection's end can come between."""
    server.close()
    await server.wait_closed()


async def _settled() -> None:
    """Wait for what still runs, so that no pipe outlives its loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=10)


async def _run(process: Any, board: FakeBoard, environment: dict[str, str]) -> None:
    command = process.command or ""
    board.commands.append(command)
    child = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", command, cwd=board.home, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    if board.cut is not None and board.cut in command:
        await asyncio.sleep(0.05)
        process.channel.get_connection().abort()
        child.stdin.close()
        child.kill()
        await child.communicate()
        return
    output, errors = await child.communicate(await process.stdin.read())
    process.stdout.write(output)
    process.stderr.write(errors)
    process.exit(child.returncode if child.returncode is not None and child.returncode >= 0 else 137)


def _python(folder: Path, packages: tuple[str, ...]) -> Path:
    """Make an interpreter that can import ``packages`` alone, linked from this one's; return its site folder."""
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    for package in packages:
        found = importlib.util.find_spec(package)
        assert found is not None and found.origin is not None
        here = Path(found.origin).parent
        for part in (here, here.with_name(f"{package}.libs")):
            if part.exists():
                (site / part.name).symlink_to(part)
    return site
