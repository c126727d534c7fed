"""What the sandbox refuses, in words that say what to do next."""

import errno

from services.common.errors import Reason, Refusal
from services.terminal.running import Lost, NotStarted

CAPABILITIES = "SETUID, SETGID, CHOWN, FOWNER and DAC_OVERRIDE"
ADVICE = {
    "namespaces": "The strong tier needs unprivileged user namespaces: allow them (sysctl user.max_user_namespaces, "
    "kernel.apparmor_restrict_unprivileged_userns, the container's seccomp profile), or let TERMINAL_TIER be standard.",
    "mounts": "The strong tier mounts a /proc of its own, which a container with a masked /proc forbids: run it with "
    "systempaths=unconfined, or let TERMINAL_TIER be standard.",
    "landlock": "Run it on Linux 6.12 or newer (6.2 when the service is root) with Landlock enabled, and let the "
    "container's seccomp profile allow the landlock_* calls.",
    "seccomp": "Run it on x86_64 or aarch64 with a kernel that has seccomp filters.",
    "uid": f"Start the service as an ordinary user, or leave root the capabilities {CAPABILITIES}.",
    "workspace": "Point TERMINAL_WORKSPACES at a folder the service can write to, with space left. Root needs the "
    f"capabilities {CAPABILITIES}.",
    "self_test": "EUCLEAN means that a layer does not hold on this machine. Otherwise the workspace cannot be reached "
    "by the command's user: every folder above TERMINAL_WORKSPACES needs its x bit for others.",
}
OTHER_ADVICE = "The service's log says more."


def unavailable(layer: str, number: int | None) -> Refusal:
    """Nothing ran, because a layer of the sandbox could not be set up."""
    name = _name(number)
    text = f"The sandbox cannot be set up, so nothing ran: layer {layer}, {name}. {ADVICE.get(layer, OTHER_ADVICE)}"
    return Refusal(Reason.ERROR_REASON_SANDBOX_UNAVAILABLE, text, layer=layer, errno=name)


def not_started(begun: NotStarted | Lost, program: str) -> Refusal:
    """The command did not begin, or nobody knows whether it did."""
    if isinstance(begun, Lost):
        return lost()
    if begun.layer == "cancelled":
        return stopping()
    if begun.layer != "program":
        return unavailable(begun.layer, begun.errno)
    name = _name(begun.errno)
    text = (
        f"{program[:200]} cannot be executed: {name}. Name a program below /usr or one in the workspace; "
        "a script needs its interpreter in the first line, or give it as `script`."
    )
    return Refusal(Reason.ERROR_REASON_COMMAND_NOT_STARTED, text, program=program[:200], errno=name)


def over_capacity(limit: int) -> Refusal:
    """All slots are taken."""
    text = f"{limit} commands are running, which is the limit: try again when one has ended."
    return Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text, limit=limit)


def workspace_busy(name: str) -> Refusal:
    """Another command runs in the workspace, or has used it just now."""
    text = f"Workspace {name} is in use by another command: try again when that has ended."
    return Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text, workspace=name)


def no_file(name: str, path: str) -> Refusal:
    """A file that cannot be read."""
    text = "There is no such workspace or file, or it is no regular file: name one that a result has listed."
    return Refusal(Reason.ERROR_REASON_FILE_NOT_FOUND, text, workspace=name, path=path[:200])


def no_place(name: str, path: str) -> Refusal:
    """A path that no file can be written to."""
    text = (
        "No file can be written there: name a path below the workspace without empty parts, `.` and `..`, that leads "
        "through folders only, and to no folder."
    )
    return Refusal(Reason.ERROR_REASON_FILE_NOT_FOUND, text, workspace=name, path=path[:200])


def missing(field: str) -> Refusal:
    """The first message of a stream lacks what only that one says."""
    what = "must be given on the first message"
    return Refusal(Reason.ERROR_REASON_INVALID_REQUEST, f"{field}: {what}.", [(field, what)], field=field)


def no_loopback(tier: str) -> Refusal:
    """A network was asked for in a tier that has none to give."""
    text = (
        f"The {tier} tier has no loopback to give: leave `network` out, or run the service where the strong tier holds."
    )
    return Refusal(Reason.ERROR_REASON_PROGRAM_REFUSED, text, network="NETWORK_LOOPBACK", tier=tier)


def too_much_input(limit: int) -> Refusal:
    """The inputs are larger together than allowed."""
    text = f"command.inputs: must be at most {limit} bytes together."
    return Refusal(Reason.ERROR_REASON_INVALID_REQUEST, text, [("command.inputs", text)], field="command.inputs")


def no_pattern(why: str) -> Refusal:
    """A pattern of outputs that no path can match."""
    text = f"command.outputs: {why}"
    return Refusal(Reason.ERROR_REASON_INVALID_REQUEST, text, [("command.outputs", why)], field="command.outputs")


def stopping() -> Refusal:
    """The service takes no more commands."""
    return Refusal(Reason.ERROR_REASON_SHUTTING_DOWN, "The service is stopping: send the command again to another.")


def lost() -> Refusal:
    """The supervisor was killed from outside, or a spawner that had the command in hand."""
    text = "The command's supervisor was killed, and the command with it. The service's log may say why."
    return Refusal(Reason.ERROR_REASON_INTERNAL, text)


def _name(number: int | None) -> str:
    return errno.errorcode.get(number or 0, "no errno")
