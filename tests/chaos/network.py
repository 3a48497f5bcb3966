"""Hosts in network namespaces, to partition them from Redis, from the database, or from both.

The round runs in a namespace of its own (`unshare`), so that its bridges are invisible outside, and disappear with it.
Each host has a wire to Redis and a wire to PostgreSQL. A cut wire drops packets, as a broken network does: neither side
sees the end of the connection.
"""

import os
import shutil
import subprocess
import sys

ADDRESSES = {"redis": "10.88.1.1", "postgres": "10.88.2.1"}
INSIDE = "CHAOS_NETWORK"
OWN_NAMES = "mkdir -p /run/netns && mount -t tmpfs chaos /run/netns"
"""Names of namespaces are files, which would remain; this folder disappears with the namespace of the round."""


class NotPermitted(Exception):
    """Network namespaces are not permitted on this machine; the message names the command that failed."""


def enter() -> None:
    """Restarts this program in a network namespace, unless it is in one. Raises `NotPermitted`."""
    if os.environ.get(INSIDE):
        return
    check()
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.chaos", *sys.argv[1:]]
    os.environ[INSIDE] = "yes"
    os.execvp("unshare", command)


def check() -> None:
    """Raises `NotPermitted` if namespaces with bridges cannot be created."""
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            raise NotPermitted(f"{program} is not installed")
    probe = f"{OWN_NAMES} && ip link add probe type bridge && ip netns add probe"
    done = subprocess.run(["unshare", "--net", "--mount", "sh", "-c", probe], capture_output=True, text=True)
    if done.returncode:
        raise NotPermitted(f"unshare --net --mount: {done.stderr.strip()}")


class Network:
    """A bridge for each server, and the namespaces of the hosts."""

    def __init__(self, hosts: int) -> None:
        subprocess.run(OWN_NAMES, shell=True, check=True)
        ip("link", "set", "lo", "up")
        for number, address in enumerate(ADDRESSES.values()):
            ip("link", "add", f"bridge{number}", "type", "bridge")
            ip("addr", "add", f"{address}/24", "dev", f"bridge{number}")
            ip("link", "set", f"bridge{number}", "up")
        for host in range(hosts):
            self._add(host)

    def _add(self, host: int) -> None:
        name = f"chaos-{host}"
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        for number, address in enumerate(ADDRESSES.values()):
            inner, outer = f"inner{host}{number}", f"wire{host}{number}"
            ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
            ip("link", "set", outer, "master", f"bridge{number}", "up")
            ip("-n", name, "addr", "add", f"{address.rpartition('.')[0]}.{10 + host}/24", "dev", inner)
            ip("-n", name, "link", "set", inner, "up")

    def prefix(self, host: int) -> list[str]:
        """The words before a command to run it on that host."""
        return ["ip", "netns", "exec", f"chaos-{host}"]

    def cut(self, host: int, side: int) -> None:
        """Disconnects the wire from a host to a server (0: Redis, 1: PostgreSQL)."""
        ip("link", "set", f"wire{host}{side}", "nomaster")

    def heal(self, host: int, side: int) -> None:
        ip("link", "set", f"wire{host}{side}", "master", f"bridge{side}")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
