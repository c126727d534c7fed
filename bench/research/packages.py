"""Documentation packages of Debian: fetched once, checked against their SHA-256, unpacked without dpkg."""

import fnmatch
import gzip
import hashlib
import io
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LIST = Path(__file__).with_name("packages.toml")
AR_MAGIC = b"!<arch>\n"  # ar(5)
AR_HEADER = 60  # bytes
FETCH_S = 600.0  # seconds for one download


class Missing(Exception):
    """A package cannot be had. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package of packages.toml."""

    name: str
    version: str
    sha256: str
    root: str
    take: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    faq: Mapping[str, str] = field(default_factory=dict)

    def files(self, folder: Path) -> Iterator[tuple[str, bytes]]:
        """Yields (path below root, content) of what is taken and of what holds questions, decompressed, by path."""
        wanted = (*self.take, *self.faq)
        for path, data in _members(_fetched(self, folder)):
            name = path.removeprefix(self.root + "/")
            if name == path or not _any(name, wanted) or (_any(name, self.leave) and not _any(name, self.faq)):
                continue
            yield name.removesuffix(".gz"), gzip.decompress(data) if name.endswith(".gz") else data

    def style(self, name: str) -> str | None:
        """Says how questions look in a file; None when it holds none."""
        for pattern, style in self.faq.items():
            if fnmatch.fnmatchcase(name, pattern.removesuffix(".gz")):
                return style
        return None


def packages() -> list[Package]:
    """Returns the packages the evaluation is built from."""
    listed = tomllib.loads(LIST.read_text("utf-8"))["package"]
    return [
        Package(**{**each, "take": tuple(each.get("take", ())), "leave": tuple(each.get("leave", ()))})
        for each in listed
    ]


def _any(name: str, patterns: tuple[str, ...] | Mapping[str, str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _fetched(package: Package, folder: Path) -> bytes:
    """Returns the package. One that is not as listed any more is an error: the figures would not compare."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{package.name}-{package.sha256[:16]}.deb"
    if not kept.exists():
        with_version = f"{package.name}={package.version}"
        before = set(folder.iterdir())
        done = subprocess.run(
            ["apt-get", "download", with_version], cwd=folder, capture_output=True, text=True, timeout=FETCH_S
        )
        new = [path for path in set(folder.iterdir()) - before if path.suffix == ".deb"]
        if done.returncode or len(new) != 1:
            raise Missing(
                f"`apt-get download {with_version}` gives nothing: {done.stderr.strip()[-200:]}. Run `apt-get update`; "
                f"if Debian has replaced it, put the new version and its SHA-256 into {LIST.name}."
            )
        new[0].rename(kept)
    data = kept.read_bytes()
    if hashlib.sha256(data).hexdigest() != package.sha256:
        kept.unlink()
        raise Missing(f"{package.name} {package.version} is not what {LIST.name} lists; it was removed. Try again.")
    return data


def _members(deb: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of the regular files of a package by path, deb(5)."""
    data = next(content for name, content in _parts(deb) if name.startswith("data.tar"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if member.isfile() and (content := tar.extractfile(member)) is not None:
                yield member.name.removeprefix("./"), content.read()


def _parts(deb: bytes) -> Iterator[tuple[str, bytes]]:
    position = len(AR_MAGIC)
    while position + AR_HEADER <= len(deb):
        name = deb[position : position + 16].decode().strip().rstrip("/")
        size = int(deb[position + 48 : position + 58])
        position += AR_HEADER
        yield name, deb[position : position + size]
        position += size + size % 2
