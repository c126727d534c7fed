"""Attacks by the network: every family and every way round a filter that knows only TCP's connect and bind."""

import asyncio
import contextlib
import socket
from typing import Any

from tests.attacks.attack import Attack
from tests.attacks.scene import Scene

RING = """
params = ctypes.create_string_buffer(120)
ring = call(425, 8, params)
word = lambda at: struct.unpack_from('I', params, at)[0]
tail, mask, array = word(44), word(48), word(64)
cq_head, cq_tail, cq_mask, cqes = word(80), word(84), word(88), word(100)
rings = mmap.mmap(ring, max(array + word(0) * 4, cqes + word(4) * 16), offset=0)
entries = mmap.mmap(ring, word(0) * 64, offset=0x10000000)
at = lambda place: struct.unpack_from('I', rings, place)[0]
def submit(operation, fd, address, offset, length):
    entries[:64] = struct.pack('<BBHiQQIIQ', operation, 0, 0, fd, offset, address, length, 0, 7).ljust(64, b'\\0')
    struct.pack_into('I', rings, array + 4 * (at(tail) & at(mask)), 0)
    struct.pack_into('I', rings, tail, at(tail) + 1)
    call(426, ring, 1, 1, 1, None, 0)
    result = struct.unpack_from('i', rings, cqes + 16 * (at(cq_head) & at(cq_mask)) + 8)[0]
    struct.pack_into('I', rings, cq_head, at(cq_head) + 1)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
"""
CONNECT = {
    "tcp": "connect(('127.0.0.1', TCP_PORT))",
    "tcp6": "connect(('::1', TCP6_PORT), socket.AF_INET6)",
    "tcp4_in_6": "connect(('::ffff:127.0.0.1', TCP_PORT), socket.AF_INET6)",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'attack', ('127.0.0.1', UDP_PORT))",
    "udp_lite": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136); proof('socket made')",
    "fast_open": "socket.socket().sendto(b'attack', 0x20000000, ('127.0.0.1', TCP_PORT))",
    "mptcp": "connect(('127.0.0.1', TCP_PORT), protocol=262)",
    "io_uring": RING
    + """
made = submit(45, socket.AF_INET, 0, socket.SOCK_STREAM, 0)
address = ctypes.create_string_buffer(struct.pack('!2xH4s8x', TCP_PORT, b'\\x7f\\0\\0\\1'))
struct.pack_into('H', address, 0, socket.AF_INET)
submit(16, made, ctypes.addressof(address), 16, 0)""",
    "io_uring_unix": RING
    + """
made = submit(45, socket.AF_UNIX, 0, socket.SOCK_STREAM, 0)
address = ctypes.create_string_buffer(struct.pack('H', socket.AF_UNIX) + (OUT + '/stream').encode() + b'\\0')
submit(16, made, ctypes.addressof(address), len(address), 0)""",
    "io_uring_file": RING
    + """
path = ctypes.create_string_buffer((OUT + '/readable').encode())
os.write(1, os.read(submit(18, -100, ctypes.addressof(path), 0, 0), 100))""",
    "unix": "connect(OUT + '/stream', socket.AF_UNIX)",
    "unix_datagram": "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'attack', OUT + '/dgram')",
    "unix_by_link": "os.symlink(OUT + '/stream', 'l'); connect('l', socket.AF_UNIX)",
    "abstract": "connect('\\0attacked-' + MARK, socket.AF_UNIX)",
    "pair_to_path": "socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'attack', OUT + '/dgram')",
    "raw_pair_to_path": "socket.socketpair(type=socket.SOCK_RAW)[0].sendto(b'attack', OUT + '/dgram')",
    "pair_reconnected": """
one = socket.socketpair(type=socket.SOCK_DGRAM)[0]
one.connect(OUT + '/dgram'); one.send(b'attack')""",
    "pair_by_message": """
one = socket.socketpair(type=socket.SOCK_DGRAM)[0]
one.sendmsg([b'attack'], [], 0, OUT + '/dgram')""",
    "service": "connect(('127.0.0.1', SERVICE_PORT)); proof('reached the service')",
    "tcp_by_shell": "os.execv('/bin/bash', ['bash', '-c', f'echo attack > /dev/tcp/127.0.0.1/{TCP_PORT}'])",
}
FAMILIES = {
    "netlink": "AF_NETLINK, socket.SOCK_RAW, 0",
    "packet": "AF_PACKET, socket.SOCK_RAW, 0x300",
    "packet_datagram": "AF_PACKET, socket.SOCK_DGRAM, 0x300",
    "raw": "AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP",
    "ping": "AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP",
    "raw6": "AF_INET6, socket.SOCK_RAW, 58",
    "vsock": "AF_VSOCK, socket.SOCK_STREAM",
    "vsock_datagram": "AF_VSOCK, socket.SOCK_DGRAM",
    "alg": "AF_ALG, socket.SOCK_SEQPACKET",
    "sctp": "AF_INET, socket.SOCK_STREAM, 132",
}
OTHERS = """
for family in set(range(3, 46)) - {2, 10, 16, 17, 38, 40}:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        if attempt(socket.socket, family, kind):
            proof(f'family {family} kind {kind}')
"""
# Listens where the outside tries to connect.
LISTEN = {
    "tcp": "made = socket.create_server(('127.0.0.1', LISTEN_PORT))",
    "tcp_any": "made = socket.create_server(('', LISTEN_PORT))",
    "tcp_unbound": "made = socket.socket(); made.listen(); say(made.getsockname()[1])",
    "abstract": "made = socket.socket(socket.AF_UNIX); made.bind('\\0listens-' + MARK); made.listen()",
    "unix": "made = socket.socket(socket.AF_UNIX); made.bind(OUT + '/listens'); made.listen()",
}
# It answers with its mark: on a port of the outside that it does not listen on, somebody else may.
ACCEPT = "\nmade.settimeout(1)\nfound = made.accept()[0]\nproof('was connected to')\nfound.send(MARK.encode())"
ANSWER_S = 1.0


async def knock(scene: Scene) -> None:
    """Tries to connect to what the attack listens on, until it answers."""
    told = scene.told
    places: list[tuple[int, Any]] = [
        (socket.AF_INET, ("127.0.0.1", told["LISTEN_PORT"])),
        (socket.AF_UNIX, f"\0listens-{told['MARK']}"),
        (socket.AF_UNIX, f"{told['OUT']}/listens"),
    ]
    while True:
        ports = [int(word) for word in scene.output.split() if word.isdigit() and len(word) in (4, 5)]
        unbound: list[tuple[int, Any]] = [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]
        for family, address in places + unbound:
            with socket.socket(family) as made, contextlib.suppress(OSError):
                made.settimeout(ANSWER_S)
                made.connect(address)
                if made.recv(100) == str(told["MARK"]).encode():
                    scene.seen.append(f"the attack listens on {address!r}")
                    return
        await asyncio.sleep(0.05)


ATTACKS = (
    *(Attack(f"connect_{name}", code) for name, code in CONNECT.items()),
    *(Attack(f"socket_{name}", f"socket.socket(socket.{what}); proof('made')") for name, what in FAMILIES.items()),
    Attack("socket_others", OTHERS),
    *(Attack(f"listen_{name}", code + ACCEPT, meanwhile=knock) for name, code in LISTEN.items()),
)
