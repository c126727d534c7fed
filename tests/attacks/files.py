"""Attacks on files: secrets, other workspaces, writes outside by every way, devices, set-user-id files."""

import asyncio
import os
import stat

from tests.attacks.attack import Attack
from tests.attacks.scene import Scene

# What shows a secret: each of these texts ends in the attack's output if it can be read.
READ = {
    "shadow": "attempt(os.stat, '/etc/shadow') and show('/etc/shadow') and proof('shadow')",
    "keys_of_root": "any([show(f'/root/.ssh/{n}') for n in ('id_rsa', 'id_ed25519', 'known_hosts')]) and proof('keys')",
    "readable": "show(OUT + '/readable')",
    "own_by_mode": "attempt(os.chmod, OUT + '/private', 0o666); show(OUT + '/private')",
    "by_dots": "show('../' * 40 + OUT + '/readable')",
    "by_symlink": "os.symlink(OUT + '/readable', 'l'); show('l')",
    "by_hard_link": "os.link(OUT + '/readable', 'h'); show('h')",
    "by_rename": "os.rename(OUT + '/movable', 'moved'); show('moved')",
    "by_own_root": "show('/proc/self/root' + OUT + '/readable')",
    "by_roots_of_all": "for p in ['self', 'thread-self'] + processes(): show(f'/proc/{p}/root{OUT}/readable')",
    "by_folders_of_all": "for p in processes(): show(f'/proc/{p}/cwd/note'); show(f'/proc/{p}/cwd/{OUT}/readable')",
    "by_threads_of_all": "for p in processes(): show(f'/proc/{p}/task/{p}/root{OUT}/readable')",
    "by_descriptor": """
for fd in range(256):
    for path in ('readable', '../readable', '../' * 40 + OUT + '/readable'):
        show(path, dir_fd=fd)""",
    "by_path_only": """
fd = os.open(OUT, os.O_PATH)
show('readable', dir_fd=fd)
show(f'/proc/self/fd/{fd}/readable')
os.fchdir(fd); show('readable')""",
    "by_openat2": """
how = struct.pack('QQQ', 0, 0, 0)
fd = call(437, -100, (OUT + '/readable').encode(), how, 24)
os.write(1, os.read(fd, 100))""",
    "by_handle": """
handle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0) + bytes(128))
mount = ctypes.c_int()
call((303, 264), -100, (OUT + '/readable').encode(), handle, ctypes.byref(mount), 0)
root = os.open('.', os.O_RDONLY)
os.write(1, os.read(call((304, 265), root, handle, 0), 100))""",
    "by_mount_tree": "fd = call(428, -100, OUT.encode(), 1); show('readable', dir_fd=fd)",
    "by_chroot": """
os.mkdir('r'); d = os.open('.', os.O_RDONLY)
os.chroot('r'); os.fchdir(d); show('../' * 40 + OUT + '/readable')""",
    "list": "say(os.listdir(OUT))",
    "list_by_descriptor": "say(os.listdir(os.open(OUT, os.O_RDONLY | os.O_DIRECTORY)))",
    "run_tool": "os.execv(OUT + '/tool', ['tool'])",
    "run_tool_by_interpreter": "open('t', 'w').write(f'#!{OUT}/tool\\n'); os.chmod('t', 0o700); os.execv('t', ['t'])",
    "run_tool_by_shell": "os.execv('/bin/sh', ['sh', OUT + '/tool'])",
    "run_tool_by_descriptor": """
fd = os.open(OUT + '/tool', os.O_PATH)
os.set_inheritable(fd, True); os.execve(fd, ['t'], {})""",
    "stat": "say(os.stat(OUT + '/dated').st_mtime_ns)",
    "stat_by_symlink": "os.symlink(OUT + '/dated', 'l'); say(os.stat('l').st_mtime_ns)",
    "existence": """
def told(path):
    try: os.close(os.open(path, os.O_RDONLY))
    except OSError as error: return error.errno
told(OUT + '/readable') == told(OUT + '/missing') or proof('told apart')""",
    "watch": "fd = call((294, 26), 0); call((254, 27), fd, OUT.encode(), 0xfff); proof('watching')",
    "watch_many": "call((300, 262), 0, 0); proof('fanotify')",
}

WRITE = {
    "new": "open(OUT + '/new', 'w')",
    "append": "open(OUT + '/writable', 'a').write('x')",
    "truncate": "os.truncate(OUT + '/writable', 0)",
    "by_symlink": "os.symlink(OUT + '/new', 'l'); open('l', 'w')",
    "by_folder_link": "os.symlink(OUT, 'd'); open('d/new', 'w')",
    "by_dots": "open('../' * 40 + OUT + '/new', 'w')",
    "by_own_root": "open('/proc/self/root' + OUT + '/new', 'w')",
    "by_roots_of_all": """
for p in ['self'] + processes():
    attempt(open, f'/proc/{p}/root{OUT}/new', 'w'); attempt(open, f'/proc/{p}/cwd{"/.." * 40}{OUT}/new', 'w')""",
    "by_path_only": "fd = os.open(OUT, os.O_PATH); os.mkdir('new', dir_fd=fd)",
    "hard_link_out": "open('mine', 'w'); os.link('mine', OUT + '/new')",
    "hard_link_in": "os.link(OUT + '/writable', 'mine'); open('mine', 'w').write('x')",
    "rename_out": "open('mine', 'w'); os.rename('mine', OUT + '/new')",
    "rename_over": "open('mine', 'w'); os.rename('mine', OUT + '/writable')",
    "rename_in": "os.rename(OUT + '/movable', 'mine')",
    "exchange": "open('mine', 'w'); call((316, 276), -100, b'mine', -100, (OUT + '/movable').encode(), 2)",
    "delete": "os.unlink(OUT + '/deletable')",
    "delete_folder": "os.unlink(OUT + '/inner/file'); os.rmdir(OUT + '/inner')",
    "folder": "os.mkdir(OUT + '/new')",
    "fifo": "os.mkfifo(OUT + '/new')",
    "symlink": "os.symlink('x', OUT + '/new')",
    "device": "os.mknod(OUT + '/new', 0o666 | stat.S_IFCHR, os.makedev(1, 3))",
    "socket_file": "socket.socket(socket.AF_UNIX).bind(OUT + '/new')",
    "nameless": """
fd = os.open(OUT, os.O_TMPFILE | os.O_WRONLY, 0o600)
call((265, 37), -100, f'/proc/self/fd/{fd}'.encode(), -100, (OUT + '/new').encode(), 0x400)""",
    "nameless_out": """
fd = os.open('.', os.O_TMPFILE | os.O_WRONLY, 0o600)
call((265, 37), -100, f'/proc/self/fd/{fd}'.encode(), -100, (OUT + '/new').encode(), 0x400)""",
    "chmod": "os.chmod(OUT + '/writable', 0o600)",
    "chmod_by_link": "os.symlink(OUT + '/writable', 'l'); os.chmod('l', 0o600)",
    "fchmodat2": "call(452, -100, (OUT + '/writable').encode(), 0o600, 0)",
    "chown": "os.chown(OUT + '/writable', os.getuid(), os.getgid()); os.chown(OUT + '/writable', -1, 12345)",
    "utime": "os.utime(OUT + '/writable', (1, 1))",
    "utime_by_descriptor": "fd = os.open(OUT + '/writable', os.O_PATH); os.utime(f'/proc/self/fd/{fd}', (1, 1))",
    "xattr": "os.setxattr(OUT + '/writable', 'user.attack', b'x')",
    "remove_xattr": "call(463, -100, (OUT + '/writable').encode(), 0, b'user.a', struct.pack('QII', 0, 0, 0), 16)",
    "file_attributes": "fcntl.ioctl(os.open(OUT + '/writable', os.O_RDONLY), 0x40086602, struct.pack('l', 0x40))",
    "bind_mount": "os.mkdir('b'); call((165, 40), OUT.encode(), b'b', 0, 4096, 0); open('b/new', 'w')",
}
SHARED = {
    name: f"attempt(open, '{folder}/attack-' + MARK, 'w')"
    for name, folder in {
        "tmp": "/tmp", "var_tmp": "/var/tmp", "shm": "/dev/shm", "usr": "/usr/bin", "etc": "/etc", "root_folder": ""
    }.items()
}  # fmt: skip

# Swaps what a name means between the check of a path and its use.
SWAP_FOLDER = """
os.mkdir('real')
def swap():
    while True:
        attempt(os.rename, 'real', 'kept'); attempt(os.symlink, OUT, 'real')
        attempt(os.unlink, 'real'); attempt(os.rename, 'kept', 'real')
os.dup2(os.open('/dev/null', os.O_WRONLY), 2)
threading.Thread(target=swap, daemon=True).start()
end = time.monotonic() + 0.4
while time.monotonic() < end:
    attempt(open, 'real/raced', 'w')
os._exit(0)
"""
SWAP_ARGUMENT = """
good, bad = b'inside'.ljust(200, b'\\0'), (OUT + '/raced').encode().ljust(200, b'\\0')
path = ctypes.create_string_buffer(good)
def swap():
    while True:
        path[:200] = good; path[:200] = bad
threading.Thread(target=swap, daemon=True).start()
end = time.monotonic() + 0.4
while time.monotonic() < end:
    fd = libc.syscall((257, 56)[AARCH64], ctypes.c_long(-100), path, 0o1101, 0o600)
    fd >= 0 and os.close(fd)
os._exit(0)
"""

SET_USER_ID = """
import shutil
for name, mode in (('u', 0o4755), ('g', 0o2755), ('both', 0o6755)):
    shutil.copy('/usr/bin/id', name); attempt(os.chown, name, 0, 0); attempt(os.chmod, name, mode)
time.sleep(0.5)
"""
DEVICES = """
for name, kind, device in (
    ('zero', stat.S_IFCHR, (1, 5)), ('mem', stat.S_IFCHR, (1, 1)), ('disk', stat.S_IFBLK, (254, 0))
):
    if attempt(lambda: os.mknod(name, 0o600 | kind, os.makedev(*device)) or True):
        proof('made ' + name)
"""
SIBLING_FILES = """
for home in (os.path.join('..', SIBLING_HOME), os.path.join(os.path.dirname(os.getcwd()), SIBLING_HOME)):
    show(home + '/s'); attempt(open, home + '/t', 'w'); attempt(os.unlink, home + '/s')
    say(attempt(os.listdir, home)); attempt(os.rename, home, 'taken')
say(attempt(os.listdir, '..'))
"""
INPUTS = """
import shutil
given = os.environ['INPUTS'] + '/given'
if read_first := show(given):
    attempt(os.chmod, os.environ['INPUTS'], 0o777); attempt(os.chmod, given, 0o666)
    attempt(lambda: open(given, 'a').write('changed')); attempt(os.truncate, given, 0)
    attempt(lambda: open(os.environ['INPUTS'] + '/added', 'w')); attempt(os.rename, given, given + '2')
    attempt(os.rename, os.environ['INPUTS'], 'moved'); attempt(os.unlink, given); attempt(os.mkdir, 'other')
    attempt(lambda: open('fake', 'w').write('changed')); attempt(os.rename, 'fake', given)
now = (attempt(os.listdir, os.environ['INPUTS']), attempt(lambda: open(given).read()))
now == (['given'], 'as given') or proof(f'inputs are {now}')
"""
TOUCH_INPUTS = """
given = os.environ['INPUTS'] + '/given'
show(given); os.utime(given, (1, 1)); os.stat(given).st_mtime == 1 and proof('touched')
"""


async def find_set_user_id(scene: Scene) -> None:
    """Looks, while the attack runs, for a set-user-id file that belongs to root."""
    while True:
        for folder, _, names in os.walk(scene.terminal.workspaces):
            for name in names:
                found = os.lstat(f"{folder}/{name}")
                if stat.S_ISREG(found.st_mode) and found.st_mode & 0o6000 and 0 in (found.st_uid, found.st_gid):
                    scene.seen.append(f"a set-user-id file of root: {name} {oct(found.st_mode)}")
                    return
        await asyncio.sleep(0.05)


def inputs_were_read(scene: Scene) -> str:
    """Whether the command found its inputs at all."""
    return "" if b"as given" in scene.output else "broken: no inputs found"


ATTACKS = (
    *(Attack(f"read_{name}", code, victim=name.endswith("of_all")) for name, code in READ.items()),
    *(Attack(f"write_{name}", code) for name, code in WRITE.items()),
    *(Attack(f"write_in_{name}", code) for name, code in SHARED.items()),
    Attack("swap_folder", SWAP_FOLDER),
    Attack("swap_argument", SWAP_ARGUMENT),
    Attack("set_user_id_file", SET_USER_ID, meanwhile=find_set_user_id),
    Attack("device_nodes", DEVICES),
    Attack("sibling_files", SIBLING_FILES, sibling=True),
    Attack("change_inputs", INPUTS, inputs={"given": b"as given"}, check=inputs_were_read),
    Attack("touch_inputs", TOUCH_INPUTS, inputs={"given": b"as given"}, check=inputs_were_read),
    Attack("program_outside", argv=("{OUT}/tool",)),
    Attack("program_by_dots", argv=("../../../../../../../../..{OUT}/tool",)),
    Attack("program_by_path", argv=("tool",), env={"PATH": "{OUT}:/usr/bin"}),
    Attack("program_of_the_service", argv=("/proc/self/exe", "-c", "print(open('{OUT}/readable').read())")),
)
