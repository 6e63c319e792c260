"""Packs a built program for those who install it: an archive, a Python wheel, an npm package, and their SHA-256 sums.

    cargo build --release
    python3 scripts/package.py target/release/wels target/package [--check]

The wheel is of the form that maturin calls `bin`: the program among the scripts, and no Python. Its platform tag is the
oldest glibc that has all symbols the program asks for. The same program gives the same bytes. `--check` installs all
three into scratch folders and runs what is there.

Python's standard library alone; pip and npm are needed for `--check` of their packages.
"""

import argparse
import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = "The open DeepSeek system in one program: pretrain, reinforce, distil, evaluate, serve"
MACHINES = {62: ("x86_64", "x64"), 183: ("aarch64", "arm64")}
BESIDE = ["README.md", "LICENSE", "CHANGELOG.md", "deploy/wels.service"]


class Program:
    def __init__(self, path: Path):
        self.bytes = path.read_bytes()
        if self.bytes[:4] != b"\x7fELF":
            sys.exit(f"{path} is no program of Linux")
        self.machine, self.npm_machine = MACHINES[int.from_bytes(self.bytes[18:20], "little")]
        versions = [tuple(map(int, found)) for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", self.bytes)]
        self.glibc = max(versions, default=(2, 17))
        workspace = (ROOT / "Cargo.toml").read_text().split("[workspace.package]")[1]
        stated = lambda key: re.search(rf'^{key} = "(.*)"$', workspace, re.MULTILINE)[1]
        self.version, self.license = stated("version"), stated("license")


def archive(entries: dict[str, tuple[bytes, int]]) -> bytes:
    """A tar.gz of names with their contents and modes, of no time and nobody."""
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, (content, mode) in entries.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(tar_bytes.getvalue(), compresslevel=9, mtime=0)


def plain(program: Program) -> tuple[str, bytes]:
    folder = f"wels-{program.version}-{program.machine}-linux"
    entries = {f"{folder}/wels": (program.bytes, 0o755)}
    entries |= {f"{folder}/{Path(name).name}": ((ROOT / name).read_bytes(), 0o644) for name in BESIDE}
    return f"{folder}.tar.gz", archive(entries)


def wheel(program: Program) -> tuple[str, bytes]:
    """PEP 427, with the program in `.data/scripts`."""
    base = f"wels-{program.version}"
    tag = f"py3-none-manylinux_{program.glibc[0]}_{program.glibc[1]}_{program.machine}"
    metadata = (
        f"Metadata-Version: 2.4\nName: wels\nVersion: {program.version}\nSummary: {SUMMARY}\n"
        f"License-Expression: {program.license}\nLicense-File: LICENSE\nRequires-Python: >=3.8\n"
        f"Description-Content-Type: text/markdown\n\n{(ROOT / 'README.md').read_text()}"
    )
    about = f"Wheel-Version: 1.0\nGenerator: wels\nRoot-Is-Purelib: false\nTag: {tag}\n"
    entries = {
        f"{base}.data/scripts/wels": program.bytes,
        f"{base}.dist-info/METADATA": metadata.encode(),
        f"{base}.dist-info/WHEEL": about.encode(),
        f"{base}.dist-info/licenses/LICENSE": (ROOT / "LICENSE").read_bytes(),
    }
    digest = lambda content: base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    record = [f"{name},sha256={digest(content)},{len(content)}" for name, content in entries.items()]
    entries[f"{base}.dist-info/RECORD"] = "\n".join([*record, f"{base}.dist-info/RECORD,,", ""]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o100755 if name.endswith("scripts/wels") else 0o100644) << 16
            file.writestr(info, content)
    return f"{base}-{tag}.whl", packed.getvalue()


def npm(program: Program) -> tuple[str, bytes]:
    description = {
        "name": "wels", "version": program.version, "description": SUMMARY, "license": program.license,
        "bin": {"wels": "bin/wels"}, "os": ["linux"], "cpu": [program.npm_machine], "libc": ["glibc"],
        "files": ["bin", "README.md", "LICENSE"],
    }
    entries = {
        "package/package.json": (json.dumps(description, indent=2).encode(), 0o644),
        "package/README.md": ((ROOT / "README.md").read_bytes(), 0o644),
        "package/LICENSE": ((ROOT / "LICENSE").read_bytes(), 0o644),
        "package/bin/wels": (program.bytes, 0o755),
    }
    return f"wels-{program.version}-npm-{program.npm_machine}.tgz", archive(entries)


def said(*command, **options) -> str:
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, **options)
    return ended.stdout.strip()


def check(files: dict[str, Path], version: str):
    with tempfile.TemporaryDirectory() as folder:
        said("tar", "-xzf", files["plain"], "-C", folder)
        found = {"archive": next(Path(folder).glob("*/wels"))}
        pip = [sys.executable, "-m", "pip"]
        if subprocess.run([*pip, "--version"], capture_output=True).returncode == 0:
            said(*pip, "install", "--no-index", "--target", f"{folder}/pip", files["wheel"])
            found["wheel"] = Path(f"{folder}/pip/bin/wels")
        else:
            print("there is no pip: the wheel is not checked")
        if shutil.which("npm"):
            said("npm", "install", "--offline", "--no-audit", "--prefix", f"{folder}/npm", files["npm"])
            found["npm"] = Path(f"{folder}/npm/node_modules/.bin/wels")
        else:
            print("there is no npm: its package is not checked")
        for kind, path in found.items():
            assert said(path, "--version") == f"wels {version}", kind
            print(f"{kind}: wels {version} runs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    program = Program(args.program)
    args.folder.mkdir(parents=True, exist_ok=True)
    files, sums = {}, []
    for kind, pack in {"plain": plain, "wheel": wheel, "npm": npm}.items():
        name, content = pack(program)
        assert not args.check or pack(program) == (name, content), f"{kind}: the same program, other bytes"
        files[kind] = args.folder.resolve() / name
        files[kind].write_bytes(content)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}")
        print(f"{name}: {len(content) / 1e6:.1f} MB")
    (args.folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    if args.check:
        check(files, program.version)


if __name__ == "__main__":
    main()
