"""Hosts in network namespaces, so that one can be cut off from Redis, from the database, or from both.

The round itself runs in a namespace of its own (`unshare`): nobody else sees its bridges, and nothing is left of them.
Each host has one wire to Redis and one to PostgreSQL. A cut wire swallows packets, as a broken network does; nobody is
told that a connection has ended.
"""

import os
import shutil
import subprocess
import sys

ADDRESSES = {"redis": "10.88.1.1", "postgres": "10.88.2.1"}
INSIDE = "CHAOS_NETWORK"
OWN_NAMES = "mkdir -p /run/netns && mount -t tmpfs chaos /run/netns"
"""Namespaces are named by files, which would stay: they go to a folder that ends with ours."""


class NotPermitted(Exception):
    """There are no namespaces for us on this machine; the message says which command was refused."""


def enter() -> None:
    """Starts this program again in a network namespace of its own, unless it is in one. Raises `NotPermitted`."""
    if os.environ.get(INSIDE):
        return
    check()
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.chaos", *sys.argv[1:]]
    os.environ[INSIDE] = "yes"
    os.execvp("unshare", command)


def check() -> None:
    """Raises `NotPermitted` where there can be no namespaces with bridges."""
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
        """What runs a command on that host."""
        return ["ip", "netns", "exec", f"chaos-{host}"]

    def cut(self, host: int, side: int) -> None:
        """Takes the wire from a host to a server (0: Redis, 1: PostgreSQL) out of its bridge."""
        ip("link", "set", f"wire{host}{side}", "nomaster")

    def heal(self, host: int, side: int) -> None:
        ip("link", "set", f"wire{host}{side}", "master", f"bridge{side}")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
