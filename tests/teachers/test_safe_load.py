"""Hostile checkpoints: code, bombs, absurd sizes and shapes are refused before memory is spent."""

from __future__ import annotations

import io
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoints import safe_load
from pipeline.checkpoints.safe_load import MAX_PICKLE_BYTES, load_payload
from pipeline.errors import WeightsError
from pipeline.teachers import converted
from tests.teachers.checkpoint_table import saved


class Storage:
    """Pickles as torch's reference to a storage."""

    def __init__(self, key: str, elements: int) -> None:
        self.key, self.elements = key, elements


class Call:
    """Pickles as a call of ``function`` on ``arguments``."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


class Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        if isinstance(value, Storage):
            return ("storage", torch.FloatStorage, value.key, "cpu", value.elements)
        return None


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def zipped(content: bytes, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        for name, record in records.items():
            archive.writestr(f"archive/{name}", record)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def tensor(elements: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Call:
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, Storage("0", elements), offset, shape, stride, False, {})


FOUR = {"data/0": struct.pack("<4f", 1, 2, 3, 4)}


def refused(content: bytes, tmp_path: Path, name: str = "model.pt", **options: object) -> str:
    path = tmp_path / name
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match="cannot be loaded") as caught:
        load_payload(path, **options)  # type: ignore[arg-type]
    spent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert spent < 400_000, f"{spent} kB were spent on a refusal"
    assert str(caught.value).count("\n") <= 3
    assert len(caught.value.problem) < 200
    return f"{caught.value.problem} | {caught.value.got}"


def test_the_recipe_of_these_files_is_what_torch_reads(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(zipped(pickled({"w": tensor(4, (2, 2), (2, 1))}), FOUR))
    assert torch.equal(load_payload(path)["w"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: zipped(pickled(tensor(10**12, (10**12,), (1,))), FOUR), "storage 0 is shorter"),
        (lambda: zipped(pickled(tensor(4, (10**6, 10**6), (0, 0))), FOUR), "larger than its storage"),
        (lambda: zipped(pickled(tensor(4, (2, 4), (4, 1))), FOUR), "reaches past its storage"),
        (lambda: zipped(pickled(tensor(4, (4,), (1,), offset=2)), FOUR), "reaches past its storage"),
        (lambda: zipped(pickled(tensor(4, (-4,), (1,))), FOUR), "impossible shape"),
        (lambda: zipped(pickled(tensor(4, (2, 2), (1,))), FOUR), "impossible shape"),
        (lambda: zipped(pickled(tensor(4, (4,), (1,))), {}), "storage 0 is shorter"),
        (lambda: zipped(pickled(tensor(1 << 22, (1 << 22,), (1,))), {"data/0": bytes(1 << 24)},
                        zipfile.ZIP_DEFLATED), "compressed"),
        (lambda: zipped(pickled([Call(eval, "1")]), {}), "names code"),
        (lambda: zipped(pickled(Call(torch.load, "x")), {}), "names code"),
        (lambda: zipped(pickled(Call(np.ndarray, (10**9,))), {}), "names code"),
        (lambda: zipped(pickle.dumps({"w": 1}, protocol=4), {}), "no torch file has"),
        (lambda: zipped(bytes(MAX_PICKLE_BYTES + 1), {}), "no torch file"),
        (lambda: zipped(b"\x80\x02" + b"]0" * 30_000, {}), "no end"),
        (lambda: zipped(b"\x80\x02X\xff\xff\xff\x7fabc", {}), "no whole torch file"),
        (lambda: zipped(b"\x80\x02\x8a\xff", {}), "no whole torch file"),
        (lambda: saved({"w": torch.ones(1000)})[:-400], "no whole torch file"),
        (lambda: saved({"w": torch.ones(1000)}, legacy=True)[:-400], "shorter than declared"),
        (lambda: pickle.dumps({"w": 1}, protocol=2), "another pickle"),
        (lambda: b"", "no whole torch file"),
        (lambda: b"<html>not found</html>", "no whole torch file"),
    ],
)  # fmt: skip
def test_each_is_refused_with_one_clear_line(
    made: Callable[[], bytes], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_load, "MAX_PICKLE_STEPS", 50_000)
    assert words in refused(made(), tmp_path)


def test_a_million_views_of_one_storage_are_a_bomb(tmp_path: Path) -> None:
    elements = 1 << 20
    shared = Storage("0", elements)
    rebuild = torch._utils._rebuild_tensor_v2
    views = [Call(rebuild, shared, 0, (elements,), (1,), False, {}) for _ in range(200)]
    content = zipped(pickled(views), {"data/0": bytes(4 * elements)})
    assert "far more than its bytes" in refused(content, tmp_path)


def test_numpy_arrays_are_let_in_with_their_bytes_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(saved({"a": np.arange(3.0), "n": np.int64(4)}))
    assert "names code" in refused(path.read_bytes(), tmp_path)
    allow = ("numpy_arrays", "numpy_scalars")
    path.write_bytes(saved({"a": np.arange(3.0), "n": np.int64(4)}))
    assert load_payload(path, allow=allow)["a"].tolist() == [0.0, 1.0, 2.0]
    reconstruct = np.arange(2).__reduce__()[0]
    for evil in (Call(reconstruct, np.ndarray, (10**12,), b"b"), Call(np.ndarray, (10**12,))):
        assert "declared size" in refused(zipped(pickled(evil), {}), tmp_path, allow=allow)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", pickled({"w": 1}))
        archive.writestr("archive/data.pkl", pickled({"w": 2}))
    assert "two of its members" in refused(buffer.getvalue(), tmp_path)


def test_a_large_file_and_a_strange_suffix_are_refused_unread(tmp_path: Path) -> None:
    assert "larger than" in refused(bytes(1000), tmp_path, max_bytes=999)
    assert "suffix" in refused(b"x", tmp_path, "model.exe")


def test_safetensors_that_declare_more_than_they_hold(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(16)
    assert "no whole safetensors" in refused(content, tmp_path, "model.safetensors")


def test_a_list_inside_itself_and_a_laughing_tree_are_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted, "MAX_NODES", 20_000)
    endless: list[object] = []
    endless.append(endless)
    laughing: list[object] = [1]
    for _ in range(30):
        laughing = [laughing, laughing]
    for payload in (endless, laughing):
        path = tmp_path / "model.pt"
        path.write_bytes(zipped(pickled(payload), {}))
        with pytest.raises(WeightsError, match="its tree has no end"):
            converted.write(tmp_path / "cache", "0" * 64, load_payload(path), path.name)


def test_a_sparse_tensor_of_absurd_shape_is_refused(tmp_path: Path) -> None:
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0]]), torch.tensor([1.0]), (10**12,), check_invariants=False
    )
    assert "names code" in refused(saved({"w": sparse}), tmp_path)
