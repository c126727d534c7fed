"""The files of an export: the model in two formats, what describes it, the programs, and all of them in one zip."""

import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.contract import Json, replacing, sha256_of

EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment a zip can hold: the same files give the same zip
PROGRAMS = Path(__file__).resolve().parent
COPIED = {  # file of ours → its name in the bundle
    "bundle/predict.py": "predict.py",
    "bundle/train.py": "train.py",
    "preparing.py": "preparing.py",
    "judging.py": "judging.py",
}
MANIFEST, BUNDLE = "manifest.json", "bundle.zip"
PUBLIC = ("sklearn", "skrub", "numpy", "scipy", "pandas", "builtins", "collections", "datetime", "functools", "_loss")
_SCHEMA = "schema.json"  # in the zip that skops writes
_ID = re.compile(r'(?<="__id__": )[0-9]+|(?<="file": ")[0-9]+')  # places in memory, by which skops names things


def write_skops(model: Any, path: Path) -> list[str]:
    """Writes a model as skops does, with deflate, and returns the types that who loads it has to trust.

    The same model gives the same bytes: skops names parts by their place in memory and puts the time in, so both are
    replaced. Raises ValueError when a type is none of the public packages', and what skops raises for a model it cannot
    write.
    """
    import skops.io

    raw = skops.io.dumps(model)
    types = [str(name) for name in skops.io.get_untrusted_types(data=raw)]
    foreign = [name for name in types if name.split(".")[0] not in PUBLIC]
    if foreign:
        raise ValueError(foreign[0])
    with zipfile.ZipFile(io.BytesIO(raw)) as given:
        numbers: dict[str, str] = {}
        schema = _ID.sub(
            lambda found: numbers.setdefault(found[0], str(len(numbers) + 1)), given.read(_SCHEMA).decode()
        )
        parts = {_renamed(name, numbers): given.read(name) for name in given.namelist() if name != _SCHEMA}
    _zip(path, {**parts, _SCHEMA: schema.encode()})
    return types


def _renamed(name: str, numbers: Mapping[str, str]) -> str:
    stem, dot, ending = name.partition(".")
    return f"{numbers.get(stem, stem)}{dot}{ending}"


def _zip(path: Path, parts: Mapping[str, bytes]) -> None:
    with replacing(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as made:
        for name in sorted(parts):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            made.writestr(entry, parts[name])


def copy_programs(folder: Path) -> list[str]:
    """Copies the programs into the folder of an export, and returns their names there."""
    for source, name in COPIED.items():
        with replacing(folder / name) as beside:
            beside.write_bytes((PROGRAMS / source).read_bytes())
    return list(COPIED.values())


def described(folder: Path, names: Iterable[str]) -> list[dict[str, Json]]:
    """Returns path, SHA-256 and size of files."""
    paths = [(name, folder / name) for name in sorted(names)]
    return [{"path": name, "sha256": sha256_of(path), "bytes": path.stat().st_size} for name, path in paths]


def pack(folder: Path, names: Sequence[str]) -> list[dict[str, Json]]:
    """Writes the manifest of these files and a zip of all; returns the files, manifest and zip included."""
    files = described(folder, names)
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")
    inside = [*names, MANIFEST]
    _zip(folder / BUNDLE, {name: (folder / name).read_bytes() for name in inside})
    return described(folder, [*inside, BUNDLE])
