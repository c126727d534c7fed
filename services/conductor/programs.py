"""Reads which program does which stage of a run: `stages.yaml`, or the operator's file in its place."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from conductor.v1 import project_pb2

from services.common.config import ConfigError

Stage = project_pb2.Stage
OURS = Path(__file__).with_name("stages.yaml")
SECONDS = ("wall_time", "cpu_time")
KEYS = frozenset({"program", "env", "gate", "memory_mb", "threads", "report", *SECONDS})
MAX_SECONDS = 3600
MAX_THREADS = 256
MIB = 1024 * 1024


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands there twice: YAML takes the last one, and nobody would hear of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := {name for name in names if isinstance(name, str) and names.count(name) > 1}:
            raise yaml.YAMLError(f"{', '.join(sorted(twice))} stands there twice")
        return super().construct_mapping(node, deep)


def load(path: Path | None) -> Sequence[project_pb2.StageProgram]:
    """Returns the program of each stage, in order.

    Args:
        path: of the operator's file; None for the one that comes with Conductor.

    Raises ConfigError naming the stage and key that cannot be used.
    """
    shown = "stages.yaml" if path is None else f"CONDUCTOR_STAGES={str(path)!r}"
    try:
        text = (OURS if path is None else path).read_text()
        document = yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{shown} cannot be read: {error}") from None
    names = [Stage.Name(stage).removeprefix("STAGE_") for stage in Stage.values() if stage]
    if not isinstance(document, dict) or set(document) != set(names):
        raise ConfigError(f"{shown} must name each of {', '.join(names)} and nothing else.")
    return tuple(_program(f"{shown}, {name}", Stage.Value(f"STAGE_{name}"), document[name]) for name in names)


def _program(where: str, stage: "project_pb2.Stage.ValueType", given: Any) -> project_pb2.StageProgram:
    if not isinstance(given, Mapping) or not set(given) <= KEYS:
        raise ConfigError(f"{where} must have the keys {', '.join(sorted(KEYS))} and no others.")
    argv, env = given.get("program"), given.get("env", {})
    if not isinstance(argv, list) or not argv or not all(isinstance(part, str) and part for part in argv):
        raise ConfigError(f"{where}: program must be a list of texts, the program first.")
    if not isinstance(env, Mapping) or not all(isinstance(part, str) for pair in env.items() for part in pair):
        raise ConfigError(f"{where}: env must be texts by name.")
    program = project_pb2.StageProgram(stage_id=stage, argv=argv, env=env)
    for name in SECONDS:
        getattr(program, name).FromSeconds(_whole(where, name, given, 1, MAX_SECONDS))
    program.memory_bytes = _whole(where, "memory_mb", given, 64, 1024 * 1024) * MIB
    program.threads = _whole(where, "threads", {"threads": 1, **given}, 1, MAX_THREADS)
    for name in ("gate", "report"):
        value = given.get(name, False)
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: {name} must be true or false.")
        setattr(program, name, value)
    return program


def _whole(where: str, name: str, given: Mapping[str, Any], low: int, high: int) -> int:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{where}: {name} must be a whole number from {low} to {high}.")
    return value
