import hashlib
import os
import runpy
import sys

folder, digest, size, limit = sys.argv[1:]
if sys.version_info < (3, 8):  # noqa: UP036 (of the target)
    sys.exit("the agent needs Python 3.8 or newer, got " + sys.version.split()[0])
folder = os.path.expanduser(folder)
os.makedirs(folder, mode=0o700, exist_ok=True)
path = os.path.join(folder, "agent-" + digest + ".pyz")


def intact() -> bool:
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() == digest
    except OSError:
        return False


if not intact():
    print("hwnas: send", flush=True)
    content = sys.stdin.buffer.read(int(size))
    aside = path + "." + str(os.getpid())
    try:
        with open(aside, "wb") as file:
            file.write(content)
        os.replace(aside, path)
    finally:
        if os.path.exists(aside):
            os.unlink(aside)
    if not intact():
        sys.exit("the agent arrived damaged")
print("hwnas: ready", flush=True)
sys.argv = [path, folder, limit]
sys.path[0] = path
runpy.run_path(path, run_name="__main__")
