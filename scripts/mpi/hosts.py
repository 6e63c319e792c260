"""Several hosts on one machine, as network namespaces joined by a bridge, and a command as an MPI rank on each of them.

    sudo python3 scripts/mpi/hosts.py 4 [--rate 1gbit] [--cut HOST:AFTER[:SECONDS]] -- target/release/wels run r.toml

Each host has a name of its own (mh1, mh2, …) and a network card whose rate is limited in both directions; processes on
different hosts reach each other by TCP alone. `--cut 3:10:5` takes mh3 off the network 10 s after the start for 5 s,
without the seconds for good: its packets vanish, as with a pulled cable between switches, and no connection is told.

Takes root, Open MPI, iproute2 and util-linux, on a kernel with bridges, veth and tbf. Everything that it has set up is
gone when it ends. Writes to stderr how long the command took and with which code it ended, and ends with it.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

NET = "10.77.0"
BRIDGE = "welsbr0"
# Open MPI starts a host's daemon by `AGENT HOST COMMAND…`.
AGENT = """#!/bin/sh
host=mh${1##*.}
shift
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; exec $*"
"""


def sh(line, check=True):
    subprocess.run(shlex.split(line), check=check, stderr=None if check else subprocess.DEVNULL)


def limit(device, rate, within=""):
    if rate:
        # As much as a switch holds back before it drops: a quarter of a second at 1 Gbit/s.
        sh(f"{within} tc qdisc add dev {device} root tbf rate {rate} burst 256kb limit 32mb")


def set_up(hosts, rate):
    sh(f"ip link add {BRIDGE} type bridge")
    sh(f"ip link set {BRIDGE} up")
    for n in range(1, hosts + 1):
        within = f"ip netns exec mh{n}"
        sh(f"ip netns add mh{n}")
        sh(f"ip link add wels{n} type veth peer name eth0 netns mh{n}")
        sh(f"ip link set wels{n} master {BRIDGE} up")
        sh(f"{within} ip addr add {NET}.{n}/24 dev eth0")
        sh(f"{within} ip link set eth0 up")
        sh(f"{within} ip link set lo up")
        limit(f"wels{n}", rate)
        limit("eth0", rate, within)


def take_down(hosts):
    for n in range(1, hosts + 1):
        # What a host that was cut off still runs.
        pids = subprocess.run(["ip", "netns", "pids", f"mh{n}"], capture_output=True, text=True).stdout.split()
        for pid in pids:
            sh(f"kill -9 {pid}", check=False)
        sh(f"ip netns del mh{n}", check=False)
        sh(f"ip link del wels{n}", check=False)
    sh(f"ip link del {BRIDGE}", check=False)


def cut(spec, over):
    host, after, *seconds = spec.split(":")
    if over.wait(float(after)):
        return
    sh(f"bridge link set dev wels{host} state 0")
    print(f"hosts: mh{host} is off the network", file=sys.stderr)
    if seconds:
        over.wait(float(seconds[0]))
        sh(f"bridge link set dev wels{host} state 3", check=False)
        print(f"hosts: mh{host} is back", file=sys.stderr)


def mpirun(folder, hosts, ranks, command):
    hostfile, agent = Path(folder, "hosts"), Path(folder, "agent")
    hostfile.write_text("".join(f"{NET}.{n} slots={-(-ranks // hosts)}\n" for n in range(1, hosts + 1)))
    agent.write_text(AGENT)
    agent.chmod(0o755)
    words = f"""mpirun -q --allow-run-as-root --hostfile {hostfile} -np {ranks} --map-by node --bind-to none
        --mca plm_rsh_agent {agent} --mca btl tcp,self --mca btl_tcp_if_include {NET}.0/24
        --mca oob_tcp_if_include {NET}.0/24 --mca mpi_yield_when_idle 1
        --mca oob_tcp_keepalive_time 15 --mca oob_tcp_keepalive_intvl 2 --mca oob_tcp_keepalive_probes 3"""
    inner = shlex.join(words.split() + command)
    return ["ip", "netns", "exec", "mh1", "unshare", "--uts", "sh", "-c", f"hostname mh1; exec {inner}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hosts", type=int)
    parser.add_argument("--ranks", type=int, help="as many as hosts if left out")
    parser.add_argument("--rate", help="of each host's network card, in the words of tc: 1gbit")
    parser.add_argument("--cut", metavar="HOST:AFTER[:SECONDS]", help="take a host off the network")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which the command is ended")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    args, command = parser.parse_args(words[:end]), words[end + 1 :]
    if os.geteuid() != 0 or not command:
        parser.error("run it as root, with a command")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    take_down(args.hosts)
    over = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        try:
            set_up(args.hosts, args.rate)
            if args.cut:
                threading.Thread(target=cut, args=(args.cut, over), daemon=True).start()
            begin = time.monotonic()
            timeout = ["timeout", "-k", "5", str(args.limit)]
            code = subprocess.run(timeout + mpirun(folder, args.hosts, args.ranks or args.hosts, command)).returncode
            print(f"hosts: ended with code {code} after {time.monotonic() - begin:.1f} s", file=sys.stderr)
        finally:
            over.set()
            take_down(args.hosts)
    sys.exit(code)


if __name__ == "__main__":
    main()
