#!/usr/bin/env python3
"""Compiles the kernels of this folder for cards with NVRTC; prints registers, stack and spills of each.

    NVRTC=DIRECTORY [SAVE=DIRECTORY] ./cubins.py [FILE:ARCHITECTURE ...]

DIRECTORY has libnvrtc.so.*: a toolkit's lib64, or nvidia/cuda_nvrtc/lib of the Python package nvidia-cuda-nvrtc-cu12.
SAVE is where compiled files go, for card.py. Fails if a kernel does not compile, spills, or has its wgmma serialized.
"""

import ctypes
import glob
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PLACES = [HERE, os.path.join(os.path.dirname(HERE), "kernels")]
SAVE = os.environ.get("SAVE")
HOPPER_ALONE = ("hopper", "fp8", "wgmma")


def all_files() -> list[str]:
    """Every file, for each architecture that it is for."""
    found = []
    folders = [HERE, PLACES[1]]
    paths = sorted(glob.glob(f"{HERE}/**/*.cu", recursive=True)) + sorted(glob.glob(f"{PLACES[1]}/attention/*.cu"))
    paths += sorted(glob.glob(f"{PLACES[1]}/products/packed/*.cu"))
    paths += [f"{PLACES[1]}/products/{name}.cu" for name in ("dequantise", "hopper_packed")]
    for path in paths:
        name = os.path.relpath(path, next(folder for folder in folders if path.startswith(folder)))
        hopper = any(word in name for word in HOPPER_ALONE)
        found += [f"{name}:{architecture}" for architecture in (["sm_90a"] if hopper else ["sm_80", "sm_90a"])]
    return found


def text_of(name: str, seen: set[str]) -> str:
    """A file with what it includes, each once."""
    if name in seen or name == "shim.h":
        return ""
    seen.add(name)
    path = next(path for place in PLACES if os.path.exists(path := os.path.join(place, name)))
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    included = (re.match(r'\s*#include "(.+)"', line) for line in lines)
    pairs = zip(lines, included)
    return "".join(text_of(match[1], seen) if match else line for line, match in pairs if "#pragma once" not in line)


def compiled(nvrtc: ctypes.CDLL, name: str, architecture: str) -> tuple[bool, str]:
    """Whether it compiles, and the compiler's log."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text_of(name, set()).encode(), name.encode(), 0, None, None)
    options = [f"--gpu-architecture={architecture}", "--std=c++17", "-fmad=false", "-default-device"]
    options += ["--ptxas-options=-v"]
    arguments = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if code == 0 and SAVE:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        image = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, image)
        os.makedirs(SAVE, exist_ok=True)
        with open(os.path.join(SAVE, name.replace("/", "-").removesuffix(".cu") + ".cubin"), "wb") as file:
            file.write(image.raw)
    return code == 0, log.value.decode()


def main() -> int:
    directory = os.environ.get("NVRTC", "/usr/local/cuda/lib64")
    for builtins in glob.glob(f"{directory}/libnvrtc-builtins.so.*"):
        ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)  # version 13.0 does not look beside itself
    nvrtc = ctypes.CDLL(sorted(glob.glob(f"{directory}/libnvrtc.so.*"))[0])
    print(f"{'kernel':34} {'for':7} registers stack spills")
    failed = False
    usage = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill "
        r"loads.*?Used (\d+) registers"
    )
    for item in sys.argv[1:] or all_files():
        name, architecture = item.split(":")
        fine, log = compiled(nvrtc, name, architecture)
        if not fine or re.search(r"C75\d\d.*serializ", log):
            failed = True
            print(f"{item}: {log[:4000]}")
        for kernel, stack, stores, loads, registers in re.findall(usage, log, re.S):
            spills = int(stores) + int(loads)
            failed |= spills > 0
            print(f"{kernel:34} {architecture:7} {registers:>9} {stack:>5} {spills:>6}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
