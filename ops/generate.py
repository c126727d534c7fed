"""Generates gen/ from protos/: messages, stubs, type stubs, and the descriptor set that Envoy, buf and the tests load.

Usage: python -m ops.generate [--check]

Without arguments gen/ is replaced. With --check nothing is written; the exit code is 1 when gen/ differs from what the
protos give, and the files that differ are named.
"""

import argparse
import shutil
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"
VALIDATE = "buf/validate/validate.proto"
# Envoy needs these message types to print the details of an error as JSON; no proto of ours imports them.
ERROR_DETAILS = "google/rpc/error_details.proto"


def write_validate_descriptor(path: Path) -> None:
    """Writes a FileDescriptorSet of buf/validate/validate.proto and what it imports.

    No package ships that .proto; the validator's own descriptor is the same contract at the validator's version.
    """
    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    path.write_bytes(files.SerializeToString())


def run_protoc(*arguments: str) -> None:
    """Runs protoc. Raises SystemExit when it fails; protoc has then said why."""
    googleapis = distribution("googleapis-common-protos").locate_file("")
    well_known = distribution("grpcio-tools").locate_file("grpc_tools/_proto")
    includes = [f"-I{PROTOS}", f"-I{googleapis}", f"-I{well_known}"]
    if protoc.main(["protoc", *includes, *arguments]) != 0:
        raise SystemExit("protoc failed; see above")


def generate(out: Path) -> None:
    """Writes all generated files below `out`, which must exist."""
    own = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        validate = Path(scratch, "validate.binpb")
        write_validate_descriptor(validate)
        descriptors = f"--descriptor_set_in={validate}"
        run_protoc(descriptors, f"--python_out={out}", f"--mypy_out=quiet:{out}", VALIDATE, *own)
        services = [name for name in own if "\nservice " in (PROTOS / name).read_text()]
        run_protoc(descriptors, f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *services)
        run_protoc(
            descriptors,
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={out / 'conductor.pb'}",
            ERROR_DETAILS,
            *own,
        )


def contents(root: Path) -> dict[str, bytes]:
    """Returns every generated file below `root` by its relative name."""
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.suffix != ".pyc"
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when gen/ is stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        if not check:
            shutil.rmtree(GEN, ignore_errors=True)
            GEN.mkdir()  # copied into, so that it does not take over the temporary folder's private mode
            for entry in fresh.iterdir():
                shutil.copytree(entry, GEN / entry.name) if entry.is_dir() else shutil.copy(entry, GEN)
            return 0
        want, have = contents(fresh), contents(GEN)
    stale = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
    for name in stale:
        print(f"stale: gen/{name}", file=sys.stderr)
    if stale:
        print("run `make gen` and commit the result", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
