"""Ordinary work, which a sandbox must let through: what is contained by breaking everything is worth nothing."""

import re
from collections.abc import Callable

from tests.attacks.attack import BEGUN, MIB, Attack
from tests.attacks.scene import Scene
from tests.terminals import PYTHON

ROOM = {"memory_bytes": 512 * MIB, "processes": 32, "wall_time": 15, "workspace_entries": 2000}


def says(expected: str) -> Callable[[Scene], str]:
    """Returns a check that the work exited with 0 and wrote exactly what is expected."""

    def check(scene: Scene) -> str:
        words = re.sub(f"{BEGUN}.*", "", scene.stdout.decode(errors="replace")).split()
        right = (scene.end, scene.exit_code, words) == ("EXITED", 0, expected.split())
        return "" if right else f"{scene.end} {scene.exit_code}: {scene.output[-600:]!r} {scene.refusal}"

    return check


GIT = """
git init -q . && git config user.email a@b && git config user.name n && echo a > a && git add a &&
git commit -qm first && git clone -q . copy && git -C copy log --format=%s && git status --short | wc -l
"""
PIPELINE = "seq 100 | awk '{s += $1} END {print s}' | sed 's/^/sum=/' | tee f | sort | grep -c sum; cat f; wc -c < f"
FILES = """
mkdir -p a/b && echo x > a/b/c && cp -r a d && mv d e && tar cf t.tar e && rm -r e && tar xf t.tar && cat e/b/c &&
mkfifo p && (echo y > p & cat p) && ln -s a/b/c l && cat l && ln a/b/c h && chmod 640 h && stat -c %a h &&
mktemp > /dev/null && find . -name c | wc -l && du -s . > /dev/null && diff l h && touch -d 2020-01-01 h
"""
PYTHON_WORK = """
import asyncio, concurrent.futures, decimal, hashlib, json, random, re, shutil, sqlite3, ssl, subprocess, tempfile
tempfile.TemporaryFile().write(b"x")
print(subprocess.run(["echo", "child"], capture_output=True, check=True, text=True).stdout.strip())
with concurrent.futures.ThreadPoolExecutor(4) as pool: print(sum(pool.map(len, ["a"] * 50)))
base = sqlite3.connect("d.db")
base.execute("create table t(a)"); base.execute("insert into t values (7)"); base.commit()
print(base.execute("select a from t").fetchone()[0])
async def main():
    made = await asyncio.create_subprocess_exec("echo", "async", stdout=subprocess.PIPE)
    print((await made.communicate())[0].decode().strip())
asyncio.run(main())
"""
POOL = """
import os
def double(n):
    return 2 * n
if __name__ == "__main__":
    from multiprocessing import Pool, Process, Pipe
    here, there = Pipe()
    child = Process(target=there.send, args=("sent",)); child.start(); child.join(); print(here.recv())
"""
LOCK = """
import multiprocessing
with multiprocessing.Lock(): print("locked")
with multiprocessing.Pool(2) as pool: print(sum(pool.map(abs, [-1, -2])))
"""
DEVICES = "head -c 4 /dev/urandom | wc -c; echo x > /dev/null; head -c 3 /dev/zero | wc -c"
ATTACKS = (
    Attack("work_git", GIT, script=True, limits=ROOM, work=True, check=says("first 1")),
    Attack("work_pipeline", PIPELINE, script=True, limits=ROOM, work=True, check=says("1 sum=5050 9")),
    Attack("work_files", FILES, script=True, limits=ROOM, work=True, check=says("x y x 640 2")),
    Attack("work_python", argv=(PYTHON, "-c", PYTHON_WORK), limits=ROOM, work=True, check=says("child 50 7 async")),
    Attack("work_processes", argv=(PYTHON, "-c", POOL), limits=ROOM, work=True, check=says("sent")),
    Attack("work_lock", argv=(PYTHON, "-c", LOCK), limits=ROOM, work=True, check=says("locked 3")),
    Attack("work_devices", DEVICES, script=True, limits=ROOM, work=True, check=says("4 3")),
)
